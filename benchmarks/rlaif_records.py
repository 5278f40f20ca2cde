"""Make the records of the chapters on judges and RLAIF.

    python benchmarks/rlaif_records.py judges                          micro and small judges by the recipe, kept under runs/ (half an hour)
    python benchmarks/rlaif_records.py helpdesk [--seeds 5] [--share i/n]
    python benchmarks/rlaif_records.py real --data DIR [--n 32]        SmolLM2-135M and recorded verdicts on human-labelled pairs

DIR holds llmbar/{Natural,MT-Bench,Neighbor} as published, pandalm/pairs.jsonl.gz and hh_harmless/test.jsonl.gz.
Runs are kept under runs/records as in records.py, and shared out in the same way.
"""
import argparse
import gzip
import json
import random
from functools import cache
from pathlib import Path

import torch
from records import DONE, ROOT, SHARE, Seed, cell, write

from alignlab.dpo import DPOArgs
from alignlab.evaluation import length_controlled
from alignlab.helpdesk import Annotator
from alignlab.judges import GoldJudge, RandomJudge, helpdesk_judge, label_quality, reliability
from alignlab.models import load_policy
from alignlab.preferences import load_preferences
from alignlab.real_judges import LikelihoodJudge, load_llmbar, text_judge
from alignlab.reward_model import RewardArgs
from alignlab.rlaif import SoftDPOObjective, direct_reward, fit_scale, rescale, train_rlaif
from alignlab.rlhf import PPOArgs, train_rlhf
from alignlab.sft import build_checkpoints
from alignlab.training import cached_rows, content_hash, fit, write_record

BETA, LABELS, CALIBRATE = .5, (128, 512, 2048), 256      # of DPO: where the record of its chapter is steadiest; pairs; annotators' labels to fit a scale to
SIZES = "micro", "small", "base"
seed_of = cache(Seed)

@cache
def judge_model(size): return load_policy("helpdesk-sft" if size == "base" else DONE / seed_of(0).lab.world / "judges" / f"{size}-0.65-0" / "sft" / "policy")

def judges(args):
    for size in SIZES[:2]: build_checkpoints(DONE / seed_of(0).lab.world / "judges" / f"{size}-0.65-0", size=size, first_better=.65)

@cache
def verdicts(seed, size):
    "The pairs of a seed with a judge's P for the answer that annotators chose, shown first and shown second"
    s = seed_of(seed)
    def make():
        j, q = helpdesk_judge(judge_model(size)), [[r[k] for r in s.pairs] for k in ("prompt", "chosen", "rejected")]
        return [dict(prompt=x, chosen=a, rejected=b, first=p, second=o) for x, a, b, p, o in zip(*q, j.prefer(*q).tolist(), j.prefer(q[0], q[2], q[1]).tolist())]
    return cached_rows(DONE / s.lab.world / f"verdicts-{size}-{seed}.jsonl", make)

def labelled(seed, kind, n):
    "The same pairs with another's labels; kind: annotators, ai, soft, calibrated, one_order, random, micro, small, long"
    s = seed_of(seed); pairs = s.pairs[:n]
    if kind == "annotators": return [dict(prompt=r["prompt"], chosen=r["chosen"], rejected=r["rejected"]) for r in pairs]
    if kind == "long": p = Annotator(seed=seed, length_bias=.05).label(*([r[k] for r in pairs] for k in ("prompt", "chosen", "rejected")), seed=seed).float()
    elif kind == "random": coin = random.Random(seed); p = torch.tensor([coin.random() for _ in pairs])
    else:
        v = verdicts(seed, kind if kind in SIZES else "base")
        first, second = (torch.tensor([r[k] for r in v]) for k in ("first", "second"))
        p = .5 + (first - second) / 2
        if kind == "one_order": turned = torch.rand(len(p), generator=torch.Generator().manual_seed(seed)) < .5; p = torch.where(turned, 1 - second, first)   # shown in random order
        if kind == "calibrated":
            flip = torch.rand(CALIBRATE, generator=torch.Generator().manual_seed(seed)) < .5
            p = rescale(p, fit_scale(torch.where(flip, 1 - p[:CALIBRATE], p[:CALIBRATE]), (~flip).float()))     # the annotators' own answer is `chosen`
        p = p[:n]
    keep = p != .5
    out = [dict(prompt=r["prompt"], chosen=r["chosen"] if q > .5 else r["rejected"], rejected=r["rejected"] if q > .5 else r["chosen"], p_chosen=max(q, 1 - q)) for r, q, k in zip(pairs, p.tolist(), keep) if k]
    return out if kind in ("soft", "calibrated") else [{k: v for k, v in r.items() if k != "p_chosen"} for r in out]

def agreement(lab, rows):
    "Share of labels that gold agrees with; pairs equal in gold are left out"
    d = lab.gold([r["prompt"] for r in rows], [r["chosen"] for r in rows]) - lab.gold([r["prompt"] for r in rows], [r["rejected"] for r in rows])
    return (d > 0)[d != 0].float().mean().item()

