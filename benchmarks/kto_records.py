"""Make the record of the chapter on KTO.

    python benchmarks/kto_records.py tune [--share i/n]             first: the learning rates
    python benchmarks/kto_records.py helpdesk [--seeds 5] [--share i/n]

weights: thumbs up for each down, and the ratio of the weights. noise: KTO and DPO on the same labels, some of them flipped, each with the
learning rate that won most of five at that share of flips. reference: with ẑ, without it, and with the matched pairs' mean, where ẑ is off and where it is on.
Runs are kept under runs/records as in records.py, and shared out in the same way.
"""
import argparse
import random
from dataclasses import replace
from functools import cache, cached_property

import records
import torch
import torch.nn.functional as F
from datasets import Dataset
from records import DONE, SHARE, cell

from alignlab.dpo import DPOArgs, train_dpo
from alignlab.helpdesk import demonstrations
from alignlab.kto import KTOArgs, KTOObjective, _log_probs, balanced_weights, train_kto
from alignlab.preferences import pairs_to_binary
from alignlab.training import cached_rows, fit, read_record

POOL, SIDE = 2400, 800                                # thumbs asked for; kept of the more frequent side
SIZE = dict(steps=64, batch_size=64)                  # a batch of thumbs; or of pairs, which hold twice as many
FLIPS, LRS, TUNED_ON = (0., .2, .4), (3e-5, 1e-4, 2e-4, 3e-4, 1e-3), 100

class Seed(records.Seed):
    "What a seed fixes, and a pool of thumbs"
    @cached_property
    def pool(self): return cached_rows(DONE / self.lab.world / f"thumbs-{self.seed}.jsonl", lambda: list(self.lab.thumbs(POOL, self.seed)))
    def thumbs(self, up, down):
        "Thumbs of the pool, so many of each side"
        sides = [[r for r in self.pool if r["label"] == side][:n] for side, n in ((True, up), (False, down))]
        if [*map(len, sides)] != [up, down]: raise ValueError(f"seed {self.seed}: {POOL} thumbs hold {[*map(len, sides)]} up and down, not {[up, down]}")
        return random.Random(self.seed).sample(sum(sides, []), up + down)

@cache
def seed_of(seed, flip=0.): return Seed(seed, flip=flip) if flip else Seed(seed)

def many(up_for_down):
    "How many of each side, at so many thumbs up for each one down"
    return (SIDE, round(SIDE / up_for_down)) if up_for_down > 1 else (round(SIDE * up_for_down), SIDE)

class Matched(KTOObjective):
    "The bug: the reference point from the batch's own pairs"
    def batches(self, policy, rows):
        own = (_log_probs(policy, rows) - torch.tensor([r["ref_logp"] for r in rows])).mean().item()
        return [[dict(r, kl=own) for r in rows]]

class LogSigmoid(KTOObjective):
    "The paper's ablation: DPO's logarithm around the same value, so that a row far below the reference point is not given up"
    def loss(self, policy, batch):
        losses, metrics = super().loss(policy, batch)
        a = self.args; weight = torch.where(batch["label"], a.desirable_weight, a.undesirable_weight)
        return -weight * F.logsigmoid(torch.logit((1 - losses / weight).clamp(1e-6, 1 - 1e-6))), metrics

OBJECTIVES = dict(matched=Matched, log_sigmoid=LogSigmoid)

def run_of(s, rows, args, kind="kto"):
    if kind in OBJECTIVES: return fit(s.lab.policy(), rows, OBJECTIVES[kind](args), args)
    return train_kto(s.lab.start, rows, replace(args, loss=kind))

def row(s, run, condition, **more):
    done = s.row("kto", run, n=256)
    kl = [float(f"{h['kl']:.4g}") for h in run.history] if "kl" in run.history[0] else None
    return done | dict(condition=condition, z=kl, **more)

