"""The loop: exact gradients, runs that survive `kill -9` at any moment, and records that refuse what they are not about.

Run as a script it is the process that gets killed: `python test_training.py FOLDER`."""
import contextlib, json, math, os, random, shutil, signal, subprocess, sys, threading, time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import alignlab.training as T
from alignlab.training import (
    FitArgs, Objective, budget, cached_rows, file_hash, fit, load_checkpoint, machine, optimise_step, read_record, save_checkpoint,
    seed_all, versions, write_record)

torch.set_num_threads(1)


class Policy:
    "Eight inputs to one output, with dropout and a buffer, so that training draws random numbers and changes more than parameters"
    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(.2), nn.Linear(16, 1))
    def save(self, folder): torch.save(self.model.state_dict(), Path(folder) / 'model.pt')


class Squares(Objective):
    def prepare(self, policy, data):
        self.state = {'tokens_generated': 0}
        return data
    def collate(self, rows): return {k: torch.tensor([row[k] for row in rows]) for k in rows[0]}
    def loss(self, policy, batch):
        self.state['tokens_generated'] += len(batch['y'])
        error = policy.model(batch['x']).squeeze(-1) - batch['y']
        return error ** 2, {'abs': error.detach().abs()}
    def tokens(self, batch): return len(batch['y'])


def rows_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return [dict(x=x.tolist(), y=float(x.sum())) for x in rng.normal(size=(n, 8)).astype('float32')]

DATA, ARGS = rows_of(40), FitArgs(steps=6, batch_size=8, lr=1e-2, save_every=2)

def weights(policy): return torch.cat([t.flatten().double() for t in policy.model.state_dict().values()])
def train(out=None, policy=None, data=DATA, args=ARGS, **kw):
    return fit(policy or Policy(), data, Squares(), args, out=out, **kw)
def losses(run): return [row['loss'] for row in run.history]
def same(a, b): return torch.equal(weights(a.policy), weights(b.policy)) and losses(a) == losses(b)


# ---- the process that gets killed

def count_or_die(patch, at=None):
    "Count the moments at which the disk changes; at the moment `at`, die as by kill -9, with half of the file written"
    moments = []
    def moment(fd=None):
        moments.append(1)
        if len(moments) == at:
            if fd is not None: os.ftruncate(fd, os.fstat(fd).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    def around(owner, name):
        original = getattr(owner, name)
        def wrapped(*args, **kw):
            moment(args[0] if name == 'fsync' else None)
            result = original(*args, **kw)
            moment()
            return result
        patch(owner, name, wrapped)
    for owner, name in ((os, 'fsync'), (os, 'replace'), (T.shutil, 'rmtree'), (Path, 'mkdir'), (Policy, 'save'), (torch.optim.AdamW, 'step')):
        around(owner, name)
    return moments

def child(work):
    "Run `work` in a forked child; the signal that ended it, 0 if none"
    pid = os.fork()
    if not pid:
        code = 1
        try: work(); code = 0
        except BaseException as e: print(repr(e), file=sys.stderr)
        finally: os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, 'the child failed by itself'
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

def killed_everywhere(folder):
    truth = train(folder / 'truth')
    def counted():
        moments = count_or_die(setattr)
        train(folder / 'counted')
        (folder / 'moments').write_text(str(len(moments)))
    assert child(counted) == 0
    total = int((folder / 'moments').read_text())
    for at in range(1, total + 1):
        out = folder / f'at{at}'
        def first(at=at, out=out): count_or_die(setattr, at); train(out)
        def second(at=at, out=out): count_or_die(setattr, 1 + at * 7 % 11); train(out, resume=True)
        assert child(first) == signal.SIGKILL
        if at % 3 == 0: child(second)                        # killed again while it resumes
        resumed = train(out, resume=True)
        saved = torch.load(out / 'policy' / 'model.pt', weights_only=True)
        assert same(truth, resumed), f'killed at moment {at} of {total}'
        assert all(torch.equal(saved[k], v) for k, v in truth.policy.model.state_dict().items())
        assert json.loads((out / 'run.json').read_text())['status'] == 'done'
        assert len((out / 'history.jsonl').read_text().splitlines()) == 6
        assert resumed.tokens_generated == truth.tokens_generated == 48
    return total

def killed_by_the_clock(folder):
    "Killed at random times until it gets through"
    args, kills, wait = replace(ARGS, steps=120, save_every=5), 0, .02
    truth, rng = train(args=args), random.Random(0)
    while True:
        pid = os.fork()
        if not pid:
            train(folder / 'clock', args=args, resume=True)
            os._exit(0)
        time.sleep(wait * (.5 + rng.random())); wait *= 1.3
        with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]): break
        kills += 1
    assert same(truth, train(folder / 'clock', args=args, resume=True))
    return kills

