"""Two processes started by `accelerate launch` train as one does: same losses, same weights, one set of files.

Run as a script it is what the processes run: `python test_processes.py FOLDER`."""
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

def work(folder):
    from alignlab.dpo import DPOArgs, train_dpo
    from alignlab.helpdesk import make_prompts, respond
    from alignlab.kto import KTOArgs, train_kto
    from alignlab.models import add_lora
    from alignlab.sft import SFTArgs, new_model, train_sft
    from alignlab.spin import SPINArgs, train_spin
    torch.set_num_threads(1)
    prompts = make_prompts('train', 14)
    pairs = [dict(prompt=p, chosen=respond(p, 'good'), rejected=respond(p, 'web')) for p in prompts]
    start, found = new_model('micro'), {}
    for name, lora in (('dpo', False), ('lora', True)):
        policy = add_lora(start.copy(), r=4) if lora else start
        args = DPOArgs(steps=4, batch_size=7, micro_batch=2, lr=3e-3, save_every=2)
        run = train_dpo(policy, pairs, args, out=folder/name)
        again = train_dpo(policy, pairs, args, out=folder/name, resume=True)        # done: every process reads it back
        found[name] = dict(loss=[h['loss'] for h in run.history], margin=[h['rewards/margins'] for h in run.history], norm=[h['grad_norm'] for h in run.history],
                           tokens=run.tokens_trained, again=again.history == run.history, weights=sum(p.detach().double().abs().sum().item() for p in run.policy.model.parameters()))
    run = train_sft(start, [dict(prompt=r['prompt'], completion=r['chosen']) for r in pairs], SFTArgs(steps=3, batch_size=5))
    found['sft'] = dict(loss=[h['loss'] for h in run.history], tokens=run.tokens_trained)
    run = train_spin(start, [dict(prompt=r['prompt'], completion=r['chosen']) for r in pairs], SPINArgs(steps=2, batch_size=5, rounds=2, max_new_tokens=8), out=folder/'spin')
    found['spin'] = dict(loss=[h['loss'] for h in run.history], tokens=run.tokens_trained, generated=run.tokens_generated)
    run = train_kto(start, [dict(prompt=r['prompt'], completion=r[k], label=k == 'chosen') for r in pairs for k in ('chosen', 'rejected')], KTOArgs(steps=4, batch_size=7, micro_batch=2, lr=3e-3))
    found['kto'] = dict(loss=[h['loss'] for h in run.history], kl=[h['kl'] for h in run.history], z=[h['z'] for h in run.history])
    try: train_sft(start, [dict(prompt=prompts[0], completion='hello !')], SFTArgs(steps=1, batch_size=1))
    except ValueError as e: found['small'] = str(e)
    if os.environ.get('RANK', '0') == '0': (folder/'found.json').write_text(json.dumps(found))

if __name__ == '__main__': sys.exit(work(Path(sys.argv[1])))

import pytest

LAUNCH = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--num_cpu_threads_per_process', '1']

def launch(*words, at, cwd):
    "Run two processes that find each other at a port of their own"
    done = subprocess.run([*LAUNCH, '--main_process_port', str(at), *map(str, words)], capture_output=True, text=True, cwd=cwd, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done

def free_port():
    import socket
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def test_two_processes_train_as_one(tmp_path):
    for name in ('one', 'two'): (tmp_path/name).mkdir()
    work(tmp_path/'one')
    launch(__file__, tmp_path/'two', at=free_port(), cwd=tmp_path)
    one, two = (json.loads((tmp_path/name/'found.json').read_text()) for name in ('one', 'two'))
    for method in ('dpo', 'lora', 'sft', 'spin', 'kto'):
        for k, v in one[method].items(): assert two[method][k] == (pytest.approx(v, rel=1e-4, abs=1e-4 if method == 'kto' else 1e-6) if k != 'again' else v), (method, k)
    assert one['dpo']['again'] and 'small' not in one and 'cannot be split over 2 processes' in two['small']
    for name in ('dpo', 'lora', 'spin'):
        a, b = (tmp_path/n/name for n in ('one', 'two'))
        assert sorted(p.name for p in a.rglob('*')) == sorted(p.name for p in b.rglob('*')) and len((b/'history.jsonl').read_text().splitlines()) == 4

def test_the_command_under_accelerate(tmp_path):
    "One JSON object, one run's folder, the loss of one process"
    words = ['train', 'dpo', '--steps', 2, '--batch-size', 6, '--n-eval', 4, '--json', '--out']
    done = launch('-m', 'alignlab', *words, tmp_path/'two', at=free_port(), cwd=tmp_path)
    found = json.loads(done.stdout)
    alone = subprocess.run([sys.executable, '-m', 'alignlab', *map(str, words), str(tmp_path/'one')], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    a, b = ([json.loads(l)['loss'] for l in (tmp_path/n/'history.jsonl').read_text().splitlines()] for n in ('one', 'two'))
    assert a == pytest.approx(b, rel=1e-4) and found['tokens_trained'] == json.loads(alone.stdout)['tokens_trained'] and done.stderr.count('measuring the result') == 1
