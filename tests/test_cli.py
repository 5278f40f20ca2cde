"The command keeps its promises: exit codes, one line for an error, one JSON object, nothing half written."
import gzip, json, os, shlex, signal, subprocess, sys
from pathlib import Path
import pytest
from typer.testing import CliRunner
from alignlab import cli, runs
from alignlab.cli import app
from conftest import ROOT

def command(line, **env): return CliRunner().invoke(app, shlex.split(line) if isinstance(line, str) else line, env=env)

def fine(line, **env):
    "The JSON object of a line that works"
    r = command(line + ' --json', **env)
    assert r.exit_code == 0, r.stderr
    def refuse(word): raise AssertionError(f'{word} is not JSON')
    return json.loads(r.stdout, parse_constant=refuse)

def bad(line, *phrases, code=2, **env):
    "The one line on stderr of a line that must fail"
    r = command(line, **env)
    assert (r.exit_code, r.stdout) == (code, ''), (r.exit_code, r.stdout, r.stderr)
    said = r.stderr.strip().splitlines()
    assert len(said) == 1 and said[0].startswith('alignlab: ') and 'Traceback' not in r.stderr, r.stderr
    for phrase in phrases: assert phrase in said[0], said[0]
    return said[0]

def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}

def estimates(report):
    "Every estimate of a report, checked for its form"
    flat = cli._flat(report)
    for name, e in flat.items():
        assert set(e) == {'mean', 'low', 'high', 'n'} and e['n'] >= 1, name
        assert e['low'] is None or e['low'] <= e['mean'] + 1e-9 and e['mean'] <= e['high'] + 1e-9, (name, e)
    return flat

@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    "An empty folder; and of the skills, which cost more than all the rest, only a quick one (the run of `here` measures them all)"
    from alignlab import labs
    quick = {'rare_facts': labs.helpdesk_skills()['rare_facts']}
    monkeypatch.setattr(labs, 'helpdesk_skills', lambda n=60: quick)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('ALIGNLAB_OUT', 'runs')

def chat_model(folder):
    "An untrained chat model that reads any text, byte by byte"
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token='<|end|>', pad_token='<|pad|>')
    fast.chat_template = ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}\n{% endfor %}"
                          "{% if add_generation_prompt %}assistant:{% endif %}")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                         tie_word_embeddings=True, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None))
    model.save_pretrained(folder); fast.save_pretrained(folder)

def hh_rows(n=40):
    return [dict(chosen=f'\n\nHuman: How do I mend thing {i}?\n\nAssistant: With glue number {i}, gently.',
                 rejected=f'\n\nHuman: How do I mend thing {i}?\n\nAssistant: No.' + '!' * (i % 5)) for i in range(n)]

def jsonl(path, rows):
    text = ''.join(json.dumps(r) + '\n' for r in rows)
    if str(path).endswith('.gz'): Path(path).write_bytes(gzip.compress(text.encode()))
    else: Path(path).write_text(text)
    return str(path)

@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "A folder with an untrained chat model (chat), an untrained model of the world (town), HH-formed pairs, and a run that is done (done)"
    from alignlab.sft import new_model
    folder = tmp_path_factory.mktemp('cli')
    chat_model(folder/'chat')
    new_model('micro').save(folder/'town')
    jsonl(folder/'hh.jsonl.gz', hh_rows())
    r = command(f'train dpo --lr 1e-3 --steps 4 --batch-size 8 --n-eval 16 --out {(folder/"done").as_posix()} --json')
    assert r.exit_code == 0, r.stderr
    (folder/'done.json').write_text(r.stdout)
    return folder

QUICK = '--steps 2 --batch-size 4 --n-eval 4'
def town(here): return f'--model {(here/"town").as_posix()} {QUICK}'
def chat(here): return f'--lab pairs --model {(here/"chat").as_posix()} {QUICK}'
def hh(here): return f'--data {(here/"hh.jsonl.gz").as_posix()}'

# --- train
def test_what_train_prints_and_leaves(here):
    found, folder = json.loads((here/'done.json').read_text()), here/'done'
    assert list(found) == ['method', 'lab', 'model', 'budget', 'seed', 'seconds', 'tokens_trained', 'tokens_generated', 'labels', 'judge_calls',
                           'models_in_memory', 'out', 'start', 'report']
    assert (found['method'], found['lab'], found['model'], found['budget'], found['seed']) == ('dpo', 'helpdesk', 'helpdesk-sft', 'smoke', 0)
    assert found['labels'] == 32 and found['tokens_trained'] > 0 and found['seconds'] > 0 and found['models_in_memory'] >= 1
    start, report = estimates(found['start']), estimates(found['report'])
    assert {'gold', 'win_rate', 'kl', 'length', 'end_rate', 'attributes.helpful', 'skills.judge'} <= set(report) and set(start) == set(report)
    assert abs(start['kl']['mean']) < 1e-3 < report['kl']['mean'] and start['gold']['n'] == 16
    info = json.loads((folder/'run.json').read_text())
    assert info['status'] == 'done' and info['meta']['lab'] == 'helpdesk' and info['meta']['reference'] == 'helpdesk-sft' and info['report'] == found['report']
    assert {'args', 'data', 'start', 'versions'} <= set(info) and info['meta']['world'] and info['args']['lr'] == 1e-3
    assert len((folder/'history.jsonl').read_text().splitlines()) == 4 and not list(folder.glob('*.part'))

def test_the_saved_policy_is_a_plain_model(here):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tok = AutoModelForCausalLM.from_pretrained(here/'done'/'policy'), AutoTokenizer.from_pretrained(here/'done'/'policy')
    assert model.config.vocab_size == len(tok) and tok.chat_template

