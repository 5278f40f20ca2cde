"""Make the shipped records: the figures with seeds that chapters show.

    python benchmarks/records.py dpo    [--seeds 5]                helpdesk: beta sweep, swapped and shuffled labels
    python benchmarks/records.py family [--seeds 5]                helpdesk: learning rates, relatives, noise, similar pairs, online
    python benchmarks/records.py picture                           docs/dpo.png and docs/comparison.png from the records
    python benchmarks/records.py sentiment [--seeds 1] [--pairs 192] [--prompts 96]     SmolLM2-135M and VADER's score: learning rates beside the tilted optimum
    python benchmarks/records.py pairs --data F [--eval-data F] [--pairs N]   SmolLM2-135M-Instruct on a file of human preferences

Each run is kept under runs/records as it ends, so an interrupted call goes on where it was. To use two cores well, do the
work in other processes first: `--share 0/2` and `--share 1/2` make every second run each and write no record; a last call without it does.
"""
import argparse
import json
import random
from functools import cache, cached_property
from pathlib import Path

import torch

from alignlab import helpdesk
from alignlab.evaluation import best_of_n, tilted_optimum
from alignlab.helpdesk import Annotator, make_prompts
from alignlab.labs import open_lab
from alignlab.models import kl_per_token
from alignlab.training import budget, cached_rows, content_hash, write_record

VALIDATION = 192                                      # prompts that settings are picked on, two answers to each
ROOT, DONE = Path(__file__).parents[1] / "alignlab" / "records", Path("runs/records")

SHARE = dict(mine=0, of=1, seen=0)
def cell(name, make):
    "The row of one run: made once; None where it is another process's share"
    path = DONE / f"{name}.json"; SHARE["seen"] += 1
    if SHARE["seen"] % SHARE["of"] != SHARE["mine"] and not path.exists(): return None
    if not path.exists():
        row = make(); path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part"); part.write_text(json.dumps(row)); part.replace(path)
    row = json.loads(path.read_text())
    means = {k: [round(report[k]["mean"], 3) for report in (row["start"], row["report"]) if report and k in report] for k in ("gold", "kl", "preference_accuracy", "ranking_accuracy")}
    print(name, {k: v for k, v in means.items() if v}, f"{row['costs']['seconds']:.0f} s", flush=True)
    return row

@cache
def golds(lab):
    "(prompts, samples) gold of samples of the start"
    prompts = make_prompts("test", 96, seed=1000)
    pool = lab.start.sample(prompts, n=256, max_new_tokens=lab.max_new_tokens, seed=9)
    return lab.gold(pool.prompts, pool.text, pool.ended.tolist()).view(len(prompts), -1)

def best(lab):
    "Gold and KL of best-of-n by gold itself"
    return [dict(n=b["n"], kl=b["kl"], gold=b["reward"].mean) for b in best_of_n(golds(lab), [1, 2, 4, 8, 16, 32, 64])]

def tilted(lab):
    "Gold and KL of the best policy at each budget, estimated from samples of the start"
    gold = golds(lab)
    return [dict(kl=t["kl"], gold=t["reward"].mean, samples=t["samples"], ess=t["ess"]) for t in tilted_optimum(gold, kl=[.25, .5, 1, 1.5, 2, 2.5, 3])]

