"""Make the record of the chapter on SPIN.

    python benchmarks/spin_records.py tune     [--share i/n]     twelve random trials a method and start, on a seed of their own
    python benchmarks/spin_records.py helpdesk [--seeds 5] [--share i/n]
    python benchmarks/spin_records.py real     [--seeds 5] [--labs sentiment,constraints] [--share i/n]     SmolLM2-135M, a program as truth

Runs are kept under runs/records as in records.py, and shared out in the same way; `helpdesk` needs the trials. With two processes, `tune`
takes twenty minutes and `helpdesk` an hour. `real` is for a GPU; shipped are 4 seeds of sentiment and 1 of constraints.
"""
import argparse
import math
import random
from functools import cache

import records
import torch
from records import SHARE, cell

from alignlab.dpo import DPOArgs, DPOObjective, train_dpo
from alignlab.evaluation import evaluate
from alignlab.helpdesk import attributes, demonstrations, make_prompts, parse, respond
from alignlab.labs import open_lab
from alignlab.sft import SFTArgs, train_sft
from alignlab.spin import SPINArgs, nats_from_data, self_play_pairs, told_apart, train_spin
from alignlab.training import Run, content_hash, fit, write_record

N, ROUNDS, STEPS, BATCH = 512, 3, 32, 32              # demonstrations; rounds; steps and pairs of a round
FITS = 0, 64, 256                                     # steps of fine-tuning on the same demonstrations before the game: none, about right, too many
TRIALS, TUNED_ON = 12, 100
TUNED_AT = {0: 0, 64: 64, 256: 64}                    # the settings of a start were picked at this one

class Seed(records.Seed):
    "What a seed fixes: demonstrations, held-out ones, prompts to measure on"
    def __init__(self, seed, style="good"):
        super().__init__(seed)
        self.style, self.demos, self.unseen = style, demonstrations(N, seed, style), demonstrations(256, 9000 + seed, style, "test")
        p, c = ([len(ids(r[k])) for r in self.demos] for ids, k in ((self.lab.start.prompt_ids, "prompt"), (self.lab.start.completion_ids, "completion")))
        self.sft_steps = round(STEPS * (sum(p) + 2 * sum(c)) / (sum(p) + sum(c)))      # that read as many tokens as STEPS of pairs
    @cache
    def fitted(self, steps): return train_sft(self.lab.start, self.demos, SFTArgs(steps=steps, batch_size=BATCH, seed=self.seed)).policy if steps else self.lab.start
    def measure(self, policy):
        "Means on 256 held-out prompts, an answer each; and nats from the author on 256 held-out demonstrations"
        r = evaluate(policy, make_prompts("test", 256, 1000 + self.seed), reference=self.lab.start, measure=attributes, max_new_tokens=self.lab.max_new_tokens, seed=self.seed)
        return dict(gold=r["gold"].mean, kl=r["kl"].mean, length=r["length"].mean, end_rate=r["end_rate"].mean, bigrams=r["diversity"]["bigrams"].mean, broken=sum(parse(x["prompt"], x["completion"], x["ended"]) is None for x in r.samples) / len(r.samples),
                    nats=nats_from_data(policy, self.unseen, self.style).mean().item(), attributes={k: v.mean for k, v in r["attributes"].items()})

seed_of = cache(Seed)

# --- one game, and what is done instead of it
def swapped(p): return dict(p, chosen=p["rejected"], rejected=p["chosen"])