def by_length(s, policy, n=512):
    "Win rates against the start by a judge that likes length, by the same without that liking, and the first at equal length"
    prompts = s.lab.prompts("test", n, s.seed + 1000)
    ours, theirs = (p.sample(prompts, max_new_tokens=s.lab.max_new_tokens, seed=s.seed + 7) for p in (policy, s.lab.start))
    win = Annotator(seed=s.seed, length_bias=.05).prefer(prompts, ours.text, theirs.text)
    difference = (ours.lengths - theirs.lengths).float()
    return dict(biased=win.mean().item(), controlled=length_controlled(win, difference).mean, fair=Annotator(seed=s.seed).prefer(prompts, ours.text, theirs.text).mean().item(), longer=difference.mean().item())

def quality(seed, size, n=512):
    "A judge's label quality on held-out pairs, and its calibration curve"
    s = seed_of(seed); rows = list(s.lab.preferences(n, seed + 1000, split="test"))
    coin = random.Random(seed); q = [[], [], []]
    for r in rows:
        for column, v in zip(q, (r["prompt"], *((r["chosen"], r["rejected"]) if coin.random() < .5 else (r["rejected"], r["chosen"])))): column.append(v)
    truth = GoldJudge(s.lab.gold).prefer(*q)
    who = {"annotators": s.lab.annotator} if size == "annotators" else {"judge": RandomJudge(seed) if size == "random" else helpdesk_judge(judge_model(size))}
    found = label_quality(who, *q, truth); name = next(iter(who))
    p, want = found.verdicts[name + ", both orders"]
    if size == "annotators":                                    # single draws are what one buys from people
        clear = truth != .5; label = s.lab.annotator.label(*q, seed=seed).float()
        drawn = (label == truth)[clear].float().mean().item()
    else: drawn = found[name + ", both orders"]["agreement"]
    same = None
    if size != "annotators": v = found.verdicts[name][0]; half = len(v) // 2; same = ((v[:half] > .5) == (v[half:] > .5)).float().mean().item()
    return dict(method="judge", seed=seed, size=size, args={}, costs=dict(seconds=0), start={}, report={}, history=[], quality=dict(one=found[name], both=found[name + ", both orders"], longest=found["longest wins"], drawn=drawn, same_position=same,
                parameters=None if size in ("annotators", "random") else sum(t.numel() for t in judge_model(size).model.parameters()), pairs=found.pairs, curve=reliability(p, want).tolist()))