class Seed:
    "What a seed fixes: annotators, prompts, pairs, labels, and the report of the start; made when first asked for"
    def __init__(self, seed, **annotator):
        self.seed, self.B, self.lab = seed, budget("lesson"), open_lab("helpdesk", annotator=Annotator(seed=seed, **annotator))
        self.file = DONE / self.lab.world / ("-".join(["pairs", *(f"{k}{v}" for k, v in annotator.items()), str(seed)]) + ".jsonl")
    @cached_property
    def pairs(self): return cached_rows(self.file, lambda: list(self.lab.preferences(self.B.pairs, self.seed)))
    def few(self, n): return list(self.lab.preferences(n, self.seed))
    @cached_property
    def start(self): return self.report(self.lab.start).to_dict()
    def report(self, policy, skills=False, n=None): return self.lab.evaluate(policy, n=n or self.B.prompts, seed=self.seed, skills=skills)
    @cache
    def validation(self):
        prompts = make_prompts("validation", VALIDATION, self.seed)
        return prompts, self.lab.start.sample(prompts, 2, 1., self.lab.max_new_tokens, 77)
    def validate(self, policy):
        "How often annotators prefer the policy's answer to the start's, which is what settings are picked by; and gold, which is not"
        prompts, theirs = self.validation()
        ours = policy.sample(prompts, 2, 1., self.lab.max_new_tokens, 78)
        return dict(win_rate=Annotator(seed=self.seed).label(ours.prompts, ours.text, theirs.text, seed=self.seed).float().mean().item(),
                    gold=self.lab.gold(ours.prompts, ours.text, ours.ended.tolist()).mean().item())
    def row(self, method, run, skills=False, n=None, **more): return run.row(method, self.start, self.report(run.policy, skills, n).to_dict()) | more

def write(name, rows, lab, **more):
    if SHARE["of"] == 1: write_record(ROOT / "helpdesk" / f"{name}.json", "helpdesk", name, rows, world=lab.world, start=content_hash(lab.start.model), budget="lesson", **more)

def dpo(args):
    from alignlab.dpo import DPOArgs, train_dpo
    def swapped(r): return dict(prompt=r["prompt"], chosen=r["rejected"], rejected=r["chosen"])
    rows = []
    for s in map(Seed, range(args.seeds)):
        coin, B = random.Random(s.seed), s.B
        for method, beta in [*(("dpo", b) for b in (.03, .1, .5)), ("dpo-swapped", .1), ("dpo-shuffled", .1)]:
            def make():
                data = dict(dpo=lambda: s.pairs).get(method, lambda: [swapped(r) if method == "dpo-swapped" or coin.random() < .5 else r for r in s.pairs])()
                return s.row(method, train_dpo(s.lab.start, data, DPOArgs(steps=B.steps, batch_size=B.batch_size, beta=beta, seed=s.seed)), skills=method == "dpo" and beta == .1)
            rows.append(cell(f"{s.lab.world}/{method}-{beta}-{s.seed}", make))
    if SHARE["of"] == 1: write("dpo", rows, s.lab, tilted=tilted(s.lab), samples=samples(Seed(0)))

def samples(s, beta=.5, n=3):
    "Answers before and after the run of that beta, which is made again: the chapter opens with them"
    from alignlab.dpo import DPOArgs, train_dpo
    run = train_dpo(s.lab.start, s.pairs, DPOArgs(steps=s.B.steps, batch_size=s.B.batch_size, beta=beta, seed=s.seed))
    prompts, out = s.lab.prompts("test", n, seed=5), []
    for name, p in (("before", s.lab.start), (f"after DPO, beta {beta}", run.policy)):
        sample = p.sample(prompts, max_new_tokens=s.lab.max_new_tokens, seed=1)
        with torch.no_grad(): kl = kl_per_token(p, s.lab.start, sample).sum(1).tolist()
        out += [dict(policy=name, prompt=x, completion=c, gold=g, kl=k) for x, c, g, k in zip(prompts, sample.text, s.lab.gold(prompts, sample.text, sample.ended.tolist()).tolist(), kl)]
    return out

def similar_pairs(prompts, annotator, parts, seed):
    "Pairs that differ in so many of ten parts, labelled by annotators"
    rng, first, second = random.Random(seed), [], []
    for x in prompts:
        p = helpdesk.read_prompt(x)
        a, b = ({k: t for k, t in helpdesk._write(rng, p, "decent") if k != "filler"} for _ in range(2))
        new = rng.sample(helpdesk.ORDER, parts)
        mixed = {k: (b if k in new else a).get(k) for k in helpdesk.ORDER}
        first.append(" ".join(a[k] for k in helpdesk.ORDER if k in a)); second.append(" ".join(t for t in mixed.values() if t))
    better = annotator.label(prompts, first, second, seed)
    return [dict(prompt=x, chosen=a if w else b, rejected=b if w else a) for x, a, b, w in zip(prompts, first, second, better) if a != b]

