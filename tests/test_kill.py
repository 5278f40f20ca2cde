"""SFT, DPO, online DPO, PPO, GRPO, Constitutional AI, SPIN and KTO killed by `kill -9` at random moments, then resumed: the same weights, bit for bit.

Run as a script it is the process whose children are killed: `python test_kill.py METHOD POINTS FOLDER`."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

def trainer(method):
    "(folder -> Run, resumed where there is something)"
    from alignlab.constitutional import train_cai
    from alignlab.dpo import DPOArgs, train_dpo
    from alignlab.dpo_family import train_online_dpo
    from alignlab.group_rl import GroupArgs, train_grpo
    from alignlab.helpdesk import Annotator, gold, make_prompts, respond
    from alignlab.judges import RandomJudge
    from alignlab.kto import KTOArgs, train_kto
    from alignlab.rlhf import PPOArgs, train_rlhf
    from alignlab.sft import SFTArgs, new_model, train_sft
    from alignlab.spin import SPINArgs, train_spin
    start, prompts = new_model('micro'), make_prompts('train', 40)
    if method == 'sft': return lambda out: train_sft(start, [dict(prompt=p, completion=respond(p)) for p in prompts], SFTArgs(steps=40, batch_size=8, save_every=3), out=out, resume=True)
    if method == 'online': return lambda out: train_online_dpo(start, prompts, Annotator(), DPOArgs(steps=24, batch_size=4, save_every=3), rounds=3, max_new_tokens=12, out=out, resume=True)
    if method == 'rlhf': return lambda out: train_rlhf(start, [dict(prompt=p) for p in prompts], PPOArgs(steps=24, batch_size=8, minibatches=2, max_new_tokens=8, target_kl=.01, save_every=3), reward=gold, out=out, resume=True)
    if method == 'grpo': return lambda out: train_grpo(start, [dict(prompt=p) for p in prompts], GroupArgs(steps=24, batch_size=4, group=3, minibatches=2, max_new_tokens=8, save_every=3), reward=gold, out=out, resume=True)
    if method == 'cai': return lambda out: train_cai(start, [dict(prompt=p) for p in prompts], DPOArgs(steps=24, batch_size=8, save_every=3), revisions=1, believable=0., max_new_tokens=8, judge=RandomJudge(), out=out, resume=True)
    if method == 'kto': return lambda out: train_kto(start, [dict(prompt=p, completion=respond(p, 'good' if i % 3 else 'web'), label=bool(i % 3)) for i, p in enumerate(prompts)], KTOArgs(steps=40, batch_size=8, save_every=3), out=out, resume=True)
    if method == 'spin': return lambda out: train_spin(start, [dict(prompt=p, completion=respond(p)) for p in prompts], SPINArgs(steps=8, batch_size=8, save_every=3, held_out=0., max_new_tokens=12), out=out, resume=True)
    pairs = [dict(prompt=p, chosen=respond(p, 'good'), rejected=respond(p, 'web')) for p in prompts]
    return lambda out: train_dpo(start, pairs, DPOArgs(steps=40, batch_size=8, save_every=3), out=out, resume=True)

def work(method, points, folder):
    torch.set_num_threads(1)                                    # a pool of threads does not survive a fork
    train, rng, killed = trainer(method), random.Random(0), 0
    began = time.perf_counter(); truth = train(folder/'truth'); seconds = time.perf_counter() - began
    weights = truth.policy.model.state_dict()
    while killed < points:
        out = folder/f'run{killed}'
        for _ in range(1 + killed % 2):                         # every other one is killed while it resumes, too
            pid = os.fork()
            if not pid:
                train(out); os._exit(0)
            time.sleep(seconds * rng.uniform(.05, .9)); os.kill(pid, signal.SIGKILL)
            if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]): break
        else:
            again = train(out)
            assert all(torch.equal(v, again.policy.model.state_dict()[k]) for k, v in weights.items()), f'run {killed} ended in other weights'
            assert [h['loss'] for h in again.history] == [h['loss'] for h in truth.history]
            killed += 1; continue
        seconds *= .8                                           # it got through: kill sooner
        import shutil; shutil.rmtree(out)
    print(json.dumps(dict(killed=killed)))

if __name__ == '__main__': sys.exit(work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))

import pytest
from conftest import ALL

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('method', ['sft', 'dpo', 'online', 'rlhf', 'grpo', 'cai', 'spin', 'kto'])
def test_killed_and_resumed(method, tmp_path):
    points = 20 if ALL else 5
    done = subprocess.run([sys.executable, __file__, method, str(points), str(tmp_path)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == dict(killed=points)