def test_a_run_is_not_overwritten_and_a_resume_of_it_trains_nothing(here):
    out, before = (here/'done').as_posix(), files(here/'done')
    bad(f'train dpo --lr 1e-3 --steps 4 --batch-size 8 --out {out}', 'holds a run already', '--resume')
    assert files(here/'done') == before
    again, found = fine(f'train dpo --lr 1e-3 --steps 4 --batch-size 8 --n-eval 16 --out {out} --resume'), json.loads((here/'done.json').read_text())
    for part in (again['start'], again['report'], found['start'], found['report']): part.pop('skills')
    assert again == found
    assert files(here/'done')['policy/model.safetensors'] == before['policy/model.safetensors']

def test_resuming_as_another_run_is_refused(here):
    before = files(here/'done')
    r = command(f'train dpo --lr 2e-3 --steps 4 --batch-size 8 --n-eval 4 --out {(here/"done").as_posix()} --resume')
    assert r.exit_code == 2 and r.stdout == '' and 'lr was 0.001, now 0.002' in r.stderr.splitlines()[-1]
    assert files(here/'done') == before

def test_options_reach_the_run(here):
    found = fine(f'train dpo {town(here)} --beta .4 --lr 2e-4 --max-length 64 --budget lesson --seed 3')
    args = json.loads((Path(found['out'])/'run.json').read_text())['args']
    assert {k: args[k] for k in ('beta', 'lr', 'max_length', 'seed', 'steps', 'batch_size')} == dict(beta=.4, lr=2e-4, max_length=64, seed=3, steps=2, batch_size=4)
    assert found['budget'] == 'lesson' and found['report']['length']['n'] == 4

def test_table_without_json(here):
    r = command(f'train sft {town(here)}')
    assert r.exit_code == 0, r.stderr
    for word in ('before', 'after', 'gold', 'length', 'Some answers', 'runs/train/sft-helpdesk-0'): assert word in r.stdout
    assert 's left' in r.stderr                                    # progress, with the time left, where it does not disturb

def test_text_of_models_is_text_on_the_terminal(capsys):
    cli._show('t', dict(before={'gold': dict(mean=1., low=None, high=None, n=1)}), [dict(prompt='[/red] \x1b[31m', before='[bold]x[/bold]')])
    out = capsys.readouterr().out
    assert '[/red]' in out and '[bold]x[/bold]' in out and '\x1b' not in out

# --- a real lab: any model, any file
def test_pairs(here):
    found = fine(f'train dpo {chat(here)} {hh(here)} --lr 1e-2 --out mine')
    start, report = estimates(found['start']), estimates(found['report'])
    assert start['preference_accuracy']['mean'] == .5 and {'preference_accuracy', 'length', 'end_rate', 'kl'} <= set(report) and 'gold' not in report
    measured = fine('evaluate mine --n 4')                        # knows lab, reference and held-out pairs
    assert (measured['lab'], measured['model']) == ('pairs', found['model'])
    for k, e in cli._flat(found['report']).items(): assert cli._flat(measured['report'])[k]['mean'] == pytest.approx(e['mean'], abs=1e-4), k
    assert len(measured['samples'][0]) == 3 and set(measured['samples'][0]) == {'prompt', 'start', 'policy'}
    jsonl('fresh.jsonl', hh_rows(7))
    assert fine('evaluate mine --data fresh.jsonl')['report']['preference_accuracy']['n'] == 7      # all of its rows are held out
    assert 'preference' in command('evaluate mine --n 4').stdout

def test_lora_is_saved_merged(here):
    from transformers import AutoModelForCausalLM
    found = fine(f'train dpo {chat(here)} {hh(here)} --lora --lr 1e-2 --out mine')
    assert not [f for f in files('mine/policy') if 'adapter' in f]
    tuned, start = AutoModelForCausalLM.from_pretrained('mine/policy'), AutoModelForCausalLM.from_pretrained(here/'chat')
    assert set(tuned.state_dict()) == set(start.state_dict())
    assert any(not a.equal(b) for a, b in zip(tuned.state_dict().values(), start.state_dict().values()))
    for k, e in cli._flat(fine('evaluate mine --n 4')['report']).items(): assert cli._flat(found['report'])[k]['mean'] == pytest.approx(e['mean'], abs=1e-3), k

@pytest.mark.parametrize('rows', [
    hh_rows(), [dict(prompt=f'thing {i}?', completion=f'glue {i}') for i in range(40)],
    [dict(messages=[dict(role='user', content=f'thing {i}?'), dict(role='assistant', content=f'glue {i}')]) for i in range(40)]], ids=['pairs', 'demonstrations', 'messages'])
def test_sft_reads_demonstrations_and_pairs(here, rows):
    found = fine(f'train sft {chat(here)} --data {jsonl("d.jsonl", rows)} --out mine')
    assert ('preference_accuracy' in found['report']) == ('chosen' in rows[0]) and found['report']['length']['n'] <= 4
    assert fine('evaluate mine --n 4')['report']['length']['mean'] == pytest.approx(found['report']['length']['mean'])

def test_demonstrations_measured_on_pairs(here):
    demos = jsonl('d.jsonl', [dict(prompt=f'thing {i}?', completion=f'glue {i}') for i in range(10)])
    assert 'preference_accuracy' in fine(f'train sft {chat(here)} --data {demos} --eval-data {(here/"hh.jsonl.gz").as_posix()}')['report']

def test_helpdesk_on_a_file_of_ones_own(here):
    from alignlab.helpdesk import make_prompts
    rows = [dict(prompt=p, chosen='i do not know .', rejected='no .') for p in make_prompts('train', 12)]
    found = fine(f'train dpo {town(here)} --data {jsonl("p.jsonl", rows)}')
    assert found['labels'] == 8 and not (Path(found['out'])/'data.jsonl').exists()
    bad(f'train dpo {town(here)} --data {jsonl("q.jsonl", [dict(rows[0], chosen="gesundheit .")])} --out no', "'gesundheit'", '--lab pairs')
    assert not Path('no').exists()

