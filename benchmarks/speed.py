"""Training steps against the peer, in one process and paired A B A B: prints one JSON object with the ratio and both raw series.

    python benchmarks/speed.py --model helpdesk-sft --batch 64 --steps 6 --rounds 5
    python benchmarks/speed.py --model smollm2-135m --data HH.jsonl.gz --batch 8 --steps 2 --rounds 3 [--bf16]

The peer is TRL's DPOTrainer with reference log-probs computed beforehand: the same model, pairs, batch, micro-batch, precision and optimiser.
A step's time is from its first row to its last weight; the first step of each side warms up and is left out.
"""
import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time

import torch

from alignlab.dpo import DPOArgs, train_dpo
from alignlab.labs import open_lab
from alignlab.training import machine, versions

def messages(pairs):
    def turn(x, role): return x if isinstance(x, list) else [dict(role=role, content=x)]
    return [dict(prompt=turn(r["prompt"], "user"), chosen=turn(r["chosen"], "assistant"), rejected=turn(r["rejected"], "assistant")) for r in pairs]

def trl_steps(lab, pairs, a):
    "Seconds of each step of TRL's trainer"
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer
    class Clock(TrainerCallback):
        times = []
        def on_step_begin(self, *args, **kw): self.began = time.perf_counter()
        def on_step_end(self, *args, **kw): self.times.append(time.perf_counter() - self.began)
    policy, clock, micro = lab.policy(), Clock(), a.micro or a.batch
    clock.times = []
    with tempfile.TemporaryDirectory() as d:
        config = DPOConfig(output_dir=d, beta=.1, loss_type=["sigmoid"], max_steps=a.steps + 1, per_device_train_batch_size=micro, gradient_accumulation_steps=a.batch // micro, learning_rate=1e-5,
            precompute_ref_log_probs=True, use_cpu=not torch.cuda.is_available(), bf16=a.bf16, gradient_checkpointing=False, report_to="none", save_strategy="no", max_length=a.max_length, logging_strategy="no", disable_tqdm=True)
        trainer = DPOTrainer(model=policy.model, args=config, train_dataset=Dataset.from_list(messages(pairs)), processing_class=policy.tokenizer, callbacks=[clock])
        with contextlib.redirect_stdout(sys.stderr): trainer.train()          # it prints its own summary
    return clock.times[1:]

def our_steps(lab, pairs, a):
    "Seconds of each step of ours, and the tokens trained"
    run = train_dpo(lab.start, pairs, DPOArgs(steps=a.steps + 1, batch_size=a.batch, micro_batch=a.micro, lr=1e-5, max_length=a.max_length, bf16=a.bf16))
    ends = [h["seconds"] for h in run.history]
    return [b - x for x, b in zip(ends, ends[1:])], run.tokens_trained / (a.steps + 1)

def matmul_rate(dtype):
    "Floating-point operations a second of a large matrix product on this machine"
    x = torch.randn(2048, 2048, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu"); x @ x; best = 0
    for _ in range(5):
        if x.is_cuda: torch.cuda.synchronize()
        began = time.perf_counter(); x @ x
        if x.is_cuda: torch.cuda.synchronize()
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="helpdesk-sft"); p.add_argument("--data"); p.add_argument("--batch", type=int, default=64); p.add_argument("--micro", type=int)
    p.add_argument("--steps", type=int, default=6); p.add_argument("--rounds", type=int, default=5); p.add_argument("--bf16", action="store_true"); p.add_argument("--max-length", type=int, default=512)
    a = p.parse_args()
    lab = open_lab("pairs", model=a.model, data=a.data) if a.data else open_lab("helpdesk", model=a.model)
    pairs = list(lab.preferences(a.batch * (a.steps + 1), seed=0))
    theirs, ours = [], []
    for i in range(a.rounds):
        t, (o, tokens) = statistics.median(trl_steps(lab, pairs, a)), our_steps(lab, pairs, a)
        theirs.append(t); ours.append(statistics.median(o))
        print(f"round {i + 1}: TRL {theirs[-1]:.3f} s, ours {ours[-1]:.3f} s", file=sys.stderr, flush=True)
    ratios = [t / o for t, o in zip(theirs, ours)]
    flops = 6 * sum(x.numel() for x in lab.start.model.parameters()) * tokens / statistics.median(ours)
    print(json.dumps(dict(model=a.model, batch=a.batch, micro_batch=a.micro, bf16=a.bf16, ratio=statistics.median(ratios), ratios=ratios, trl_seconds=theirs, our_seconds=ours, tokens_a_step=tokens,
                          share_of_matmul_rate=flops / matmul_rate(torch.bfloat16 if a.bf16 else torch.float32), machine=machine(), versions=versions())))