if __name__ == '__main__':
    heavy = {'transformers', 'datasets', 'accelerate', 'peft', 'matplotlib', 'pandas'} & sys.modules.keys()
    print(json.dumps(dict(heavy=sorted(heavy), moments=killed_everywhere(Path(sys.argv[1])), kills=killed_by_the_clock(Path(sys.argv[1])))))
    sys.exit()

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

prop = settings(derandomize=True, deadline=None, max_examples=40)
close = torch.testing.assert_close


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_killed_at_any_moment_resumes_bit_for_bit(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found['moments'] > 30 and found['kills'] > 0 and found['heavy'] == []


# ---- arguments and budgets

@pytest.mark.parametrize('name, values', {
    'steps': [0, -1, 2.5, True, '3', None], 'batch_size': [0, 1.], 'lr': [0, -1, math.nan, math.inf, '1e-3', None],
    'warmup': [-.1, 1.1, math.nan], 'weight_decay': [-1, math.inf], 'max_grad_norm': [0, -1, math.nan, None],
    'seed': [-1, 2**32, 1.5], 'bf16': [1, 'yes', None], 'micro_batch': [0, -2, 1.5, True], 'save_every': [-1, None, .5]}.items())
def test_each_bad_argument_is_named(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f'FitArgs: {name} must be .*got'): FitArgs(**{name: value})

def test_good_arguments_of_odd_types_pass():
    FitArgs(steps=np.int64(3), lr=np.float32(.1), max_grad_norm=math.inf, warmup=1, micro_batch=None, save_every=0)

def test_arguments_spoilt_after_making_are_met_by_fit():
    args = replace(ARGS)
    args.lr = -1
    with pytest.raises(ValueError, match='lr must be'): train(args=args)

def test_budgets(monkeypatch):
    monkeypatch.setenv('ALIGNLAB_BUDGET', 'smoke')
    assert (budget().steps, budget().batch_size, budget().pairs, budget().prompts, budget().seeds) == (8, 16, 128, 64, 1)
    monkeypatch.delenv('ALIGNLAB_BUDGET')
    lesson, full = budget(), budget('full')
    assert (lesson.name, lesson.steps, lesson.batch_size, lesson.rl_steps, lesson.rl_batch) == ('lesson', 64, 64, 40, 128)
    assert (lesson.pairs, full.pairs, full.prompts, full.seeds, full.real_steps) == (2048, 4096, 512, 5, None)
    monkeypatch.setenv('ALIGNLAB_BUDGET', 'Lesson')
    with pytest.raises(ValueError, match="unknown budget 'Lesson'.*smoke, lesson, full"): budget()

@prop
@given(st.integers(1, 300), st.floats(0, 1))
def test_schedule_is_positive_peaks_once_and_is_the_common_one_without_warm_up(steps, warmup):
    rates = [FitArgs(steps=steps, lr=1., warmup=warmup).lr_at(s) for s in range(steps)]
    top = rates.index(max(rates))
    assert 0 < min(rates) and max(rates) == 1
    assert rates[:top + 1] == sorted(rates[:top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    plain = [FitArgs(steps=steps, lr=1., warmup=0.).lr_at(s) for s in range(steps)]
    assert plain == [(steps - s) / steps for s in range(steps)]             # transformers' linear schedule


# ---- order

@prop
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(0, 2**31))
def test_tape_sees_every_row_once_an_epoch_whatever_the_global_streams(n, size, seed, noise):
    args, steps = FitArgs(batch_size=size, seed=seed), 3 * n // size + 1
    seed_all(noise)
    tape = [i for s in range(steps) for i in Objective().indices(n, s, args)]
    for epoch in range(len(tape) // n): assert sorted(tape[epoch * n:(epoch + 1) * n]) == list(range(n))
    assert tape[-size:] == Objective().indices(n, steps - 1, args) and len(tape) == steps * size

def test_epochs_and_seeds_differ():
    def order(step, seed): return tuple(Objective().indices(20, step, FitArgs(batch_size=20, seed=seed)))
    assert len({order(step, seed) for step in range(5) for seed in range(5)}) == 25


# ---- a step

class Straight(Squares):
    "No batch norm or dropout in the way: the loss of a row depends on that row alone"
    def loss(self, policy, batch):
        error = (batch['x'] @ policy.model.weight.T).squeeze(-1) - batch['y']
        return error ** 2, {'abs': error.detach().abs(), 'half': .5}

class Linear:
    def __init__(self): self.model = nn.Linear(8, 1, bias=False); nn.init.constant_(self.model.weight, .1)

def gradient(rows, **kw):
    policy = Linear(); before = policy.model.weight.detach().clone()
    log = optimise_step(policy, Straight(), torch.optim.SGD(policy.model.parameters(), lr=1.), rows, FitArgs(max_grad_norm=math.inf, **kw))
    return before - policy.model.weight.detach(), log

@prop
@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 99))
def test_accumulated_gradient_and_metrics_are_those_of_the_whole_batch(n, micro, seed):
    rows = rows_of(n, seed)
    (whole, log), (split, log2) = gradient(rows), gradient(rows, micro_batch=micro)
    x, y, w = torch.tensor([r['x'] for r in rows]), torch.tensor([r['y'] for r in rows]), torch.full((8,), .1)
    close(whole[0], 2 / n * (x * (x @ w - y)[:, None]).sum(0), rtol=1e-4, atol=1e-5)     # by hand
    close(split, whole, rtol=1e-4, atol=1e-5)
    assert log.keys() == log2.keys() == {'loss', 'abs', 'half', 'grad_norm', 'tokens'} and log['tokens'] == log2['tokens'] == n
    close(torch.tensor([log[k] for k in log]), torch.tensor([log2[k] for k in log]), rtol=1e-4, atol=1e-5)
    close(log['grad_norm'], whole.norm().item(), rtol=1e-4, atol=1e-5)

def test_gradient_left_behind_does_not_leak_in():
    policy = Linear(); sgd = torch.optim.SGD(policy.model.parameters(), lr=1.)
    policy.model.weight.grad = torch.full((1, 8), 100.)
    optimise_step(policy, Straight(), sgd, DATA[:4], FitArgs(max_grad_norm=math.inf))
    close(.1 - policy.model.weight.detach(), gradient(DATA[:4])[0])

def test_clipping_bounds_the_step_and_reports_the_norm_before_it():
    policy = Linear(); before = policy.model.weight.detach().clone()
    log = optimise_step(policy, Straight(), torch.optim.SGD(policy.model.parameters(), lr=1.), DATA[:4], FitArgs(max_grad_norm=.01))
    close((before - policy.model.weight.detach()).norm(), torch.tensor(.01), rtol=1e-3, atol=0)
    assert log['grad_norm'] > .01

def test_metrics_that_do_not_apply_are_left_out():
    class Partly(Straight):
        def loss(self, policy, batch):
            losses, _ = super().loss(policy, batch)
            return losses, {'first': torch.tensor([math.nan] * (len(losses) - 1) + [3.]), 'never': math.nan}
    run = fit(with_save(Linear()), DATA, Partly(), replace(ARGS, micro_batch=3))
    assert {row['first'] for row in run.history} == {3.} and {row['never'] for row in run.history} == {None}

def with_save(policy):
    policy.save = lambda folder: torch.save(policy.model.state_dict(), Path(folder) / 'model.pt')
    return policy

@pytest.mark.parametrize('micro', [None, 1, 3])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(value, micro):
    rows = [dict(row, y=value) if i in (2, 5) else row for i, row in enumerate(DATA[:8])]
    policy = Linear()
    with pytest.raises(FloatingPointError, match=r'loss is not finite at \[2') as e:
        optimise_step(policy, Straight(), torch.optim.SGD(policy.model.parameters(), lr=1.), rows, FitArgs(micro_batch=micro))
    assert e.value.rows[0] is rows[2] and bool((policy.model.weight == .1).all())

def test_a_gradient_that_is_not_finite_stops_before_the_step():
    class Root(Straight):                                   # finite loss, infinite slope at zero
        def loss(self, policy, batch): return (policy.model.weight.sum() * 0 + batch['y'] * 0).abs().sqrt(), {}
    policy = Linear()
    with pytest.raises(FloatingPointError, match='gradient is not finite'):
        optimise_step(policy, Root(), torch.optim.SGD(policy.model.parameters(), lr=1.), DATA[:4], FitArgs())
    assert bool((policy.model.weight == .1).all())

def test_fit_names_the_step_and_the_rows_of_the_data(tmp_path):
    data = [dict(row, y=math.inf) if i == 7 else row for i, row in enumerate(DATA)]
    step = next(s for s in range(99) if 7 in Objective().indices(40, s, ARGS))
    with pytest.raises(FloatingPointError, match=rf'step {step + 1}: .*\(rows \[7\] of the data\)'): train(tmp_path, data=data)

@pytest.mark.parametrize('shape', [(), (8, 1), (7,)])
def test_a_loss_of_another_shape_is_refused(shape):
    class Shaped(Straight):
        def loss(self, policy, batch): return policy.model.weight.sum() * torch.ones(shape), {}
    with pytest.raises(ValueError, match=r'Shaped.loss must return one loss a row, shape \(8,\)'):
        fit(Linear(), DATA, Shaped(), ARGS)

def test_bf16_is_near_and_leaves_the_weights_in_float32():
    class Layer(Squares):
        def loss(self, policy, batch): return (policy.model(batch['x']).squeeze(-1) - batch['y']) ** 2, {}
    def step(bf16):
        policy = Linear()
        optimise_step(policy, with_state(Layer()), torch.optim.SGD(policy.model.parameters(), lr=1.), DATA[:8], FitArgs(bf16=bf16, max_grad_norm=math.inf))
        assert policy.model.weight.dtype == torch.float32
        return policy.model.weight.detach()
    a, b = step(False), step(True)
    assert not torch.equal(a, b); close(a, b, rtol=.05, atol=.05)

def with_state(objective): objective.state = {'tokens_generated': 0}; return objective


# ---- fit

def test_same_arguments_same_weights_and_nobody_is_disturbed():
    seed_all(1); a = train(); drawn = random.random(), np.random.rand(), torch.rand(()).item()
    seed_all(2); b = train(on_step=lambda row: torch.rand(random.randrange(1, 5)))
    seed_all(1); assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())
    assert same(a, b) and not same(a, train(args=replace(ARGS, seed=1)))