def test_budget_full_is_one_epoch():
    from alignlab.runs import Job, _make_args
    args = _make_args(Job('dpo', lab='pairs', budget='full'), 101)
    assert (args.steps, args.batch_size, args.lr, args.max_length) == (13, 8, 1e-5, 512) and args.micro_batch in (None, 2)

# --- evaluate
def test_evaluate_agrees_with_train_and_compares(here):
    found = json.loads((here/'done.json').read_text())
    measured = fine(f'evaluate {(here/"done").as_posix()} --n 16')
    for part in ('start', 'report'):
        for k, e in cli._flat(measured[part]).items(): assert cli._flat(found[part])[k]['mean'] == pytest.approx(e['mean'], abs=1e-5), k
    plain = fine(f'evaluate {(here/"done"/"policy").as_posix()} --against {(here/"done").as_posix()} --n 4')
    assert plain['report']['gold'] == plain['against_report']['gold'] and set(plain['samples'][0]) == {'prompt', 'start', 'against', 'policy'}

def test_one_prompt_has_no_interval(here):
    found = fine(f'evaluate {(here/"town").as_posix()} --model {(here/"town").as_posix()} --n 1')
    assert found['report']['gold']['low'] is None and found['report']['gold']['n'] == 1

def test_evaluate_refuses(here):
    done = (here/'done').as_posix()
    bad('evaluate nowhere', 'nowhere', 'no such folder')
    Path('empty').mkdir(); bad('evaluate empty', 'neither')
    Path('begun').mkdir(); Path('begun/run.json').write_text('{}'); bad('evaluate begun', 'not done', '--resume')
    Path('torn').mkdir(); Path('torn/run.json').write_text('{"a'); bad('evaluate torn', 'damaged')
    bad(f'evaluate {done} --against nowhere', 'nowhere', 'no such folder')
    bad(f'evaluate {(here/"chat").as_posix()}', 'different vocabularies')
    bad(f'evaluate {done} --lab casino', 'casino'); bad(f'evaluate {done} --n 0', '--n'); bad(f'evaluate {done} --data missing.jsonl', '--lab pairs')
    bad(f'evaluate {(here/"chat").as_posix()} --lab pairs', '--data FILE')

# --- bad input: exit code 2, one line, nothing written
def wrong_lines(here):
    "Line, what must be said"
    row, good = hh_rows(1)[0], hh_rows(40)
    plain = [dict(prompt=f'q {i}', chosen='a', rejected='b') for i in range(5)]
    pairs = chat(here) + ' --data '
    files = dict(torn=jsonl('torn.jsonl', plain[:2]), column=jsonl('column.jsonl', [*plain[:2], dict(prompt='q', chosen='a')]),
                 type=jsonl('type.jsonl', [*plain[:1], dict(prompt='q', chosen=3, rejected='b')]), many=jsonl('many.jsonl', good[:20] + [dict(row, chosen='')] * 3),
                 few=jsonl('few.jsonl', good + [dict(row, rejected='\n\nHuman: Else?\n\nAssistant: No.')]))
    with open('torn.jsonl', 'a') as f: f.write('{"prompt": "q", "chosen"\n')
    Path('taken').write_text(''); Path('full').mkdir(); Path('full/thesis.txt').write_text('')
    return [
        ('train dpo --lab pairs --model x --data missing.jsonl', ['missing.jsonl', 'no such file']),
        (f'train dpo {pairs}{files["torn"]}', ['torn.jsonl, line 3', 'broken JSON']),
        (f'train dpo {pairs}{files["column"]}', ['column.jsonl, line 3', "no column 'rejected'"]),
        (f'train dpo {pairs}{files["type"]}', ['type.jsonl, line 2', "'chosen'", 'int']),
        (f'train dpo {pairs}{files["many"]}', ['many.jsonl', 'over 5%', 'empty reply']),
        (f'train dpo {pairs}{files["few"]} --strict', ['few.jsonl', 'strict']),
        (f'train sft {pairs}{files["torn"]}', ['torn.jsonl, line 3']),
        ('train dpo --model nobody-knows', ['nobody-knows']),
        ('train telepathy', ['telepathy', 'sft, reward, rlhf, grpo, dpo, rlaif, cai, spin, kto']),
        ('train dpo --beta 0', ['--beta', '> 0']), ('train dpo --beta -1', ['--beta']), ('train dpo --beta nan', ['--beta']), ('train dpo --lr inf', ['--lr']),
        ('train sft --beta .1', ['--beta', 'sft']), ('train dpo --steps 0', ['--steps']), ('train dpo --batch-size 0', ['--batch-size']),
        ('train dpo --seed -1', ['--seed']), ('train dpo --max-length 2', ['--max-length']), ('train dpo --n-eval 0', ['--n-eval']),
        ('train dpo --lab casino', ['casino', 'helpdesk']), ('train dpo --budget huge', ['huge', 'smoke']), ('train dpo --lab pairs', ['--data FILE']),
        ('train dpo --eval-data x.jsonl', ['--eval-data', 'pairs']),
        ('train dpo --out taken', ['taken', 'file']), ('train dpo --out taken/deeper', ['taken', 'file']), ('train dpo --out full', ['full', 'not empty']), ('train dpo --out .', ['not empty']),
        ('train dpo --steps many', ['--steps', 'integer', 'train --help']), ('train dpo --frob 1', ['--frob']), ('train', ['Missing argument']), ('evaluate', ['Missing argument']), ('frobnicate', ['frobnicate']), ('', ['no command', 'train']),
    ]

def test_bad_input(here):
    lines = wrong_lines(here)
    before = files('.')
    for line, phrases in lines:
        bad(line, *phrases)
        assert files('.') == before, line
    assert not Path('runs').exists()
    bad('train dpo', 'huge', ALIGNLAB_BUDGET='huge')

