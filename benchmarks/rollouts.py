"""Rollouts against plain transformers, in one process and paired A B A B: prints one JSON object with the ratio and both raw series.

    python benchmarks/rollouts.py --lab helpdesk --n 128 --rounds 5
    python benchmarks/rollouts.py --lab sentiment --n 16 --rounds 3

A rollout is what PPO needs before it learns: sampled tokens, their log-probs under the policy, and the score of a reward model. The peer is
`model.generate` on a left-padded batch, one forward pass of the policy for the log-probs, and one of the reward model, with the same model,
prompts, limit and precision. Beforehand both must give the same tokens under greedy decoding.
"""
import argparse
import json
import statistics
import sys
import time

import torch

from alignlab.labs import open_lab
from alignlab.reward_model import reward_model
from alignlab.rlhf import score_samples
from alignlab.training import machine, versions

def generate(policy, prompts, limit, sample=True):
    "(N, T) tokens behind the prompts, as anybody would, and the whole left-padded batch"
    ids = [policy.prompt_ids(p) for p in prompts]; width = max(map(len, ids))
    x = torch.tensor([[policy.pad] * (width - len(i)) + i for i in ids], device=policy.device)
    real = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device=policy.device)
    with torch.no_grad(): out = policy.model.generate(input_ids=x, attention_mask=real, max_new_tokens=limit, pad_token_id=policy.pad, eos_token_id=policy.end,
        **(dict(do_sample=True, top_k=0, top_p=1., temperature=1.) if sample else dict(do_sample=False)))
    return out[:, width:], out, real

def plain(policy, reward, prompts, limit):
    tokens, out, real = generate(policy, prompts, limit)
    ended = (tokens == policy.end).cumsum(1); mask = (ended - (tokens == policy.end).long()) == 0
    attention = torch.cat([real, mask.long()], 1); position = (attention.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = policy.model(input_ids=out, attention_mask=attention, position_ids=position).logits[:, -tokens.shape[1] - 1:-1]
        logps = logits.log_softmax(-1).gather(2, tokens[:, :, None])[..., 0] * mask
        last = attention.shape[1] - 1 - attention.flip(1).argmax(1)
        hidden = reward.model.base_model(input_ids=out, attention_mask=attention, position_ids=position).last_hidden_state
        score = reward.model.score(hidden)[torch.arange(len(out)), last, 0]
    return int(mask.sum()), logps, score

def ours(policy, reward, prompts, limit, seed):
    s = policy.sample(prompts, max_new_tokens=limit, seed=seed)
    return int(s.mask.sum()), s.logps, score_samples(reward, s)

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lab", default="helpdesk"); p.add_argument("--n", type=int, default=128); p.add_argument("--rounds", type=int, default=5)
    a = p.parse_args()
    lab = open_lab(a.lab); policy, limit = lab.start, lab.max_new_tokens
    reward, prompts = reward_model(policy), lab.prompts("train", a.n, 0)
    greedy = policy.sample(prompts, temperature=0., max_new_tokens=limit)
    theirs = generate(policy, prompts, limit, sample=False)[0]
    same = [g == t[:len(g)].tolist() for g, t in zip(greedy.completions, theirs)]
    slow, fast, tokens = [], [], []
    for i in range(a.rounds):
        torch.manual_seed(i)
        began = time.perf_counter(); n, *_ = plain(policy, reward, prompts, limit); slow.append(n / (time.perf_counter() - began))
        began = time.perf_counter(); m, *_ = ours(policy, reward, prompts, limit, i); fast.append(m / (time.perf_counter() - began)); tokens.append([n, m])
        print(f"round {i + 1}: plain {slow[-1]:.0f} tokens a second, ours {fast[-1]:.0f}", file=sys.stderr, flush=True)
    ratios = [f / s for f, s in zip(fast, slow)]
    print(json.dumps(dict(lab=a.lab, n=a.n, ratio=statistics.median(ratios), ratios=ratios, plain_tokens_a_second=slow, our_tokens_a_second=fast, tokens=tokens, greedy_equal=sum(same) / len(same), machine=machine(), versions=versions())))