def game(s, start, args, kind="spin", measure=None):
    "SPIN, or one of its variants: what each round measured, and the run"
    look = measure or s.measure; seen, now, previous, runs = [look(start)], start, [], []
    for k in range(1, args.rounds + 1):
        here = args.of_round(k)
        pairs = self_play_pairs(now, s.demos, here.seed, temperature=0. if kind == "greedy" else 1.)
        if kind == "cut": pairs = [dict(p, rejected=now.tokenizer.decode(now.completion_ids(p["rejected"], ended=False)[:24])) for p in pairs]     # as if they had ended there
        if kind == "inverted": pairs = list(map(swapped, pairs))
        run = train_dpo(now, pairs + previous, here, reference=start if kind == "old reference" else None)
        h = run.history
        run.tokens_generated = sum(len(now.completion_ids(p["chosen" if kind == "inverted" else "rejected"])) for p in pairs)
        told = None if measure else told_apart(run.policy, now, self_play_pairs(now, s.unseen[:128], here.seed)).mean
        now, previous = run.policy, pairs if args.mix else []
        runs.append(run); seen.append(dict(look(now), told=told, first_loss=h[0]["loss"], last_loss=h[-1]["loss"], chosen=h[-1]["logps/chosen"]))
    return seen, whole(runs, args)

def whole(runs, args):
    total = lambda name: sum(getattr(r, name) for r in runs)
    return Run(runs[-1].policy, runs[-1].history, args, total("seconds"), total("tokens_trained"), total("tokens_generated"), models_in_memory=runs[-1].models_in_memory)

def more_sft(s, start, lr, measure=None):
    "Fine-tuning on the same demonstrations for about as many tokens, in as many pieces, each with a schedule of its own"
    look = measure or s.measure; seen, now, runs = [look(start)], start, []
    for k in range(1, ROUNDS + 1):
        runs.append(train_sft(now, s.demos, SFTArgs(steps=s.sft_steps, batch_size=BATCH, lr=lr, seed=s.seed * 1000 + k)))
        now = runs[-1].policy; seen.append(look(now))
    return seen, whole(runs, runs[-1].args)

def one_round(s, start, args):
    "All steps in one round, on the first round's pairs: more epochs instead of new answers"
    seen, pairs = [s.measure(start)], self_play_pairs(start, s.demos, args.of_round(1).seed)
    long, policy = DPOArgs(steps=STEPS * ROUNDS, batch_size=BATCH, lr=args.lr, beta=args.beta, seed=s.seed), start.copy()
    run = fit(policy, pairs, DPOObjective(args.beta), long, on_step=lambda row: seen.append(s.measure(policy)) if row["step"] % STEPS == 0 else None)
    run.tokens_generated = sum(len(start.completion_ids(p["rejected"])) for p in pairs)
    return seen, run

def row(s, condition, made, **more):
    seen, run = made
    return run.row("spin", None, None, keep=2) | dict(start={}, report={}, seed=s.seed, condition=condition, rounds=seen, **more)

# --- tuning
def drawn(method, i):
    "The settings of random trial i"
    rng = random.Random(f"{method} {i}")
    log_uniform = lambda low, high: float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.2g}")
    return dict(lr=log_uniform(3e-5, 1e-3), lam=log_uniform(.1, 10)) if method == "spin" else dict(lr=log_uniform(3e-5, 2e-3))

def trial(method, fit_steps, i):
    s, at = seed_of(TUNED_ON), drawn(method, i); start = s.fitted(fit_steps)
    made = game(s, start, SPINArgs(lr=at["lr"], beta=at["lam"], seed=s.seed, rounds=ROUNDS, steps=STEPS, batch_size=BATCH, held_out=0.), measure=s.validate) if method == "spin" else more_sft(s, start, at["lr"], measure=s.validate)
    return row(s, "trial", made, trial=i, tuned=method, fit=fit_steps, demonstrations=N, **at)

def trials(): return [cell(f"{seed_of(TUNED_ON).lab.world}/spin-trial-{m}-{f}-{i}", lambda: trial(m, f, i)) for f in sorted({*TUNED_AT.values()}) for m in ("spin", "sft") for i in range(TRIALS)]