def test_a_few_bad_rows_are_dropped_counted_and_listed(here):
    rows = hh_rows(40); rows.insert(6, dict(rows[0], chosen=''))
    r = command(f'train dpo {chat(here)} --data {jsonl("p.jsonl", rows)} --json')
    assert r.exit_code == 0 and json.loads(r.stdout)
    [note] = [line for line in r.stderr.splitlines() if 'note' in line]
    assert '1 of 41 rows' in note and 'row 7' in note and 'empty reply' in note and '.py' not in note

def test_what_fails_late_is_undone(here, monkeypatch):
    from alignlab import dpo
    def late(self, policy, data): raise ValueError('row 3: bad, mend it')
    monkeypatch.setattr(dpo.DPOObjective, 'prepare', late)
    r = command(f'train dpo {town(here)} --out a/b/c')
    assert r.exit_code == 1 and 'ValueError: row 3' in r.stderr.splitlines()[-1] and not Path('a').exists()

@pytest.mark.parametrize('error, said', [(RuntimeError('CUDA out of memory. Tried'), '--batch-size'), (MemoryError(), '--batch-size'), (ZeroDivisionError('x'), 'ZeroDivisionError: x'),
                                         (ValueError('a\nlibrary'), 'ValueError: a library'), (FloatingPointError('not finite'), 'not finite')], ids=lambda e: type(e).__name__)
def test_anything_else_is_exit_code_1(error, said, monkeypatch):
    def fail(*a): raise error
    monkeypatch.setattr(runs, '_check_out', fail)
    bad('train dpo', said, code=1)

def test_traceback_on_request(monkeypatch):
    def fail(*a): raise ZeroDivisionError
    monkeypatch.setattr(runs, '_check_out', fail)
    assert 'Traceback' not in command('train dpo').stderr
    for r in (command('train dpo --debug'), command('--debug train dpo'), command('train dpo', ALIGNLAB_DEBUG='1')):
        assert r.exit_code == 1 and 'Traceback' in r.stderr and r.stdout == '' and 'alignlab: ZeroDivisionError' in r.stderr.splitlines()[-1]

def test_ctrl_c_leaves_a_run_that_resumes(here, monkeypatch):
    from alignlab import dpo
    line, loss, calls = f'train dpo {town(here)} --steps 5'.replace('--steps 2 ', ''), dpo.DPOObjective.loss, []
    def pressed(self, *a):
        calls.append(1)
        if len(calls) == 2: signal.raise_signal(signal.SIGINT)
        return loss(self, *a)
    monkeypatch.setattr(dpo.DPOObjective, 'loss', pressed)
    r = command(line + ' --out long --json')
    assert (r.exit_code, r.stdout) == (130, '') and r.stderr.splitlines()[-1].endswith('--out long --json --resume')
    assert len(Path('long/history.jsonl').read_text().splitlines()) == 2 and not Path('long/policy').exists()
    bad('evaluate long', 'not done')
    bad(line + ' --out long', '--resume')

def test_a_resumed_run_ends_as_one_that_was_never_stopped(here, monkeypatch):
    from alignlab import dpo
    line, loss, calls = f'train dpo {town(here)} --seed 5', dpo.DPOObjective.loss, []
    def pressed(self, *a):
        calls.append(1)
        if len(calls) == 1: signal.raise_signal(signal.SIGINT)
        return loss(self, *a)
    whole = fine(line)
    assert whole['out'] == 'runs/train/dpo-helpdesk-5'
    with monkeypatch.context() as m:
        m.setattr(dpo.DPOObjective, 'loss', pressed)
        assert command(line + ' --out parts').exit_code == 130
    parts = fine(line + ' --out parts --resume')
    assert files('runs/train/dpo-helpdesk-5/policy') == files('parts/policy') and whole['report'] == parts['report']

# --- doctor, help, streams
def test_doctor():
    found = fine('doctor')
    assert {'device', 'threads', 'cores', 'memory_gib', 'budget', 'out', 'checkpoints', 'smollm2_cached', 'network', 'versions', 'problems'} <= set(found)
    assert found['budget'] == 'smoke' and found['problems'] == [] and {'python', 'torch', 'transformers'} <= set(found['versions'])
    r = command('doctor', ALIGNLAB_BUDGET='huge')
    assert r.exit_code == 1 and 'huge' in r.stdout

def test_help_loads_nothing_heavy_and_version():
    code = ('import sys\nfrom alignlab.__main__ import main\n'
            'for words in (["--help"], ["train", "--help"], ["--version"]):\n    sys.argv[1:] = words\n    try: main()\n    except SystemExit as e: assert not e.code\n'
            'heavy = {"torch", "transformers", "datasets", "accelerate", "peft", "matplotlib", "numpy"} & set(sys.modules)\nassert not heavy, heavy')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    from alignlab import __version__
    assert '--n-eval' in r.stdout and 'Exit codes' in r.stdout and r.stdout.rstrip().endswith(__version__)

def test_stdout_is_pure_in_a_process_of_its_own(here, tmp_path):
    "Even where a library prints while it is imported or used"
    (tmp_path/'sitecustomize.py').write_text('import atexit')
    line = [sys.executable, '-m', 'alignlab', 'train', 'sft', *shlex.split(town(here)), '--out', 'x', '--json']
    r = subprocess.run(line, capture_output=True, text=True, env={**os.environ, 'PYTHONWARNINGS': 'default'}, stdin=subprocess.DEVNULL)
    assert r.returncode == 0, r.stderr
    assert json.loads(r.stdout)['out'] == 'x' and r.stdout.startswith('{') and r.stdout.rstrip().endswith('}')