def on_thumbs(s, up_for_down, weights, kind="kto", scale=1., **more):
    "A run on thumbs of one imbalance at the picked rate; `weights` is a ratio λ_D n_D / λ_U n_U, or the pair of weights"
    rows = s.thumbs(*many(up_for_down))
    d, u = weights if isinstance(weights, tuple) else balanced_weights([r["label"] for r in rows], weights)
    return run_of(s, rows, KTOArgs(**SIZE | dict(seed=s.seed, lr=picked()["kto", .2], desirable_weight=d * scale, undesirable_weight=u * scale) | more), kind)

def weighted(s, up_for_down, weights, condition="weights", kind="kto", scale=1., **more):
    run = on_thumbs(s, up_for_down, weights, kind, scale, **more)
    up, down = many(up_for_down)
    return row(s, run, condition, up_for_down=up_for_down, kind=kind, scale=scale, ratio=run.args.desirable_weight * up / (run.args.undesirable_weight * down))

def on_authors(s, kind):
    "Thumbs on answers of others: of a good author, of a flawed one and of a plain one"
    said = [r for k, (style, n) in enumerate((("good", SIDE), ("flawed", SIDE), ("decent", SIDE // 2))) for r in demonstrations(n, 1000 * (k + 1) + s.seed, style)]
    up = s.lab.annotator.thumbs([r["prompt"] for r in said], [r["completion"] for r in said], seed=s.seed).tolist()
    run = run_of(s, [dict(r, label=l) for r, l in zip(said, up)], KTOArgs(seed=s.seed, lr=picked()["kto", .2], **SIZE), kind)
    return row(s, run, "authors", kind=kind, ups=sum(up) / len(up))

def one_side(s, up):
    rows = s.thumbs(SIDE, 0) if up else s.thumbs(0, SIDE)
    return row(s, run_of(s, rows, KTOArgs(seed=s.seed, lr=picked()["kto", .2], **SIZE)), "one side", up=up)

def same_labels(s, method, lr, pairs=None):
    "KTO and DPO, as many steps on the same labels: the thumbs of a batch are both sides of as many pairs"
    data = s.pairs[:pairs]
    if method == "dpo": return train_dpo(s.lab.start, data, DPOArgs(seed=s.seed, lr=lr, **SIZE))
    return train_kto(s.lab.start, pairs_to_binary(Dataset.from_list(data)), KTOArgs(**SIZE | dict(seed=s.seed, lr=lr, batch_size=2 * SIZE["batch_size"])))

def trial(method, flip, lr):
    s = seed_of(TUNED_ON, flip); run = same_labels(s, method, lr)
    return row(s, run, "trial", method=method, flip=flip, lr=lr, validation=s.validate(run.policy))

def trials():
    "{(method, flip): runs}, one for each learning rate; made by `tune`"
    world = seed_of(TUNED_ON).lab.world
    return {(m, flip): [cell(f"{world}/kto-trial-{flip}-{m}-{lr}", lambda: trial(m, flip, lr)) for lr in LRS] for m in ("kto", "dpo") for flip in FLIPS}

@cache
def picked():
    "{(method, flip): learning rate} that won most; thumbs take KTO's at a fifth flipped, for their annotators disagree, too"
    return {k: max(t, key=lambda r: r["validation"]["win_rate"])["lr"] for k, t in trials().items()}

def samples(s):
    "Answers to the same prompts after the same thumbs, under two pairs of weights: the chapter opens with them"
    prompts = s.lab.prompts("test", 4, seed=5)
    runs = {name: on_thumbs(s, 1 / 10, weights) for name, weights in (("weights of 1", (1., 1.)), ("the rule, 3/2", 1.5))}
    said = {name: p.generate(prompts, max_new_tokens=s.lab.max_new_tokens, seed=1) for name, p in (("start", s.lab.start), *((k, r.policy) for k, r in runs.items()))}
    return runs["the rule, 3/2"].row("kto", {}, {}, keep=2) | dict(condition="samples", prompts=prompts, said=said)

def helpdesk(args):
    rows, every, few = [], range(args.seeds), range(min(3, args.seeds))
    world, lr = seed_of(0).lab.world, picked()        # first of all, so that every process counts the cells alike
    def add(name, make):                              # seeds innermost: so shares are of equal cost
        found = cell(f"{world}/kto-{name}", make)
        if found: rows.append(found)
    for up_for_down, ratios in ((1 / 10, (1 / 20, 1 / 10, 1., 1.5)), (1, (1 / 2, 1., 1.5)), (1 / 3, (1 / 3, 1., 1.5)), (10, (10., 1., 1.5))):
        for ratio in ratios:                          # the card's weights of 1 and 2, weights of 1, and both ends of the paper's rule
            for seed in every: add(f"weights-{up_for_down:.3g}-{ratio:.3g}-{seed}", lambda: weighted(seed_of(seed), up_for_down, ratio))
    for pairs, flips, seeds in ((None, FLIPS, every), (256, (0., .4), few)):     # few pairs: each is seen many times
        for flip in flips:
            for method in ("kto", "dpo"):
                rate = lr[method, flip]
                for seed in seeds:
                    def made(): s = seed_of(seed, flip); return row(s, same_labels(s, method, rate, pairs), "noise", method=method, flip=flip, pairs=pairs or len(s.pairs))
                    add(f"noise-{pairs}-{flip}-{method}-{rate}-{seed}", made)
    for rate in (1e-4, 3e-4):                         # is the effect one of the learning rate?
        for ratio in (1 / 10, 1.):
            for seed in every: add(f"rate-{rate}-{ratio:.3g}-{seed}", lambda: weighted(seed_of(seed), 1 / 10, ratio, "rate", lr=rate))
    for kind in ("kto", "apo_zero", "matched"):       # where the reference point is on, and where it is off
        for seed in every: add(f"authors-{kind}-{seed}", lambda: on_authors(seed_of(seed), kind))
        for seed in few if kind != "kto" else (): add(f"off-{kind}-{seed}", lambda: weighted(seed_of(seed), 1, (1., 1.), "reference", kind))
    for seed in few: add(f"scale-{seed}", lambda: weighted(seed_of(seed), 1 / 10, 1., "scale", scale=10.))
    for seed in few: add(f"log-sigmoid-{seed}", lambda: weighted(seed_of(seed), 1, (1., 1.), "log-sigmoid", "log_sigmoid"))
    for weights in ((1., 1.), 1.):                    # a larger beta: a row is done with sooner
        for seed in few: add(f"beta-{weights}-{seed}", lambda: weighted(seed_of(seed), 1 / 10, weights, "beta", beta=.5))
    for up in (True, False):
        for seed in few: add(f"one-side-{up}-{seed}", lambda: one_side(seed_of(seed), up))
    for up_for_down in (1 / 10, 1):
        for ratio in (3., 10.):
            for seed in few: add(f"weights-{up_for_down:.3g}-{ratio:.3g}-{seed}", lambda: weighted(seed_of(seed), up_for_down, ratio))
    add("samples", lambda: samples(seed_of(0)))
    def lean(r): return {k: v[::len(v) - 1] if k == "history" else v for k, v in r.items() if k != "z" or r["condition"] in ("weights", "authors")}      # of the rest nobody draws a curve
    if SHARE["of"] == 1: records.write("kto", list(map(lean, rows + sum(trials().values(), []))), seed_of(0).lab, lr={f"{m} {flip}": v for (m, flip), v in lr.items()}, tilted=read_record("helpdesk/dpo")["tilted"])

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("record", choices=["tune", "helpdesk"]); p.add_argument("--seeds", type=int, default=5); p.add_argument("--share")
    args = p.parse_args()
    if args.share: SHARE["mine"], SHARE["of"] = map(int, args.share.split("/")); torch.set_num_threads(1)
    trials() if args.record == "tune" else helpdesk(args)