@cache
def picked(method, fit_steps):
    "The settings, and after which round to stop, with the best win rate"
    fit_steps = TUNED_AT[fit_steps]
    found = [cell(f"{seed_of(TUNED_ON).lab.world}/spin-trial-{method}-{fit_steps}-{i}", lambda: trial(method, fit_steps, i)) for i in range(TRIALS)]
    best, k = max(((t, k) for t in found for k in range(1, ROUNDS + 1)), key=lambda x: x[0]["rounds"][x[1]]["win_rate"])
    return dict(lr=best["lr"], lam=best.get("lam"), stop=k, trial=best["trial"])

# --- the record
def helpdesk(args):
    rows, every, few = [], range(args.seeds), range(min(3, args.seeds))
    world = seed_of(TUNED_ON).lab.world
    def add(name, make): rows.append(cell(f"{world}/spin-{name}".replace(" ", "_"), make))
    for f in FITS: picked("spin", f), picked("sft", f)           # first of all, so that every process counts the cells alike
    def spin(fit_steps, **more):
        at = picked("spin", fit_steps)
        return SPINArgs(**dict(lr=at["lr"], beta=at["lam"], rounds=ROUNDS, steps=STEPS, batch_size=BATCH, held_out=0.) | more)
    for seed in every:
        for f in FITS[:2] if seed not in few else FITS:          # when does it beat fine-tuning?
            def made(): s = seed_of(seed); return row(s, "grid", game(s, s.fitted(f), spin(f, seed=seed)), fit=f, tuned="spin", stop=picked("spin", f)["stop"])
            add(f"grid-spin-{f}-{seed}", made)
            def made(): s, at = seed_of(seed), picked("sft", f); return row(s, "grid", more_sft(s, s.fitted(f), at["lr"]), fit=f, tuned="sft", stop=at["stop"])
            add(f"grid-sft-{f}-{seed}", made)
    for seed in few:
        def made(): s = seed_of(seed); return row(s, "inverted", game(s, s.fitted(0), spin(0, seed=seed), "inverted"))
        add(f"inverted-{seed}", made)
        def made(): s = seed_of(seed); return row(s, "one round", one_round(s, s.fitted(0), spin(0, seed=seed)))
        add(f"one-round-{seed}", made)
        for method in ("spin", "sft"):                           # the same settings, flawed demonstrations
            def made():
                s = seed_of(seed, "flawed")
                return row(s, "flawed", game(s, s.fitted(0), spin(0, seed=seed)) if method == "spin" else more_sft(s, s.fitted(0), picked("sft", 0)["lr"]), tuned=method)
            add(f"flawed-{method}-{seed}", made)
    for seed in few:
        for lam in (.1, 10.):
            def made(): s = seed_of(seed); return row(s, "lambda", game(s, s.fitted(0), spin(0, seed=seed, beta=lam)), lam=lam)
            add(f"lambda-{lam}-{seed}", made)
        for kind in ("old reference", "greedy", "cut"):
            def made(): s = seed_of(seed); return row(s, kind, game(s, s.fitted(0), spin(0, seed=seed, rounds=2), kind))
            add(f"{kind}-{seed}", made)
        def made(): s = seed_of(seed); return row(s, "no mixing", game(s, s.fitted(0), spin(0, seed=seed, mix=False)))
        add(f"no-mixing-{seed}", made)
        def made():                                              # the course's own rule for the end of the game
            s = seed_of(seed); notes = [s.measure(s.lab.start)]
            run = train_spin(s.lab.start, s.demos, spin(0, seed=seed, rounds=6, held_out=.1), on_round=lambda k, r, told: notes.append(dict(s.measure(r.policy), told=told and told.mean, told_low=told and told.low)))
            return row(s, "own rule", (notes, run))
        add(f"own-rule-{seed}", made)
    def made():                                                  # answers of every round to the same prompts: the chapter opens with them
        s = seed_of(0); prompts = s.lab.prompts("test", 4, seed=5)
        seen, run = game(s, s.fitted(0), spin(0, seed=0), measure=lambda policy: dict(said=policy.generate(prompts, max_new_tokens=s.lab.max_new_tokens, seed=1)))
        return row(s, "samples", ([dict(said=r["said"]) for r in seen], run), prompts=prompts)
    add("samples", made)
    for seed in every:
        def made():                                              # what the author says to the prompts that policies are measured on
            out, prompts, ids = {}, make_prompts("test", 256, 1000 + seed), seed_of(seed).lab.start.completion_ids
            for style in ("good", "flawed"):
                said = [respond(x, style, 7000 + seed) for x in prompts]
                out[style] = {k: v.mean().item() for k, v in attributes(prompts, said).items()} | dict(length=sum(len(ids(x)) - 1 for x in said) / len(said))
            return dict(method="spin", condition="the data", seed=seed, args={}, costs=dict(seconds=0), start={}, report={}, history=[], data=out)
        add(f"data-{seed}", made)
    if SHARE["of"] == 1:
        choices = {f"{m} {f}": picked(m, f) for m in ("spin", "sft") for f in FITS}
        records.write("spin", trials() + rows, seed_of(0).lab, fits=FITS, picked=choices, sft_steps=seed_of(0).sft_steps, demonstrations=N, validation=2 * records.VALIDATION)

