"""Make the records of the chapters on reward models and reinforcement learning.

    python benchmarks/rl_records.py helpdesk [--seeds 5] [--share i/n]
    python benchmarks/rl_records.py constraints [--seeds 1] [--steps 24] [--share i/n]    SmolLM2-135M: GRPO on verified constraints

reward_model: accuracy by number of labels. rlhf: PPO at the lesson budget with a learned reward and with gold, over-optimization
without a price of KL (many labels, few, the worst of three, shuffled), best-of-n by the same reward models, runs broken on purpose.
group_rl: RLOO, GRPO and variants at equal rollouts. Runs are kept under runs/records as in records.py, and shared out in the same way.
"""
import argparse
import random
from functools import cache

import torch
from records import DONE, ROOT, SHARE, Seed, cell, tilted, write

from alignlab import rlhf
from alignlab.evaluation import best_of_n
from alignlab.group_rl import GroupArgs, train_grpo
from alignlab.helpdesk import make_prompts
from alignlab.judges import calibration_error
from alignlab.labs import open_lab
from alignlab.models import add_lora
from alignlab.preferences import collect_preferences
from alignlab.reward_model import RewardArgs, load_reward_model, train_reward, worst_of
from alignlab.rlhf import PPOArgs, train_rlhf
from alignlab.training import content_hash, write_record

FEW, OVER, BREAK = 128, 60, 20     # labels; steps of the long runs and of the broken ones
SIZE = dict(steps=64, batch_size=32, lr=1e-3)
seed_of = cache(Seed)

def shuffled(rows, seed):
    coin = random.Random(seed)
    return [dict(prompt=r["prompt"], chosen=r["rejected"], rejected=r["chosen"]) if coin.random() < .5 else r for r in rows]

@cache
def held_out(seed):
    lab = seed_of(seed).lab
    return list(collect_preferences(lab.start, lab.prompts("test", 512, seed + 1000), lab.annotator, seed + 1, max_new_tokens=lab.max_new_tokens))

def quality(reward, seed):
    "What a reward model gets right on held-out pairs, by annotators' labels and by gold, and how sure it is"
    rows, lab = held_out(seed), seed_of(seed).lab
    prompts, chosen, rejected = ([r[k] for r in rows] for k in ("prompt", "chosen", "rejected"))
    p, better = reward.prefer(prompts, chosen, rejected), lab.gold(prompts, chosen) - lab.gold(prompts, rejected)
    clear = better != 0
    flip = torch.arange(len(p)) % 2 == 0                        # half the pairs turned round, or all labels would be 1
    return dict(accuracy=(p > .5).float().mean().item(), gold_accuracy=((p > .5) == (better > 0))[clear].float().mean().item(),
                calibration_error=calibration_error(torch.where(flip, p, 1 - p), flip.float()), pairs=len(rows))

@cache
def reward(seed, labels, kind="right", again=0):
    "A reward model, fitted once: on so many labels, right or shuffled; `again` gives another start and order"
    s = seed_of(seed); name = f"rm-{labels}-{kind}-{again}-{seed}"; folder = DONE / s.lab.world / "models" / name
    def make():
        rows = s.pairs[:labels]
        run = train_reward(s.lab.start, shuffled(rows, seed) if kind == "shuffled" else rows, RewardArgs(seed=seed + 100 * again, **SIZE))
        run.policy.save(folder)
        return run.row("reward", {}, {}) | dict(labels=labels, kind=kind, again=again, quality=quality(run.policy, seed))
    kept = dict(SHARE); SHARE.update(mine=0, of=1)              # whoever needs it makes it
    row = cell(f"{s.lab.world}/{name}", make); SHARE.update(kept)
    return row, load_reward_model(folder)

def rewards(seed, kind):
    if kind == "ensemble": return worst_of([reward(seed, FEW, "right", k)[1] for k in range(3)])
    return reward(seed, *dict(many=(2048,), few=(FEW,), shuffled=(2048, "shuffled"))[kind])[1]