def test_what_prepare_draws_does_not_change_the_training():
    class Draws(Squares):
        def prepare(self, policy, data): torch.rand(7); return super().prepare(policy, data)
    assert same(train(), fit(Policy(), DATA, Draws(), ARGS))

def test_a_dataset_is_as_good_as_a_list(tmp_path):
    datasets = pytest.importorskip('datasets')                # imported here: it is slow
    a, b = train(tmp_path / 'a'), train(tmp_path / 'b', data=datasets.Dataset.from_list(DATA))
    assert same(a, b)
    assert [json.loads((tmp_path / x / 'run.json').read_text())['data'] for x in 'ab'][0] == T.content_hash(DATA)
    assert same(a, train(tmp_path / 'a', data=datasets.Dataset.from_list(DATA), resume=True))

def test_what_a_run_reports(tmp_path):
    run = train(tmp_path / 'r', meta={'lab': 'toy'})
    assert [row['step'] for row in run.history] == [1, 2, 3, 4, 5, 6] and run.tokens_trained == run.tokens_generated == 48
    assert run.history == [json.loads(line) for line in (tmp_path / 'r' / 'history.jsonl').read_text().splitlines()]
    assert run.dir == tmp_path / 'r' and 0 < run.seconds == run.history[-1]['seconds']
    info = json.loads((tmp_path / 'r' / 'run.json').read_text(), parse_constant=pytest.fail)
    assert info['status'] == 'done' and info['meta'] == {'lab': 'toy'} and info['args']['lr'] == .01 and info['costs'] == run.costs()
    assert info['start'] == T.content_hash(Squares().trained(Policy())) and {'torch', 'python'} <= info['versions'].keys()
    assert not list(tmp_path.rglob('*.part'))