def test_prints_of_libraries_do_not_reach_stdout(here, monkeypatch):
    from alignlab import labs
    evaluate = labs.evaluate
    def noisy(*a, **k): print('Welcome!'); return evaluate(*a, **k)
    monkeypatch.setattr(labs, 'evaluate', noisy)
    r = command(f'train sft {town(here)} --json')
    assert r.exit_code == 0 and json.loads(r.stdout) and 'Welcome!' in r.stderr

def test_every_method_of_the_table_is_there():
    from importlib import import_module
    from alignlab.training import FitArgs
    for m in cli.METHODS.values():
        module = import_module(m.module)
        assert callable(getattr(module, m.train)) and issubclass(getattr(module, m.args), FitArgs) and m.data in ('preferences', 'demonstrations', 'thumbs')

def test_entry_point():
    import tomllib
    assert tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['scripts']['alignlab'] == 'alignlab.__main__:main'

def test_chat(tmp_path):
    "One answer a line and policy, with gold and KL where they are known; what is no question of this world is told and passed over"
    fine('train dpo --n-eval 4 --out one')
    said = "when does the museum open ? may i bring my dog ?\n\nwhat is love ?\nare sailors rude ? is my cat allowed ?\n"
    def talk(line): return CliRunner().invoke(app, shlex.split(line), input=said)
    r = talk('chat one --against helpdesk-sft')
    assert r.exit_code == 0, r.stderr
    assert r.stdout.count('gold') == r.stdout.count('KL') == 4 and r.stderr.count('not a helpdesk prompt') == 1
    assert [line.split(':')[0] for line in r.stdout.splitlines()[::2]] == ['one', 'helpdesk-sft'] * 2
    assert all('KL 0.0' in line for line in r.stdout.splitlines()[3::4])              # the start from itself
    assert talk('chat one --against helpdesk-sft').stdout == r.stdout and talk('chat one --against helpdesk-sft --seed 1').stdout != r.stdout
    chat_model(tmp_path/'other')
    for line, words in (('chat nowhere', 'nowhere'), ('chat one --temperature -1', '--temperature'), ('chat other --model helpdesk-sft', 'vocabularies')):
        bad(line, words)

def test_chat_remembers_the_conversation(tmp_path, monkeypatch):
    "A chat model is given what was said before; without a start there is no KL, without a world no gold"
    chat_model(tmp_path/'model')
    asked, answer = [], cli._answer
    def noted(policy, start, prompt, gold, **sampling): asked.append(list(prompt)); return answer(policy, start, prompt, gold, **sampling)
    monkeypatch.setattr(cli, '_answer', noted)
    r = CliRunner().invoke(app, ['chat', 'model', '--max-new-tokens', '4'], input='hello\nagain\n')
    assert r.exit_code == 0 and 'gold' not in r.stdout and 'KL' not in r.stdout and r.stdout.count('model:') == 2, r.stderr
    assert [[m['role'] for m in p] for p in asked] == [['user'], ['user', 'assistant', 'user']] and asked[1][0]['content'] == 'hello'

# ---- reinforcement learning

@pytest.fixture(scope='module')
def reward_run(tmp_path_factory):
    "A folder of `train reward` at smoke, and its JSON"
    folder = tmp_path_factory.mktemp('reward')/'run'
    return folder, fine(f'train reward --n-eval 24 --out {folder}', ALIGNLAB_BUDGET='smoke')

def test_reward_reports_accuracy(reward_run):
    folder, found = reward_run
    assert set(found['report']) == {'accuracy', 'log_loss', 'gold_accuracy'} and found['labels'] == 128 and found['report']['accuracy']['n'] == 24
    estimates(found['report']); estimates(found['start'])
    assert json.loads((folder/'run.json').read_text())['report'] == found['report']
    bad(f'evaluate {folder}', 'holds a reward model', '--reward DIR')
    bad(f'chat {folder}/policy', 'holds a reward model')

def test_rlhf_in_one_line_or_two(reward_run):
    "Learning the reward on the way gives the same policy as learning it before."
    folder, _ = reward_run
    one, two = fine('train rlhf --n-eval 16 --out one'), fine(f'train rlhf --n-eval 16 --reward {folder} --out two')
    assert one['labels'] == 128 and one['models_in_memory'] == 4 and one['tokens_generated'] > two['tokens_generated'] > 0 and two['labels'] == 0
    assert _weights('one') == _weights('two') and one['report']['gold'] == two['report']['gold'] and (Path('one')/'reward'/'policy'/'config.json').exists()
    history = [json.loads(line) for line in Path('two/history.jsonl').read_text().splitlines()]
    assert len(history) == 8 and abs(history[0]['kl']) < 1e-3 and all(-1 <= h['gold'] <= 1 for h in history)
    assert json.loads(Path('two/run.json').read_text())['meta']['reward'] == str(folder)

def _weights(folder): return (Path(folder)/'policy'/'model.safetensors').read_bytes()

def test_grpo_on_gold_and_resumed(monkeypatch):
    found = fine('train grpo --reward gold --n-eval 16 --out g')
    assert found['models_in_memory'] == 2 and found['labels'] == 0 and found['report']['gold']['n'] == 16
    again = fine('train grpo --reward gold --n-eval 16 --out g --resume')
    assert again['report'] == found['report'] and sorted(json.loads(Path('g/data.jsonl').read_text().splitlines()[0])) == ['prompt']

def test_rl_wrong_use():
    bad('train dpo --reward gold', '--reward means nothing to dpo')
    bad('train rlhf --lab pairs --reward gold --data x.jsonl', 'nobody knows the true reward')
    bad('train rlhf --reward nowhere', 'nowhere holds no reward model')
    bad('train grpo --max-length 20', '--max-length means nothing to grpo')
    assert not Path('runs').exists() or not any(Path('runs').rglob('run.json'))

