"""Make the shipped records: the figures with seeds that chapters show.

    python benchmarks/records.py dpo   [--seeds 3]                 helpdesk: beta sweep and swapped labels
    python benchmarks/records.py picture                           docs/dpo.png from the record
    python benchmarks/records.py pairs --data F [--eval-data F] [--pairs N]   SmolLM2-135M-Instruct on a file of human preferences

Each run is kept under runs/records as it ends, so an interrupted call goes on where it was.
"""
import argparse
import json
from pathlib import Path

from alignlab.evaluation import tilted_optimum
from alignlab.helpdesk import make_prompts
from alignlab.labs import open_lab
from alignlab.training import budget, content_hash, write_record

ROOT, DONE = Path(__file__).parents[1] / "alignlab" / "records", Path("runs/records")

def cell(name, make):
    "The row of one run: made once"
    path = DONE / f"{name}.json"
    if not path.exists():
        row = make(); path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part"); part.write_text(json.dumps(row)); part.replace(path)
    row = json.loads(path.read_text())
    print(name, {k: (round(row["start"][k]["mean"], 3), round(row["report"][k]["mean"], 3)) for k in ("gold", "kl", "preference_accuracy", "ranking_accuracy") if k in row["report"]},
          f"{row['costs']['seconds']:.0f} s", flush=True)
    return row

def tilted(lab):
    "Gold and KL of the best policy at each budget, estimated from samples of the start"
    prompts = make_prompts("test", 96, seed=1000)
    pool = lab.start.sample(prompts, n=256, max_new_tokens=lab.max_new_tokens, seed=9)
    gold = lab.gold(pool.prompts, pool.text, pool.ended.tolist()).view(len(prompts), -1)
    return [dict(kl=t["kl"], gold=t["reward"].mean, samples=t["samples"], ess=t["ess"]) for t in tilted_optimum(gold, kl=[.25, .5, 1, 1.5, 2, 2.5, 3])]

def dpo(args):
    from alignlab.dpo import DPOArgs, train_dpo
    from alignlab.helpdesk import Annotator
    B, rows = budget("lesson"), []
    for seed in range(args.seeds):
        lab = open_lab("helpdesk", annotator=Annotator(seed=seed)); start = pairs = None
        for method, beta in [*(("dpo", b) for b in (.03, .1, .5)), ("dpo-swapped", .1)]:
            def make():
                nonlocal start, pairs
                pairs = pairs or list(lab.preferences(B.pairs, seed)); start = start or lab.evaluate(lab.start, n=B.prompts, seed=seed, skills=False).to_dict()
                data = pairs if method == "dpo" else [dict(prompt=r["prompt"], chosen=r["rejected"], rejected=r["chosen"]) for r in pairs]
                run = train_dpo(lab.start, data, DPOArgs(steps=B.steps, batch_size=B.batch_size, beta=beta, seed=seed))
                return run.row(method, start, lab.evaluate(run.policy, n=B.prompts, seed=seed, skills=method == "dpo" and beta == .1).to_dict())
            rows.append(cell(f"dpo/{method}-{beta}-{seed}", make))
    write_record(ROOT / "helpdesk" / "dpo.json", "helpdesk", "dpo", rows, world=lab.world, start=content_hash(lab.start.model), budget="lesson", tilted=tilted(lab))

def picture(args):
    "docs/dpo.png, the picture of the README, from the shipped record"
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from alignlab.evaluation import use_style
    from alignlab.training import read_record
    use_style()
    record = read_record("helpdesk/dpo"); runs = [r for r in record["runs"] if r["method"] == "dpo"]
    xy = lambda r: (r["report"]["kl"]["mean"], r["report"]["gold"]["mean"])
    fig, ax = plt.subplots(figsize=(7, 3.6), dpi=110)
    for seed in sorted({r["seed"] for r in runs}): ax.plot(*zip(*(xy(r) for r in runs if r["seed"] == seed)), color="0.6", lw=.8, zorder=1)
    for beta in sorted({r["args"]["beta"] for r in runs}): ax.scatter(*zip(*(xy(r) for r in runs if r["args"]["beta"] == beta)), s=34, label=f"DPO, beta {beta}")
    ax.scatter(*zip(*(xy(r) for r in record["runs"] if r["method"] == "dpo-swapped")), marker="x", color="k", s=34, label="labels swapped")
    ax.plot([t["kl"] for t in record["tilted"]], [t["gold"] for t in record["tilted"]], "k--", lw=1, label="best attainable (estimated)")
    ax.axhline(record["runs"][0]["start"]["gold"]["mean"], color="k", lw=.7, ls=":"); ax.text(0, record["runs"][0]["start"]["gold"]["mean"] + .02, "start", fontsize=8)
    ax.set(xlabel="KL from the start (nats per answer)", ylabel="gold reward (−1 to 1)"); ax.legend(fontsize=8)
    out = ROOT.parents[1] / "docs" / "dpo.png"; out.parent.mkdir(exist_ok=True); fig.savefig(out)

def pairs(args):
    import torch
    from alignlab.dpo import DPOArgs, train_dpo
    lab = open_lab("pairs", data=args.data, eval_data=args.eval_data)
    steps, rows = args.pairs // 8, []
    for seed in range(args.seeds):
        def make():
            start = lab.evaluate(lab.start, n=args.pairs, seed=seed).to_dict()
            run = train_dpo(lab.start, lab.preferences(args.pairs, seed), DPOArgs(steps=steps, batch_size=8, micro_batch=2, lr=args.lr, beta=.1, max_length=512, seed=seed, bf16=torch.cuda.is_available()))
            return run.row("dpo", start, lab.evaluate(run.policy, n=args.pairs, seed=seed).to_dict())
        rows.append(cell(f"pairs/{args.pairs}-{args.lr}-{seed}", make))
    write_record(ROOT / "pairs" / "dpo.json", "pairs", "dpo", rows, world=lab.world, start=content_hash(lab.start.model), budget="full", precision="bf16" if torch.cuda.is_available() else "fp32", data=Path(args.data).name)

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("record", choices=["dpo", "pairs", "picture"]); p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--data"); p.add_argument("--eval-data"); p.add_argument("--pairs", type=int, default=192); p.add_argument("--lr", type=float, default=1e-5)
    args = p.parse_args()
    {"dpo": dpo, "pairs": pairs, "picture": picture}[args.record](args)