def test_nothing_to_train_on_or_with():
    with pytest.raises(ValueError, match='no rows'): train(data=[])
    frozen = Policy(); frozen.model.requires_grad_(False)
    with pytest.raises(ValueError, match='nothing to train'): train(policy=frozen)

def test_mode_is_restored_and_training_mode_survives_a_callback():
    policy, modes = Policy(), []
    policy.model.eval()
    class Watch(Squares):
        def loss(self, policy, batch): modes.append(policy.model.training); return super().loss(policy, batch)
    fit(policy, DATA, Watch(), ARGS, on_step=lambda row: policy.model.eval())
    assert all(modes) and not policy.model.training

def test_weight_decay_pulls_matrices_only():
    policy = Policy()
    decayed = [p.ndim for g in T._adamw(policy.model, FitArgs(weight_decay=.1)).param_groups if g['weight_decay'] for p in g['params']]
    assert decayed == [2, 2]

def test_several_optimiser_steps_and_a_value_model_in_a_round(tmp_path):
    class TwoSteps(Squares):
        def __init__(self): self.value = nn.Linear(8, 1); nn.init.zeros_(self.value.weight); nn.init.zeros_(self.value.bias)
        def trained(self, policy): return nn.ModuleDict({'model': policy.model, 'value': self.value})
        def batches(self, policy, rows):
            noise = torch.randn(len(rows)).tolist()                 # a rollout draws from the run's streams
            rows = [dict(row, y=row['y'] + e) for row, e in zip(rows, noise)]
            return [rows[:5], rows[5:]]
        def loss(self, policy, batch):
            losses, metrics = super().loss(policy, batch)
            return losses + (self.value(batch['x']).squeeze(-1) - batch['y']) ** 2, metrics
    def run(out=None, **kw):
        objective = TwoSteps()
        return fit(Policy(), DATA, objective, ARGS, out=out, **kw), objective.value.weight.detach()
    class Stop(Exception): pass
    def stop(row):
        if row['step'] == 5: raise Stop
    (a, value), _ = run(), pytest.raises(Stop, run, tmp_path, on_step=stop)
    b, again = run(tmp_path, resume=True)
    assert same(a, b) and torch.equal(value, again) and a.tokens_trained == 48 and value.abs().sum() > 0