# --- real models
REAL = dict(steps=24, batch_size=32, bf16=torch.cuda.is_available())

def real(args):
    for name in args.labs.split(","):
        lab, rows = open_lab(name), []
        @cache
        def data(seed): return lab.demonstrations(512, seed)
        def report(policy, seed):
            r = lab.evaluate(policy, n=96, seed=seed, n_samples=4)
            return dict(gold=r["gold"].mean, kl=r["kl"].mean, length=r["length"].mean, end_rate=r["end_rate"].mean, **({"parts": {k: v.mean for k, v in r["attributes"].items()}} if r.get("attributes") else {}))
        for seed in range(args.seeds):
            for lr in (1e-5, 3e-5, 1e-4):
                for method in ("spin", "sft"):
                    def made():
                        demos, rounds = data(seed), [report(lab.start, seed)]
                        if method == "spin":
                            run = train_spin(lab.start, demos, SPINArgs(lr=lr, seed=seed, held_out=.1, rounds=3, max_new_tokens=lab.max_new_tokens, **REAL),
                                             on_round=lambda k, r, told: rounds.append(dict(report(r.policy, seed), told=told and told.mean, told_low=told and told.low, first_loss=r.history[0]["loss"])))
                        else:
                            now, runs = lab.start, []
                            for k in range(3):
                                runs.append(train_sft(now, demos, SFTArgs(lr=lr, seed=seed * 1000 + k, **REAL | dict(steps=40)))); now = runs[-1].policy
                                rounds.append(report(now, seed))
                            run = whole(runs, runs[-1].args)
                        return run.row("spin", None, None, keep=2) | dict(start={}, report={}, seed=seed, condition=method, lr=lr, rounds=rounds)
                    rows.append(cell(f"{name}-{lab.world}/spin-{method}-{lr}-{seed}", made))
            def made():
                p, c = ([r[k] for r in data(seed)] for k in ("prompt", "completion"))
                return dict(method="spin", condition="the data", seed=seed, args={}, costs=dict(seconds=0), start={}, report={}, history=[], gold=lab.gold(p, c).mean().item())
            rows.append(cell(f"{name}-{lab.world}/spin-data-{seed}", made))
        if SHARE["of"] == 1: write_record(records.ROOT / name / "spin.json", name, "spin", rows, world=lab.world, start=content_hash(lab.start.model), budget="full", precision="bf16" if REAL["bf16"] else "fp32")

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("record", choices=["tune", "helpdesk", "real"]); p.add_argument("--seeds", type=int, default=5); p.add_argument("--share"); p.add_argument("--labs", default="sentiment,constraints")
    args = p.parse_args()
    if args.share: SHARE["mine"], SHARE["of"] = map(int, args.share.split("/")); torch.set_num_threads(1)
    {"tune": lambda args: trials(), "helpdesk": helpdesk, "real": real}[args.record](args)