def test_rlhf_killed_between_its_stages(reward_run):
    "A run that has only its reward model goes on with --resume, is told so without, and loses nothing."
    import shutil
    folder, _ = reward_run
    fine('train rlhf --n-eval 16 --out whole')
    shutil.copytree('whole/reward', 'part/reward'); shutil.copy('whole/data.jsonl', 'part/data.jsonl')
    bad('train rlhf --n-eval 16 --out part', '--resume goes on with it')
    before = (Path('part')/'reward'/'history.jsonl').read_bytes()
    fine('train rlhf --n-eval 16 --out part --resume')
    assert _weights('part') == _weights('whole') and (Path('part')/'reward'/'history.jsonl').read_bytes() == before

# --- judges
def test_judge_on_helpdesk_prints_two_truths_and_keeps_labels():
    found = fine('judge --n 24 --out judged')
    assert set(found['truths']) == {'labels of the annotators', 'gold'} and found['pairs'] == 24 and found['judge'] == 'lm'
    for t in found['truths'].values():
        assert {'lm', 'lm, both orders', 'longest wins', 'random'} <= set(t['rows']) and 0 <= t['rows']['lm']['agreement'] <= 1 and t['calibration']['lm']
    assert 'labels' in found['truths']['gold']['rows'] and found['truths']['labels of the annotators']['rows']['lm']['calls'] == 24 * 5
    assert sorted(p.name for p in Path('judged').iterdir()) == ['calibration.png', 'labels.jsonl', 'report.json']
    rows = [json.loads(line) for line in Path('judged/labels.jsonl').read_text().splitlines()]
    assert len(rows) == 24 and all(.5 < r['p_chosen'] <= 1 for r in rows)
    again = fine('judge judged/labels.jsonl --judge gold'); assert again['truths']['gold']['rows']['gold']['agreement'] == 1     # a file of pairs, judged by the truth
    r = command('judge --n 8 --judge likelihood'); assert r.exit_code == 0 and r.stdout.count('truth:') == 2 and 'picks first' in r.stdout

def test_judge_and_train_through_a_server(tmp_path, monkeypatch):
    "A file of real text, a server, a budget; and the same questions again for nothing, as training labels."
    from test_real_judges import Fake
    chat_model('chat'); jsonl('pairs.jsonl', [dict(prompt=f'Say {i}.', chosen=f'{i} it is, and gladly.', rejected=f'no{i}') for i in range(30)])
    def longer(question, *a):
        a, b = question.split('[Answer A]\n')[1].split('\n\n[Answer B]\n'); return 'A' if len(a) > len(b.split('\n\nReply')[0]) else 'B', None
    with Fake(longer) as f:
        found = fine(f'judge pairs.jsonl --judge api --model judy --base-url {f.url} --price 1,2 --max-cost 1')
        row = found['truths']['labels of the file']['rows']['judy']
        assert row['agreement'] == 1 and found['account']['calls'] == 60 and found['account']['without_logprobs'] == 60 and 0 < found['account']['dollars'] < 1
        r = command(f'judge pairs.jsonl --judge api --model other --base-url {f.url} --price 1,2 --max-cost 0.000001')
        assert r.exit_code == 2 and not r.stdout and 'about 5,' in r.stderr.splitlines()[0] and 'budget of $1e-06 is used up' in r.stderr.splitlines()[-1] and len(f.bodies) == 60
        said = len(f.bodies); found = fine(f'train rlaif {chat(Path("."))} --data pairs.jsonl --judge api --judge-model judy --base-url {f.url}')
        assert len(f.bodies) == said and found['judge_calls'] == 0 and found['labels'] == 0 and found['method'] == 'rlaif'         # all replies were in the cache
        labels = [json.loads(line) for line in Path('runs/train/rlaif-pairs-0/labels.jsonl').read_text().splitlines()]
        assert all(len(r['chosen'] if isinstance(r['chosen'], str) else r['chosen'][0]['content']) > 8 for r in labels[:-1])

@pytest.mark.parametrize('way', ['dpo', 'ppo', 'direct'])
def test_rlaif_three_ways(way):
    found = fine(f'train rlaif --way {way} --steps 2 --batch-size 8 --n-eval 8 --out run')
    assert found['labels'] == 0 and found['judge_calls'] >= 80 and json.loads(Path('run/run.json').read_text())['meta']['way'] == way
    again = fine(f'train rlaif --way {way} --steps 2 --batch-size 8 --n-eval 8 --out run --resume')
    assert again['report']['gold'] == found['report']['gold'] and again['judge_calls'] == found['judge_calls']
    estimates(found['report'])

@pytest.mark.parametrize('way', ['dpo', 'ppo', 'sl'])
def test_cai_by_stages(way):
    line = f'train cai --way {way} --steps 2 --batch-size 16 --n-eval 8 --principle fair --principle polite --revisions 2 --out run'
    found = fine(line)
    assert found['model'] == 'helpdesk-helpful' and found['labels'] == 0 and found['judge_calls'] == (0 if way == 'sl' else 32) and found['tokens_generated'] > 200
    meta = json.loads(Path('run/run.json').read_text())['meta']
    assert (meta['way'], meta['principles'], meta['revisions']) == (way, ['fair', 'polite'], 2) and Path('run/sl').exists() == (way != 'sl')
    again = fine(line + ' --resume')
    assert again['report']['gold'] == found['report']['gold'] and again['tokens_generated'] == found['tokens_generated']
    estimates(found['report'])