def test_quiet_unless_somebody_watches(capsys, monkeypatch):
    train(); assert capsys.readouterr() == ('', '')
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    train(); out, err = capsys.readouterr()
    assert out == '' and '6/6  loss' in err and err.endswith('\n')
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    monkeypatch.setenv('JPY_SESSION_NAME', 'a notebook that somebody has open')
    train(); assert capsys.readouterr() == ('', '')                             # runs of a moment leave no lines below a cell
    after = lambda seconds: T._after_step(dict(step=1, loss=.5, seconds=seconds), None, [], None, None, None, None, FitArgs(steps=2))
    after(2.); assert capsys.readouterr().err == ''
    after(4.); assert '1/2  loss 0.5000  4 s left' in capsys.readouterr().err


# ---- interruption and resumption

def ctrl_c(at):
    def on_step(row):
        if row['step'] == at: signal.raise_signal(signal.SIGINT)
    return on_step

@pytest.mark.parametrize('at', [1, 3, 4, 6])
def test_ctrl_c_finishes_the_step_and_resumes(tmp_path, at):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f'after step {at}: resume=True'): train(tmp_path, args=replace(ARGS, save_every=0), on_step=ctrl_c(at))
    assert signal.getsignal(signal.SIGINT) is before and (tmp_path / 'checkpoint' / 'state.pt').exists()
    assert same(train(), train(tmp_path, args=replace(ARGS, save_every=0), resume=True))

def test_ctrl_c_in_the_middle_of_an_update_does_not_tear_it(tmp_path, monkeypatch):
    step = torch.optim.AdamW.step
    def struck(self, *args):
        signal.raise_signal(signal.SIGINT)
        return step(self, *args)
    with monkeypatch.context() as m:
        m.setattr(torch.optim.AdamW, 'step', struck)
        with pytest.raises(KeyboardInterrupt, match='after step 1'): train(tmp_path)
    assert same(train(), train(tmp_path, resume=True))

def test_a_second_ctrl_c_is_obeyed_at_once(tmp_path):
    class Stuck(Squares):
        def batches(self, policy, rows):
            if getattr(self, 'stuck', False): signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)
            return super().batches(policy, rows)
    Stuck.__name__, objective = 'Squares', Stuck()
    def on_step(row): objective.stuck = row['step'] == 3
    with pytest.raises(KeyboardInterrupt): fit(Policy(), DATA, objective, ARGS, out=tmp_path, on_step=on_step)
    assert same(train(), train(tmp_path, resume=True))

def test_works_in_a_thread(tmp_path):
    runs = []
    t = threading.Thread(target=lambda: runs.append(train(tmp_path))); t.start(); t.join()
    assert same(runs[0], train())

class Cut(Exception): pass
def cut(at):
    def on_step(row):
        if row['step'] == at: raise Cut
    return on_step

@pytest.fixture
def stopped(tmp_path):
    "A run that died after step 5, with its last checkpoint at step 4"
    with pytest.raises(Cut): train(tmp_path / 'run', on_step=cut(5))
    return tmp_path / 'run'

def test_each_part_of_the_checkpoint_is_needed(stopped):
    saved, truth = torch.load(stopped / 'checkpoint' / 'state.pt', weights_only=True), train()
    assert saved.keys() == {'weights', 'optimizer', 'rng', 'state'} and saved['state']['step'] == 4
    with T._own_rng(): seed_all(0); fresh = T._rng()
    for i, fault in enumerate(({}, {'optimizer': None}, {'rng': fresh}, {'state': {**saved['state'], 'step': 3}})):
        copy = shutil.copytree(stopped, stopped.with_name(f'copy{i}'))
        torch.save({**saved, **fault}, copy / 'checkpoint' / 'state.pt')
        assert same(truth, train(copy, resume=True)) == (not fault), fault.keys()

@pytest.mark.parametrize('change, words', [
    (dict(args=replace(ARGS, lr=.02)), 'lr was 0.01, now 0.02'), (dict(args=replace(ARGS, steps=7, seed=3)), 'steps was 6, now 7; seed was 0, now 3'),
    (dict(data=DATA[:-1]), 'rows was 40, now 39'), (dict(data=DATA[::-1]), 'data was'), (dict(policy=Policy(1)), 'start was'),
    (dict(meta={'lab': 'other'}), 'lab was None, now other')])