def family(args):
    from alignlab.dpo import DPOArgs, train_dpo
    from alignlab.dpo_family import RELATIVES, RelativeArgs, train_online_dpo, train_relative
    rows, B = [], budget("lesson")
    size, few = dict(steps=B.steps, batch_size=B.batch_size), min(3, args.seeds)
    seeds = list(map(Seed, range(args.seeds)))
    def add(name, make): rows.append(cell(f"{seeds[0].lab.world}/{name}", make))
    for s in seeds:
        for lr in (1e-4, 1e-3): add(f"dpo-{lr}-{s.seed}", lambda: s.row("dpo", train_dpo(s.lab.start, s.pairs, DPOArgs(lr=lr, seed=s.seed, **size))))
        add(f"online-{s.seed}", lambda: s.row("dpo-online", train_online_dpo(s.lab.start, s.lab.prompts("train", B.pairs, s.seed), s.lab.annotator, DPOArgs(seed=s.seed, **size))))
    for s in seeds[:few]:
        for name in RELATIVES:
            if name not in ("dpo", "cdpo", "robust", "hinge"): add(f"relative-{name}-{s.seed}", lambda: s.row("relative", train_relative(s.lab.start, s.pairs, RelativeArgs(loss=name, seed=s.seed, **size))))
        for parts in (1, 10):
            for name in ("dpo", "dpo_nll"):
                def make():
                    pairs = similar_pairs(s.lab.prompts("train", B.pairs, s.seed), s.lab.annotator, parts, s.seed)
                    run = train_relative(s.lab.start, pairs, RelativeArgs(loss=name, seed=s.seed, **size))
                    with torch.no_grad(): before, after = (p.logps([r["prompt"] for r in pairs[:512]], [r["chosen"] for r in pairs[:512]]).mean().item() for p in (s.lab.start, run.policy))
                    return s.row("similar", run, n=96, parts=parts, displacement=after - before)
                add(f"similar-{parts}-{name}-{s.seed}", make)
        noisy, n = Seed(s.seed, flip=.4), 256                     # few pairs, so that each is seen many times: a wrong label has to be learned by heart
        for name in ("dpo", "cdpo", "robust", "ipo"):
            add(f"noise-{n}-{name}-{s.seed}", lambda: noisy.row("noise", train_relative(s.lab.start, noisy.few(n), RelativeArgs(loss=name, epsilon=.4, seed=s.seed, **size)), flip=.4, pairs=n))
    lab = seeds[0].lab
    if SHARE["of"] == 1: write("dpo_family", rows, lab, tilted=tilted(lab), best_of_n=best(lab))

def picture(args):
    "The pictures of the README, from the shipped records"
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from alignlab.comparison import raced
    from alignlab.evaluation import use_style
    from alignlab.report import plot_gold
    from alignlab.training import read_record
    use_style()
    record = read_record("helpdesk/dpo"); runs = [r for r in record["runs"] if r["method"] == "dpo"]
    xy = lambda r: (r["report"]["kl"]["mean"], r["report"]["gold"]["mean"])
    fig, ax = plt.subplots(figsize=(7, 3.6), dpi=110, layout="constrained")
    for seed in sorted({r["seed"] for r in runs}): ax.plot(*zip(*(xy(r) for r in runs if r["seed"] == seed)), color="0.6", lw=.8, zorder=1)
    for beta in sorted({r["args"]["beta"] for r in runs}): ax.scatter(*zip(*(xy(r) for r in runs if r["args"]["beta"] == beta)), s=34, label=f"DPO, beta {beta}")
    ax.scatter(*zip(*(xy(r) for r in record["runs"] if r["method"] == "dpo-swapped")), marker="x", color="k", s=34, label="labels swapped")
    ax.plot([t["kl"] for t in record["tilted"]], [t["gold"] for t in record["tilted"]], "k--", lw=1, label="best attainable (estimated)")
    ax.axhline(record["runs"][0]["start"]["gold"]["mean"], color="k", lw=.7, ls=":"); ax.text(.25, record["runs"][0]["start"]["gold"]["mean"] + .02, "start", fontsize=8)
    ax.set(xscale="log", xlabel="KL from the start (nats per answer, log scale)", ylabel="gold reward (−1 to 1)"); ax.xaxis.set_major_formatter("{x:g}"); ax.legend(fontsize=8, loc="lower left")
    out = ROOT.parents[1] / "docs"; fig.savefig(out / "dpo.png")
    ax = plot_gold(raced(read_record("helpdesk/comparison")))
    ax.set_xlabel("gold reward, −1 to 1 (dashed: the start)"); ax.figure.savefig(out / "comparison.png", dpi=110)