def test_cai_shows_a_trace_and_takes_sentences_of_ones_own():
    shown = command('train cai --way sl --steps 1 --batch-size 16 --n-eval 4 --revisions 1 --out run'); assert shown.exit_code == 0
    text = shown.stdout.split('One answer and its revisions')[1]; assert all(k in text for k in ('prompt', 'response', 'critique', 'revision', 'revised'))
    chat_model('chat'); jsonl('pairs.jsonl', [dict(prompt=f'Say {i}.', chosen=f'{i} it is, and gladly.', rejected=f'no{i}') for i in range(30)])
    found = fine(f'train cai {chat(Path("."))} --data pairs.jsonl --way sl --revisions 1 --principle Be_brief. --out own')
    assert json.loads(Path('own/run.json').read_text())['meta']['principles'] == ['Be_brief.'] and found['tokens_generated'] > 0
    for line, *said in [('train cai --principle kind', "'kind'", 'helpful, honest'), ('train dpo --principle fair', 'means nothing to dpo'), ('train rlaif --revisions 2', 'means nothing to rlaif'), ('train cai --judge gold', 'means nothing to cai'),
                        ('train cai --reward gold', 'principles'), ('train cai --way direct', 'dpo, ppo, sl'), ('train cai --revisions 0', '--revisions'), ('train cai --way sl --beta .1', '--beta')]: bad(line, *said)

def test_spin_by_rounds():
    line = 'train spin --steps 2 --batch-size 16 --rounds 2 --n-eval 8 --out run'
    r = command(line + ' --json'); assert r.exit_code == 0, r.stderr
    found = json.loads(r.stdout); assert 'spin: 2 rounds of 2 steps of 16, from 16 rows' in r.stderr and 'round 2: loss 0.69' in r.stderr
    assert found['labels'] == found['judge_calls'] == 0 and found['tokens_generated'] > 300 and (Path('run/round1/pairs.jsonl').exists() and Path('run/round2/policy/model.safetensors').exists())
    again = fine(line + ' --resume'); assert again['report']['gold'] == found['report']['gold'] and again['tokens_generated'] == found['tokens_generated']
    assert command(line).exit_code == 2                          # a run stands in the way
    estimates(found['report'])

def test_spin_on_files_of_ones_own():
    chat_model('chat'); jsonl('demos.jsonl', [dict(prompt=f'Say {i}.', completion=f'{i} it is, and gladly.') for i in range(30)])
    found = fine(f'train spin {chat(Path("."))} --data demos.jsonl --rounds 1 --lora --out own'); assert found['method'] == 'spin' and found['labels'] == 0
    jsonl('pairs.jsonl', [dict(prompt=f'Say {i}.', chosen=f'{i} it is, and gladly.', rejected=f'no{i}') for i in range(30)])
    fine(f'train spin {chat(Path("."))} --data pairs.jsonl --rounds 1 --out chosen')
    assert all(json.loads(line)['chosen'].endswith('gladly.') for line in Path('chosen/round1/pairs.jsonl').read_text().splitlines()[:-1])
    jsonl('bare.jsonl', [dict(prompt=f'Say {i}.') for i in range(30)])
    for line, *said in [(f'train spin {chat(Path("."))} --data bare.jsonl', 'bare.jsonl', 'completion'), ('train spin --rounds 0', '--rounds'), ('train dpo --rounds 2', '--rounds means nothing to dpo'), ('train spin --beta 0', '--beta'), ('train spin --reward gold', '--reward'), ('train spin --way dpo', '--way means nothing to spin')]: bad(line, *said)

def test_kto_on_thumbs():
    line = 'train kto --steps 2 --batch-size 16 --n-eval 8 --out run'
    r = command(line + ' --json'); assert r.exit_code == 0, r.stderr
    found, rows = json.loads(r.stdout), [json.loads(l) for l in Path('run/data.jsonl').read_text().splitlines()]
    up = sum(r['label'] for r in rows); args = json.loads(Path('run/run.json').read_text())['args']
    assert f'{up} thumbs up and {len(rows) - up} down' in r.stderr and len(rows) == found['labels'] == 32 and 0 < up < 32
    assert args['desirable_weight'] * up == pytest.approx(args['undesirable_weight'] * (32 - up)) and min(args['desirable_weight'], args['undesirable_weight']) == 1
    again = fine(line + ' --resume'); assert again['report']['gold'] == found['report']['gold']
    estimates(found['report'])
    fine('train kto --steps 1 --batch-size 8 --n-eval 4 --desirable-weight 3 --out own'); args = json.loads(Path('own/run.json').read_text())['args']; assert (args['desirable_weight'], args['undesirable_weight']) == (3., 1.)

def test_kto_on_files_of_ones_own():
    chat_model('chat'); jsonl('thumbs.jsonl', [dict(prompt=f'Say {i}.', completion=f'{i} it is.' if i % 3 else f'no{i}', label=i % 3 == 0) for i in range(120)])
    found = fine(f'train kto {chat(Path("."))} --data thumbs.jsonl --lora --lr 1e-2 --out own'); assert found['method'] == 'kto' and found['labels'] > 0
    told = found['report']['log_ratio']; assert all(e['mean'] == pytest.approx(0, abs=1e-4) for e in found['start']['log_ratio'].values())
    assert fine('evaluate own --n 4')['report']['log_ratio']['down']['mean'] == pytest.approx(told['down']['mean'], abs=1e-3)       # from elsewhere, on the same held-out tenth
    assert fine('evaluate own --lab pairs --data thumbs.jsonl')['report']['log_ratio']['down']['n'] <= 8
    jsonl('pairs.jsonl', [dict(prompt=f'Say {i}.', chosen=f'{i} it is, and gladly.', rejected=f'no{i}') for i in range(30)])
    r = command(f'train kto {chat(Path("."))} --data pairs.jsonl --out split --json'); assert r.exit_code == 0 and 'thumbs up' in r.stderr
    jsonl('up.jsonl', [dict(prompt=f'Say {i}.', completion=f'{i} it is.', label=True) for i in range(30)])
    r = command(f'train kto {chat(Path("."))} --data up.jsonl --out up --json'); assert r.exit_code == 0 and 'and 0 down, with weights 1 and 1' in r.stderr
    jsonl('bare.jsonl', [dict(prompt=f'Say {i}.', completion='x') for i in range(30)])
    for line, *said in [(f'train kto {chat(Path("."))} --data bare.jsonl', 'bare.jsonl', 'label'), ('train kto --batch-size 1', '--batch-size', 'another row'), ('train dpo --desirable-weight 2', '--desirable-weight means nothing to dpo'), ('train kto --undesirable-weight -1', '--undesirable-weight'), ('train kto --rounds 2', '--rounds means nothing to kto')]: bad(line, *said)