def test_another_run_is_not_resumed(stopped, change, words):
    before = file_hash(stopped)
    with pytest.raises(ValueError, match='was begun as another run') as e: train(stopped, resume=True, **change)
    assert words in str(e.value) and '\n' not in str(e.value)
    assert file_hash(stopped) == before and same(train(), train(stopped, resume=True))

def test_another_objective_or_kind_of_arguments_is_not_resumed(stopped):
    @dataclass
    class MoreArgs(FitArgs): beta: float = .1
    with pytest.raises(ValueError, match='kind was FitArgs, now MoreArgs.*beta was None, now 0.1'):
        train(stopped, args=MoreArgs(**vars(ARGS)), resume=True)
    with pytest.raises(ValueError, match='objective was Squares, now Straight'): fit(Policy(), DATA, Straight(), ARGS, out=stopped, resume=True)

def test_a_policy_trained_already_is_not_taken_for_the_start(stopped):
    policy = train().policy
    with pytest.raises(ValueError, match='fit trains in place'): train(stopped, policy=policy, resume=True)

def test_nothing_is_written_over(stopped):
    before = file_hash(stopped)
    with pytest.raises(ValueError, match='holds a run already: resume=True'): train(stopped)
    (stopped / 'run.json').rename(stopped / 'gone.json')
    with pytest.raises(ValueError, match='run.json is gone'): train(stopped, resume=True)
    (stopped / 'gone.json').rename(stopped / 'run.json')
    assert file_hash(stopped) == before

def test_a_run_that_never_got_to_a_checkpoint_may_be_begun_anew(tmp_path):
    with pytest.raises(Cut): train(tmp_path, on_step=cut(1))
    assert same(train(args=replace(ARGS, seed=4)), train(tmp_path, args=replace(ARGS, seed=4)))
    assert len((tmp_path / 'history.jsonl').read_text().splitlines()) == 6

def test_resume_starts_where_there_is_nothing_and_returns_what_is_done(tmp_path, monkeypatch):
    a = train(tmp_path / 'new', resume=True)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / 'new').rglob('*') if p.is_file() and p.name != 'history.jsonl'}
    monkeypatch.setattr(Squares, 'prepare', lambda *args: pytest.fail('prepared again'))
    b = train(tmp_path / 'new', resume=True)
    assert same(a, b) and a.history == b.history and a.costs() == b.costs()
    assert files == {p: p.stat().st_mtime_ns for p in files}

def test_a_finished_run_whose_checkpoint_was_deleted_is_trained_again(tmp_path):
    a = train(tmp_path)
    (tmp_path / 'checkpoint' / 'state.pt').unlink()
    assert same(a, train(tmp_path, resume=True)) and json.loads((tmp_path / 'run.json').read_text())['status'] == 'done'

def test_a_damaged_checkpoint_is_one_clear_error(stopped):
    file = stopped / 'checkpoint' / 'state.pt'
    whole, rng = file.read_bytes(), random.Random(0)
    for size in [0, 1, len(whole) - 1] + [rng.randrange(len(whole)) for _ in range(12)]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match='state.pt is damaged .*delete it') as e: train(stopped, resume=True)
        assert '\n' not in str(e.value)
    file.unlink()                                                # the remedy it names
    assert same(train(), train(stopped, resume=True))

def test_a_flipped_bit_is_found_or_does_no_harm(stopped):
    file = stopped / 'checkpoint' / 'state.pt'
    whole, rng, found, saved = file.read_bytes(), random.Random(1), 0, weights_in(file)
    for _ in range(60):
        bad = bytearray(whole); bad[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(bad); policy = Policy(1)
        try:
            with T._own_rng(): load_checkpoint(file, Squares().trained(policy))
        except ValueError: found += 1
        else: assert all(torch.equal(a, b) for a, b in zip(saved, T._trainable(Squares().trained(policy)).values()))
    assert found > 40

def weights_in(file): return list(torch.load(file, weights_only=True)['weights'].values())

def test_a_checkpoint_is_not_a_program(stopped):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(stopped / 'pwned'),)
    torch.save({'weights': Evil()}, stopped / 'checkpoint' / 'state.pt')
    with pytest.raises(ValueError, match='is damaged'): train(stopped, resume=True)
    assert not (stopped / 'pwned').exists()