def sentiment(args):
    from alignlab.dpo import DPOArgs, train_dpo
    lab, rows, bf16 = open_lab("sentiment"), [], torch.cuda.is_available()
    for seed in range(args.seeds):
        data = start = None
        for lr in (1e-5, 3e-5, 1e-4):
            def make():
                nonlocal data, start
                data = data or list(lab.preferences(args.pairs, seed)); start = start or lab.evaluate(lab.start, n=args.prompts, seed=seed).to_dict()
                run = train_dpo(lab.start, data, DPOArgs(steps=args.pairs // 8, batch_size=8, lr=lr, beta=.1, seed=seed, bf16=bf16))
                return run.row("dpo", start, lab.evaluate(run.policy, n=args.prompts, seed=seed).to_dict())
            rows.append(cell(f"sentiment-{lab.world}/{args.pairs}-{lr}-{seed}", make))
    if SHARE["of"] > 1: return
    prompts = lab.prompts("test", 32)
    pool = lab.start.sample(prompts, n=64, max_new_tokens=lab.max_new_tokens, seed=9)
    gold = lab.gold(pool.prompts, pool.text).view(len(prompts), -1)
    frontier = [dict(kl=t["kl"], gold=t["reward"].mean, samples=t["samples"], ess=t["ess"]) for t in tilted_optimum(gold, kl=[.1, .25, .5, 1, 1.5, 2])]
    write_record(ROOT / "sentiment" / "dpo.json", "sentiment", "dpo", rows, world=lab.world, start=content_hash(lab.start.model), budget="lesson", precision="bf16" if bf16 else "fp32", tilted=frontier,
                 best_of_n=[dict(n=b["n"], kl=b["kl"], gold=b["reward"].mean) for b in best_of_n(gold, [1, 2, 4, 8, 16])])

def pairs(args):
    from alignlab.dpo import DPOArgs, train_dpo
    lab = open_lab("pairs", data=args.data, eval_data=args.eval_data)
    steps, rows = args.pairs // 8, []
    for seed in range(args.seeds):
        def make():
            start = lab.evaluate(lab.start, n=args.prompts, seed=seed).to_dict()
            run = train_dpo(lab.start, lab.preferences(args.pairs, seed), DPOArgs(steps=steps, batch_size=8, micro_batch=2, lr=args.lr, beta=.1, max_length=512, seed=seed, bf16=torch.cuda.is_available()))
            return run.row("dpo", start, lab.evaluate(run.policy, n=args.prompts, seed=seed).to_dict())
        rows.append(cell(f"pairs-{lab.world}/{args.pairs}-{args.lr}-{seed}", make))
    write_record(ROOT / "pairs" / "dpo.json", "pairs", "dpo", rows, world=lab.world, start=content_hash(lab.start.model), budget="full", precision="bf16" if torch.cuda.is_available() else "fp32", data=Path(args.data).name)

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("record", choices=["dpo", "family", "sentiment", "pairs", "picture"]); p.add_argument("--seeds", type=int, default=5); p.add_argument("--share")
    p.add_argument("--data"); p.add_argument("--eval-data"); p.add_argument("--pairs", type=int, default=192); p.add_argument("--prompts", type=int, default=96); p.add_argument("--lr", type=float, default=1e-5)
    args = p.parse_args()
    if args.share: SHARE["mine"], SHARE["of"] = map(int, args.share.split("/")); torch.set_num_threads(1)
    {"dpo": dpo, "family": family, "sentiment": sentiment, "pairs": pairs, "picture": picture}[args.record](args)