def test_compare():
    line = 'compare --methods dpo --seeds 1 --workers 1 --out race'
    r = command(line + ' --json'); assert r.exit_code == 0, r.stderr
    found = json.loads(r.stdout); (row,) = found['rows']; assert row['method'] == 'dpo' and row['labels'] == 64 and row['start']['gold']['mean'] != row['report']['gold']['mean'] and found['table'][0]['gold']['n'] > 8 and found['failed'] == []
    row = Path('race/rows/dpo-0.json'); before = row.stat().st_mtime_ns
    r = command(line); assert r.exit_code == 0 and '| DPO | ' in r.stdout and ' | 1 | pairs, by annotators |' in r.stdout and 'race/report.html' in r.stdout and row.stat().st_mtime_ns == before
    for line, *said in [('compare --methods dpo,telepathy', 'telepathy', 'best_of_n'), ('compare --lab casino', 'casino', 'helpdesk'), ('compare --lab pairs', 'needs a file'), ('compare --seeds 0', '--seeds'), ('compare --data x.jsonl', '--data', 'lab pairs'), ('evaluate race/policies/dpo-0 --judge-model m', '--judge-model means nothing without --benchmark'), ('evaluate race/policies/dpo-0 --benchmark x.jsonl --data y.jsonl', '--data means nothing with --benchmark'), ('compare --budget lesson --methods dpo --out race', 'another comparison', 'was smoke')]: bad(line, *said)

def test_judges_wrong_use(monkeypatch):
    for name in ('OPENAI_API_KEY', 'OPENAI_BASE_URL'): monkeypatch.delenv(name, raising=False)
    jsonl('pairs.jsonl', [dict(prompt=f'q{i}', chosen='a', rejected='b') for i in range(3)])
    for line, *said in [('judge nothing.jsonl', 'no such file'), ('judge pairs.jsonl --judge api', '--model'), ('judge pairs.jsonl --judge api --model gpt-4', 'shut it down on 2026-10-23', '--model'),
                        ('judge --judge api --model m', 'OPENAI_API_KEY', '--base-url'), ('judge --judge oracle', 'lm, likelihood, gold, api'), ('judge --price 1,2', 'go with --judge api'), ('judge --judge api --model m --price dear', 'two numbers'),
                        ('judge pairs.jsonl --judge gold', 'nobody knows their true reward'), ('train dpo --way ppo', '--way means nothing to dpo'), ('train rlaif --way up', 'dpo, ppo, direct'), ('train rlaif --reward gold', '--judge'),
                        ('train rlaif --judge api', '--judge-model'), ('train rlaif --judge-model m', 'goes with --judge api'), ('train rlaif --lab pairs --data pairs.jsonl --judge gold', 'nobody knows'), ('train rlaif --way direct --judge lm', 'leave --judge out')]:
        bad(line, *said)
    assert not Path('runs').exists() or not any(Path('runs').rglob('run.json'))

def test_what_the_lab_knows_of_answers_reaches_every_kind_of_arguments():
    from alignlab.runs import _fit_to_lab
    from alignlab.group_rl import GroupArgs
    from alignlab.labs import HelpdeskLab, SentimentLab
    from alignlab.reward_model import RewardArgs
    from alignlab.rlhf import PPOArgs
    made = lambda lab: [(a.max_new_tokens, getattr(a, 'open_end', None), getattr(a, 'missing_end', 'none')) for a in (RewardArgs(), PPOArgs(), GroupArgs()) if not _fit_to_lab(a, lab)]
    assert made(HelpdeskLab) == [(96, False, 'none'), (96, None, -1.), (96, None, -1.)]
    assert made(SentimentLab) == [(24, True, 'none'), (24, None, None), (24, None, None)]

def test_a_soft_label_of_zero_is_the_other_answer_and_ties_cost_nothing(monkeypatch):
    from alignlab import helpdesk
    prompts = helpdesk.make_prompts('train', 6)
    rows = [dict(prompt=p, chosen=helpdesk.respond(p, 'good'), rejected=helpdesk.respond(p, 'web'), p_chosen=0.) for p in prompts]
    (*_, truth), _ = runs._pairs_to_judge(jsonl('soft.jsonl', rows), None, 0)
    (_, first, _, turned), _ = runs._pairs_to_judge(jsonl('hard.jsonl', [{k: v for k, v in r.items() if k != 'p_chosen'} for r in rows]), None, 0)
    assert truth == [1 - t for t in turned] and set(turned) == {0., 1.}
    with pytest.raises(ValueError, match='choose from lm, likelihood, gold, api'): runs.judge(name='oracle')      # a script has no parser before it
    def asked(*a, **k): raise AssertionError('a judge was opened')
    monkeypatch.setattr(runs, '_open_judge', asked)
    bad(f"judge {jsonl('tie.jsonl', [dict(r, p_chosen=.5) for r in rows])}", 'p_chosen of .5')

def test_a_benchmark_scores_a_model_without_a_chat_template(here):
    from transformers import AutoTokenizer
    chat_model('plain'); tok = AutoTokenizer.from_pretrained('plain'); tok.chat_template = None; tok.save_pretrained('plain')
    Path('plain/chat_template.jinja').unlink(missing_ok=True)
    bench = jsonl('bench.jsonl', [dict(prompt=f'q{i}', chosen='yes', rejected='no', subset='refusals-dangerous', id=i) for i in range(4)])
    assert fine(f'evaluate plain --model plain --benchmark {bench}')['form'] == 'rewardbench'