def test_a_history_that_lost_lines_is_noticed(stopped):
    file = stopped / 'history.jsonl'
    whole = file.read_text(); assert len(whole.splitlines()) == 4            # the callback died before step 5 was noted
    for bad in ('', whole[:len(whole) // 2], whole.replace('{', '[', 1)):
        file.write_text(bad)
        with pytest.raises(ValueError, match='history.jsonl is damaged'): train(stopped, resume=True)
    file.unlink()
    with pytest.raises(ValueError, match='history.jsonl is damaged'): train(stopped, resume=True)
    file.write_text(whole + '{"step": 5, "lo')                               # torn while a line was written: never mind
    assert same(train(), train(stopped, resume=True))

def test_damaged_run_json_is_noticed(stopped):
    (stopped / 'run.json').write_text('{"status": "runn')
    with pytest.raises(ValueError, match='run.json is damaged'): train(stopped, resume=True)

def test_full_disk_while_saving_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        def full(self, folder): (Path(folder) / 'model.pt').write_bytes(b'half'); raise OSError('no space left on device')
        m.setattr(Policy, 'save', full)
        with pytest.raises(OSError): train(tmp_path)
    assert not (tmp_path / 'policy').exists()
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError('no space left on device')))
        with pytest.raises(OSError): train(tmp_path, resume=True)
    assert same(train(), train(tmp_path, resume=True))
    assert torch.load(tmp_path / 'policy' / 'model.pt', weights_only=True).keys() == Policy().model.state_dict().keys()


# ---- checkpoints

def test_checkpoint_leaves_out_frozen_weights_and_keeps_tied_ones_tied(tmp_path):
    def tied(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed); m = nn.ModuleDict({'embed': nn.Embedding(5, 4), 'frozen': nn.Linear(4, 4), 'head': nn.Linear(4, 5, bias=False)})
        m['head'].weight = m['embed'].weight; m['frozen'].requires_grad_(False)
        return m
    a, b = tied(0), tied(1)
    save_checkpoint(tmp_path / 'c' / 's.pt', a, step=1, cache=torch.arange(3))
    assert torch.load(tmp_path / 'c' / 's.pt', weights_only=True)['weights'].keys() == {'embed.weight'}
    with T._own_rng(): state = load_checkpoint(tmp_path / 'c' / 's.pt', b)
    assert torch.equal(a['head'].weight, b['head'].weight) and b['head'].weight is b['embed'].weight
    assert state['step'] == 1 and torch.equal(state['cache'], torch.arange(3)) and not torch.equal(a['frozen'].weight, b['frozen'].weight)

def test_checkpoint_of_another_model_or_none(tmp_path):
    save_checkpoint(tmp_path / 's.pt', nn.Linear(2, 3))
    for other in (nn.Linear(3, 2), nn.Linear(2, 3, bias=False), nn.Sequential(nn.Linear(2, 3))):
        with pytest.raises(ValueError, match='belongs to another model'): load_checkpoint(tmp_path / 's.pt', other)
    with pytest.raises(FileNotFoundError): load_checkpoint(tmp_path / 'none.pt', nn.Linear(2, 3))

def test_random_streams_go_back():
    state = T._rng(); drawn = random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()
    T._rng(state)
    assert drawn == (random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist())


# ---- hashes, cached rows, records

@prop
@given(st.lists(st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.none(), st.lists(st.integers()))), max_size=4))
def test_cached_rows_come_back_as_they_were_and_are_made_once(tmp_path_factory, rows):
    path, made = tmp_path_factory.mktemp('rows') / 'deep' / 'rows.jsonl', []
    def make(): made.append(1); return iter(rows)
    assert cached_rows(path, make) == cached_rows(path, make) == rows and made == [1]
    assert T.content_hash(rows) == T.content_hash([dict(reversed(r.items())) for r in cached_rows(path, make)])

def test_rows_made_of_something_else_are_refused(tmp_path):
    kept = [cached_rows(tmp_path / 'of.jsonl', lambda: [{'a': 1}, {'b': 2}], of=[{'n': 1}]) for _ in range(2)]
    assert kept == [[{'a': 1}, {'b': 2}]] * 2
    with pytest.raises(ValueError, match='of.jsonl was made of other data or settings'): cached_rows(tmp_path / 'of.jsonl', list, of=[{'n': 2}])

def test_rows_that_could_not_be_made_leave_no_file(tmp_path):
    def make(): yield {'a': 1}; raise RuntimeError
    with pytest.raises(RuntimeError): cached_rows(tmp_path / 'r.jsonl', make)
    with pytest.raises(TypeError, match='cannot be written as JSON: object'): cached_rows(tmp_path / 'r.jsonl', lambda: [{'a': object()}])
    assert not list(tmp_path.iterdir())