def helpdesk(args):
    rows, all_seeds, few = [], range(args.seeds), range(min(3, args.seeds))
    lab = seed_of(0).lab
    def add(name, make): rows.append(cell(f"{lab.world}/rlaif-{name}", make))
    def dpo(seed, kind, n=2048):
        def make():
            s, data = seed_of(seed), labelled(seed, kind, n)
            a = DPOArgs(beta=BETA, steps=s.B.steps, batch_size=s.B.batch_size, seed=seed)
            run = fit(s.lab.policy(), data, SoftDPOObjective(BETA), a)          # without p_chosen this is DPO
            more = dict(by_length=by_length(s, run.policy)) if n == 2048 and seed in few and kind in ("annotators", "ai", "long") else {}
            return s.row("dpo", run) | dict(kind=kind, n=n, agreement=agreement(s.lab, data), **more)
        add(f"dpo-{kind}-{n}-{seed}", make)
    def ppo(seed, kind, **a):
        def make():
            s = seed_of(seed)
            if kind == "soft":
                run = train_rlhf(s.lab.start, labelled(seed, "soft", 2048), PPOArgs(seed=seed), None, RewardArgs(steps=64, batch_size=32, lr=1e-3, seed=seed), s.lab.gold)
            else:
                texts = []
                reward = direct_reward(s.lab.start)
                def watch(p, c, ended): texts.append([dict(prompt=x, completion=y) for x, y in zip(p[:3], c[:3])]); return s.lab.gold(p, c, ended)
                run = train_rlaif(s.lab.start, [dict(prompt=r["prompt"]) for r in s.pairs], PPOArgs(seed=seed, batch_size=64, minibatches=2, **a), reward, watch=watch)
                return s.row("ppo", run) | dict(kind=kind, texts={i: texts[i] for i in (0, len(texts) // 2, len(texts) - 1)})
            return s.row("ppo", run) | dict(kind=kind)
        add(f"ppo-{kind}-{seed}", make)
    for s in all_seeds:
        for n in reversed(LABELS):
            for kind in ("annotators", "ai"): dpo(s, kind, n)
        ppo(s, "soft")
    for s in few:
        ppo(s, "direct")
        for kind in ("soft", "calibrated", "one_order", "random", "long", "micro", "small"): dpo(s, kind)
        for size in (*SIZES, "random", "annotators"): add(f"quality-{size}-{s}", lambda: quality(s, size))
    for s in few: ppo(s, "rubric", beta=0., steps=60)
    write("rlaif", rows, lab, labels_to_calibrate=CALIBRATE)

# --- real text
def _jsonl(path):
    with gzip.open(path, "rt", encoding="utf-8") as f: return [json.loads(line) for line in f]

def pandalm(folder):
    "Pairs of PandaLM, the share of its three annotators for the first answer, and how far these agree among themselves"
    rows = [r for r in _jsonl(folder / "pandalm" / "pairs.jsonl.gz")]
    votes = torch.tensor([[r[f"annotator{k}"] for k in (1, 2, 3)] for r in rows])
    said = torch.where(votes == 0, .5, (votes == 1).float())
    def kappa(a, b):
        levels = torch.tensor([0., .5, 1.]); share = lambda v: (v[:, None] == levels).float().mean(0)
        chance = (share(a) * share(b)).sum(); return (((a == b).float().mean() - chance) / (1 - chance)).item()
    pairs = [(0, 1), (0, 2), (1, 2)]
    among = dict(same=sum((said[:, a] == said[:, b]).float().mean().item() for a, b in pairs) / 3, kappa=sum(kappa(said[:, a], said[:, b]) for a, b in pairs) / 3, pairs=len(rows))
    prompts = [r["instruction"] + ("\n\n" + r["input"] if r["input"] else "") for r in rows]
    return (prompts, [str(r["response1"]) for r in rows], [str(r["response2"]) for r in rows], said.mean(1)), among

def oasst(folder):
    "Best and second-best reply to the first message of each tree, the second place told by the people who ranked"
    rows = []
    for t in _jsonl(folder / "oasst" / "en_trees.jsonl.gz"):
        ranked = sorted((r for r in t["prompt"]["replies"] if r.get("rank") is not None), key=lambda r: r["rank"])
        if len(ranked) > 1: rows.append((t["prompt"]["text"], ranked[0]["text"], ranked[-1]["text"]))
    return (*map(list, zip(*rows)), torch.ones(len(rows)))

def real_pairs(folder):
    "name -> (prompts, first, second, truth), and recorded judges where there are some"
    hh = load_preferences(str(folder / "hh_harmless" / "test.jsonl.gz"))
    found = {"HH harmless": ((hh["prompt"][:], hh["chosen"][:], hh["rejected"][:], torch.ones(len(hh))), {}), "OASST": (oasst(folder), {}), "PandaLM": (pandalm(folder)[0], {})}
    return found | {f"LLMBar {k}": load_llmbar(folder / "llmbar" / k) for k in ("Natural", "MT-Bench", "Neighbor")}

def some(columns, n, longest=1200):
    "n pairs drawn by a fixed seed, the better answer first in half of them; none so long that a small model could not read it"
    def size(t): return len(t) if isinstance(t, str) else sum(len(m["content"]) for m in t)
    prompts, first, second, truth = columns
    rows = [i for i in range(len(prompts)) if truth[i] != .5 and size(prompts[i]) + size(first[i]) + size(second[i]) < longest]
    rows = random.Random(0).sample(rows, min(n, len(rows)))
    turned = [random.Random(f"turn{i}").random() < .5 for i in rows]
    return ([prompts[i] for i in rows], [(second if t else first)[i] for i, t in zip(rows, turned)], [(first if t else second)[i] for i, t in zip(rows, turned)],
            torch.tensor([1 - truth[i].item() if t else truth[i].item() for i, t in zip(rows, turned)]))

def real(args):
    rows, folder = [], Path(args.data)
    def add(data, who, pairs, judge):
        def make():
            found = label_quality({"judge": judge()}, *pairs)
            return dict(method="judge", seed=0, data=data, who=who, args={}, costs=dict(seconds=0), start={}, report={}, history=[], quality=dict(one=found["judge"], both=found["judge, both orders"], longest=found["longest wins"], pairs=found.pairs))
        rows.append(cell(f"real-judges-{args.n}/{data}-{who}".replace(" ", "_"), make))
    policy = cache(lambda: load_policy("smollm2-135m"))
    for data, (columns, recorded) in real_pairs(folder).items():
        for name, judge in recorded.items(): add(data, name, columns, lambda: judge)
        pairs = some(columns, args.n)
        add(data, "SmolLM2-135M, verdict", pairs, lambda: text_judge(policy()))
        add(data, "SmolLM2-135M, likelihood", pairs, lambda: LikelihoodJudge(policy()))
        others = pairs[2][1:] + pairs[2][:1]                     # the easiest question: an answer to this request, or to another
        add(data + ", mismatched", "SmolLM2-135M, likelihood", (pairs[0], pairs[1], others, torch.ones(len(others))), lambda: LikelihoodJudge(policy()))
    if SHARE["of"] == 1: write_record(ROOT / "pairs" / "judges.json", "pairs", "judges", rows, world=content_hash([dict(n=args.n)])[:12], start=content_hash(policy().model), budget="full", people=pandalm(folder)[1])

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("record", choices=["judges", "helpdesk", "real"]); p.add_argument("--seeds", type=int, default=5); p.add_argument("--share")
    p.add_argument("--data"); p.add_argument("--n", type=int, default=32)
    args = p.parse_args()
    if args.share: SHARE["mine"], SHARE["of"] = map(int, args.share.split("/")); torch.set_num_threads(1)
    {"judges": judges, "helpdesk": helpdesk, "real": real}[args.record](args)