def prompts(seed): return [dict(prompt=r["prompt"]) for r in seed_of(seed).pairs]

def over(seed, kind, beta=0.):
    "PPO without (or with little) price of KL, long enough to be led astray; with texts at some points of the way"
    s, texts = seed_of(seed), []
    def watch(p, c, ended): texts.append([dict(prompt=x, completion=y) for x, y in zip(p[:3], c[:3])]); return s.lab.gold(p, c, ended)
    run = train_rlhf(s.lab.start, prompts(seed), PPOArgs(steps=OVER, batch_size=64, minibatches=2, beta=beta, seed=seed), reward=rewards(seed, kind), watch=watch)
    return run.row("over", s.start, s.report(run.policy, n=128).to_dict(), keep=OVER) | dict(kind=kind, texts={i: texts[i] for i in (0, OVER // 4, OVER // 2, OVER - 1)})

def by_best_of_n(seed, kind, n=128):
    "Proxy and gold of best-of-n by a reward model, from one pool of samples"
    s = seed_of(seed); p = make_prompts("test", 48, seed=1000 + seed)
    pool = s.lab.start.sample(p, n=n, max_new_tokens=s.lab.max_new_tokens, seed=9)
    ended = pool.ended.tolist(); gold = s.lab.gold(pool.prompts, pool.text, ended).view(len(p), n)
    proxy = rewards(seed, kind)(pool.prompts, pool.text, ended).view(len(p), n)
    return dict(method="best-of-n", seed=seed, kind=kind, args={}, costs=dict(seconds=0), start={}, report={}, history=[],
                points=[dict(n=b["n"], kl=b["kl"], proxy=b["reward"].mean, gold=b["gold"].mean) for b in best_of_n(proxy, [1, 2, 4, 8, 16, 32, 64, 128], gold)])

BROKEN = dict(price_of_kl_negative="the sign of the KL term is wrong", no_price="beta is 0", huge_steps="learning rate 100 times too large", no_end="the end is not asked for, and long answers score more",
              critic_sees_on="the value is read one token late", wrong_temperature="sampled at .5, scored at 1")
def broken(name, steps=BREAK):
    "A run with one mistake"
    s, a, r = seed_of(0), dict(steps=steps, batch_size=64, minibatches=2), rewards(0, "many")
    kept = rlhf.token_rewards, rlhf.token_values, rlhf.sample_logps, rlhf.group_logps
    try:
        if name == "price_of_kl_negative": rlhf.token_rewards = lambda score, l, f, m, beta: kept[0](score, l, f, m, -beta)
        if name == "critic_sees_on":
            rlhf.token_values = lambda critic, p, c: kept[1](critic, [x + y[:1] for x, y in zip(p, c)], [y[1:] + y[-1:] for y in c])
        if name == "wrong_temperature":                          # log-probs of the reference and of training at 1, samples at .5
            rlhf.sample_logps = lambda policy, sample, n=1, temperature=1.: kept[2](policy, sample, n, 1.)
            rlhf.group_logps = lambda model, groups, temperature=1.: kept[3](model, groups, 1.); a["temperature"] = .5
        if name == "no_price": a["beta"] = 0.
        if name == "huge_steps": a["lr"] = 3e-2
        if name == "no_end": a["missing_end"] = None; r = lambda p, c, e: torch.tensor([len(x.split()) / 20. for x in c])
        run = train_rlhf(s.lab.start, prompts(0), PPOArgs(**a), reward=r, watch=s.lab.gold)
    except FloatingPointError: return broken(name, steps - 5)   # it ended in NaN: as far as it went
    finally: rlhf.token_rewards, rlhf.token_values, rlhf.sample_logps, rlhf.group_logps = kept
    return run.row("broken", s.start, s.report(run.policy, n=64).to_dict()) | dict(kind=name, what=BROKEN.get(name, "as it should be"))

def helpdesk(args):
    all_seeds, few = range(args.seeds), range(min(3, args.seeds))
    world = seed_of(0).lab.world
    ppo, group = [], []
    def add(rows, name, make): rows.append(cell(f"{world}/rl-{name}", make))
    def run(rows, name, seed, method, train, a, by, **more):
        def make():
            s = seed_of(seed); done = train(s.lab.start, prompts(seed), a, reward=s.lab.gold if by == "gold" else rewards(seed, by), watch=s.lab.gold)
            return s.row(method, done, skills=name == "ppo" and seed < 3) | dict(by=by, **more)
        add(rows, f"{name}-{seed}", make)
    for s in all_seeds: run(ppo, "ppo", s, "rlhf", train_rlhf, PPOArgs(seed=s), "many")
    for s in few:
        for kind in ("many", "few", "ensemble", "shuffled"): add(ppo, f"over-{kind}-{s}", lambda: over(s, kind))
        add(ppo, f"over-priced-{s}", lambda: over(s, "many", .1))
        for kind in ("many", "few", "ensemble", "shuffled"): add(ppo, f"bon-{kind}-{s}", lambda: by_best_of_n(s, kind))
        run(ppo, "gold", s, "rl-gold", train_rlhf, PPOArgs(seed=s, beta=.15), "gold")
        for loss in ("rloo", "grpo", "dr_grpo", "dapo"): run(group, loss, s, loss, train_grpo, GroupArgs(loss=loss, seed=s), "many")
    for name in ("as_it_should_be", *BROKEN): add(ppo, f"broken-{name}", lambda: broken(name))
    if not args.share:
        rm = [reward(s, n)[0] for s in few for n in (32, FEW, 512, 2048)] + [reward(s, 2048, "shuffled")[0] for s in few] + [reward(s, FEW, "right", k)[0] for s in few for k in (1, 2)]
        lab = seed_of(0).lab
        write("reward_model", rm, lab)
        write("rlhf", ppo, lab, tilted=tilted(lab))
        write("group_rl", group, lab)

def constraints(args):
    "Real text, a program as the reward; adapters, so that no second model is held"
    lab, rows, answers, gpu = open_lab("constraints"), [], None, torch.cuda.is_available()
    for seed in range(args.seeds):
        def make():
            nonlocal answers
            start = lab.evaluate(lab.start, n=args.prompts, seed=seed).to_dict()
            a = GroupArgs(steps=args.steps, batch_size=8, group=8, minibatches=2, lr=2e-4, beta=.05, seed=seed, max_new_tokens=lab.max_new_tokens, missing_end=0., bf16=gpu, micro_batch=None if gpu else 16)
            data = [dict(prompt=p) for p in lab.prompts("train", args.steps * 8, seed)]
            run = train_grpo(add_lora(lab.policy(), seed=seed), data, a, reward=lab.gold)
            shown = lab.prompts("test", 4, seed=seed); told = [p.generate(shown, max_new_tokens=lab.max_new_tokens, seed=1) for p in (lab.start, run.policy)]
            return run.row("grpo", start, lab.evaluate(run.policy, n=args.prompts, seed=seed).to_dict()) | dict(samples=[dict(prompt=p, before=b, after=c) for p, b, c in zip(shown, *told)])
        rows.append(cell(f"constraints-{lab.world}/{args.steps}-{seed}", make))
    if SHARE["of"] == 1:
        write_record(ROOT / "constraints" / "grpo.json", "constraints", "grpo", rows, world=lab.world, start=content_hash(lab.start.model), budget="full", precision="bf16" if gpu else "fp32", samples=rows[0]["samples"])

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("record", choices=["helpdesk", "constraints"]); p.add_argument("--seeds", type=int, default=5); p.add_argument("--share")
    p.add_argument("--steps", type=int, default=24); p.add_argument("--prompts", type=int, default=50)
    args = p.parse_args()
    if args.share: SHARE["mine"], SHARE["of"] = map(int, args.share.split("/")); torch.set_num_threads(1)
    {"helpdesk": helpdesk, "constraints": constraints}[args.record](args)