def test_hashes_see_contents_names_shapes_and_types(tmp_path):
    for name, text in (('a', '1'), ('sub/b', '2')):
        (tmp_path / 'x' / name).parent.mkdir(parents=True, exist_ok=True); (tmp_path / 'x' / name).write_text(text)
    first = file_hash(tmp_path / 'x')
    (tmp_path / 'x' / '.hidden').write_text('not content'); assert file_hash(tmp_path / 'x') == first
    (tmp_path / 'x' / 'a').write_text('2'); assert file_hash(tmp_path / 'x') != first
    def h(t): m = nn.Module(); m.register_buffer('t', t); return T.content_hash(m)
    ts = torch.zeros(2, 2), torch.zeros(4), torch.zeros(2, 2).bfloat16(), torch.zeros(2, 2).int(), torch.tensor(0.), torch.full((2, 2), -0.)
    assert len({h(t) for t in ts}) == 6 and h(torch.arange(4.).reshape(2, 2).T) == h(torch.tensor([[0., 2.], [1., 3.]]))
    with pytest.raises(FileNotFoundError): file_hash(tmp_path / 'none')

@pytest.fixture
def record(tmp_path):
    run = train(args=replace(ARGS, steps=120))
    run.labels = 40
    rows = [run.row('squares', {'gold': {'mean': .1}}, {'gold': {'mean': .9}, 'kl': math.nan, 'n': np.int64(4), 't': torch.tensor([1., 2.])})]
    return write_record(tmp_path / 'toy' / 'squares.json', 'toy', 'squares', rows, world='w' * 64, start='s' * 64, budget='lesson', note='x'), run

def test_record_round_trip(record):
    path, run = record
    found = read_record(path, world='w' * 64, start='s' * 64, budget='lesson', lab='toy', note='x')
    (row,) = found['runs']
    assert row['report'] == {'gold': {'mean': .9}, 'kl': None, 'n': 4, 't': [1., 2.]} and row['start'] == {'gold': {'mean': .1}}
    assert row['costs'] == run.costs() and row['costs']['labels'] == 40 and row['args']['lr'] == .01 and row['seed'] == 0
    assert len(row['history']) == 50 and [row['history'][i]['step'] for i in (0, -1)] == [1, 120]
    close(row['history'][-1]['loss'], run.history[-1]['loss'], rtol=1e-5, atol=0)
    assert found['machine'] == machine() and found['versions'] == versions() and len(found['date']) == 10
    json.loads(path.read_text(), parse_constant=pytest.fail)
    host = os.uname().nodename if hasattr(os, 'uname') else ''
    assert len(host) < 4 or host not in path.read_text()
    assert str(Path.home()) not in path.read_text() or str(Path.home()) == '/'

def test_record_refusals(record, monkeypatch):
    path, _ = record
    with pytest.raises(ValueError, match=r'is refused: world is w+, not other; budget is lesson, not full'): read_record(path, world='other', budget='full')
    with pytest.raises(ValueError, match='nonsense is None, not 1'): read_record(path, nonsense=1)
    whole = path.read_text()
    for bad, words in ((whole[:99], 'damaged'), ('', 'damaged'), ('[]', 'schema is None, not 1'), (whole.replace('"schema": 1', '"schema": 99'), 'schema is 99, not 1')):
        path.write_text(bad)
        with pytest.raises(ValueError, match=words): read_record(path)
    with pytest.raises(FileNotFoundError, match='no such file'): read_record(path.with_name('none.json'))
    with pytest.raises(FileNotFoundError, match='no record toy/none: none is shipped'): read_record('toy/none')
    with pytest.raises(ValueError, match='run 1 of the record lacks seed, costs'):
        rows = [json.loads(whole)['runs'][0], {'method': 'm', 'args': {}}]
        write_record(path, 'toy', 'x', rows, world='w', start='s', budget='b')

def test_shipped_records_are_found_by_name(record, monkeypatch):
    path, _ = record
    (path.parent.parent / 'records').mkdir(); path.parent.rename(path.parent.parent / 'records' / 'toy')
    monkeypatch.setattr(T.resources, 'files', lambda package: path.parent.parent)
    assert read_record('toy/squares', lab='toy')['chapter'] == 'squares'

def test_failing_to_write_a_record_keeps_the_old_one(record):
    path, run = record
    before = path.read_bytes()
    with pytest.raises(TypeError): write_record(path, 'toy', 'x', [run.row('m', object())], world='w', start='s', budget='b')
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ['squares.json']

@pytest.mark.parametrize('steps', [1, 2, 49, 50, 51, 333])
def test_thinned_history_keeps_its_ends(steps):
    run = T.Run(None, [{'step': i + 1, 'loss': 1 / 3} for i in range(steps)], FitArgs(), 1.)
    row = run.row('m')
    assert len(row['history']) == min(50, steps) and row['history'][0]['step'] == 1 and row['history'][-1]['step'] == steps
    assert row['history'][0]['loss'] == .333333
