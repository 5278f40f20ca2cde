"A real model and real preferences: SmolLM2-135M-Instruct on Anthropic's HH-RLHF, through the command. Mechanics only: two steps."
import json
import pytest
from typer.testing import CliRunner
from alignlab.cli import _flat, app

@pytest.fixture(scope='module')
def smollm2():
    from alignlab.models import load_policy
    try: load_policy('smollm2-135m')
    except ValueError as e: pytest.skip(str(e))
    return 'smollm2-135m'

def command(*words):
    r = CliRunner().invoke(app, [*map(str, words), '--json'])
    assert r.exit_code == 0, r.stderr
    return json.loads(r.stdout), r.stderr

def test_dpo_on_hh(smollm2, shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hh = shared_data/'hh_harmless'/'test.jsonl.gz'
    found, said = command('train', 'dpo', '--lab', 'pairs', '--model', smollm2, '--data', hh, '--n-eval', 4, '--out', 'run')     # smoke: 2 steps x 2 pairs
    assert (found['model'], found['labels'], found['budget']) == (smollm2, 4, 'smoke') and found['tokens_trained'] > 100
    args = json.loads((tmp_path/'run'/'run.json').read_text())['args']
    assert (args['steps'], args['batch_size'], args['lr'], args['max_length']) == (2, 2, 1e-5, 512)
    start, report = _flat(found['start']), _flat(found['report'])
    assert start['preference_accuracy']['mean'] == .5 and start['kl']['mean'] == pytest.approx(0, abs=1e-3) and report['preference_accuracy']['n'] == 4
    assert report['kl']['mean'] != start['kl']['mean'] and 's left' in said
    history = [json.loads(line) for line in (tmp_path/'run'/'history.jsonl').read_text().splitlines()]
    assert history[0]['loss'] == pytest.approx(.6931, abs=2e-3) and len(history) == 2     # policy and reference are one at the first step

    measured, _ = command('evaluate', 'run', '--n', 4)                                    # the saved policy, loaded as anybody would
    assert measured['lab'] == 'pairs' and measured['model'] == smollm2
    for k in ('preference_accuracy', 'length', 'end_rate'): assert _flat(measured['report'])[k]['mean'] == pytest.approx(report[k]['mean'], abs=1e-3), k
    assert all(s['start'] and s['policy'] for s in measured['samples'])

@pytest.mark.slow                                                # test_compare_on_sentiment trains the same, test_dpo_on_hh measures again
def test_dpo_on_sentiment(smollm2, tmp_path, monkeypatch):
    "The same command in the lab where the truth is a program: two steps, gold and win rate in the report."
    pytest.importorskip('vaderSentiment'); monkeypatch.chdir(tmp_path)
    found, _ = command('train', 'dpo', '--lab', 'sentiment', '--n-eval', 4, '--out', 'run')
    start, report = _flat(found['start']), _flat(found['report'])
    assert start['kl']['mean'] == pytest.approx(0, abs=1e-3) and -1 <= report['gold']['mean'] <= 1 and report['win_rate']['n'] == 4 and found['labels'] == 4
    measured, _ = command('evaluate', 'run', '--n', 4)
    assert measured['lab'] == 'sentiment' and _flat(measured['report'])['gold']['mean'] == pytest.approx(report['gold']['mean'], abs=1e-3)

@pytest.mark.slow                                                # 140 s; the others of this file train the same model
def test_rlhf_on_sentiment(smollm2, tmp_path, monkeypatch):
    "A real model, its reward learned from pairs, then PPO; and the program itself as the reward."
    pytest.importorskip('vaderSentiment'); monkeypatch.chdir(tmp_path)
    found, _ = command('train', 'rlhf', '--lab', 'sentiment', '--n-eval', 4, '--out', 'learned')
    history = [json.loads(line) for line in (tmp_path/'learned'/'history.jsonl').read_text().splitlines()]
    assert len(history) == 2 and abs(history[0]['kl']) < 1e-3 and history[0]['ratio'] == pytest.approx(1, abs=.05) and found['labels'] == 4 and found['models_in_memory'] == 4
    assert (tmp_path/'learned'/'reward'/'policy'/'config.json').exists() and _flat(found['report'])['kl']['mean'] != 0
    found, _ = command('train', 'grpo', '--lab', 'sentiment', '--reward', 'gold', '--n-eval', 4, '--lora', '--out', 'gold')
    history = [json.loads(line) for line in (tmp_path/'gold'/'history.jsonl').read_text().splitlines()]
    assert history[0]['score'] == pytest.approx(history[0]['gold'], abs=2) and abs(history[0]['kl']) < 1e-3 and found['labels'] == 0

@pytest.mark.slow                                                # a minute; test_cli asks a tiny chat model the same, and both stages run below
def test_cai_with_a_chat_model(smollm2, tmp_path, monkeypatch):
    "Critiques and revisions by a chat model, few-shot, and two steps on them."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'pairs.jsonl').write_text(''.join(json.dumps(dict(prompt=f'Name {i} birds.', chosen='A wren, a gull.', rejected='No.')) + '\n' for i in range(2, 30)))
    found, _ = command('train', 'cai', '--lab', 'pairs', '--data', 'pairs.jsonl', '--way', 'sl', '--n-eval', 2, '--revisions', 1, '--principle', 'helpful', '--principle', 'Answer in one sentence.', '--out', 'run')
    *traces, spent = [json.loads(line) for line in (tmp_path/'run'/'revisions.jsonl').read_text().splitlines()]
    assert len(traces) == 2 and all(len(t['steps']) == 1 and t['steps'][0]['principle'] in ('helpful', 'Answer in one sentence.') for t in traces) and spent['tokens_generated'] > 60
    history = [json.loads(line) for line in (tmp_path/'run'/'history.jsonl').read_text().splitlines()]
    assert len(history) == 2 and found['labels'] == found['judge_calls'] == 0 and _flat(found['report'])['kl']['mean'] != 0

def test_cai_on_sentiment(smollm2, tmp_path, monkeypatch):
    "A base model, without a chat template, with adapters: both stages, two steps each."
    pytest.importorskip('vaderSentiment'); monkeypatch.chdir(tmp_path)
    found, _ = command('train', 'cai', '--lab', 'sentiment', '--lora', '--n-eval', 2, '--revisions', 1, '--out', 'run')
    history = [json.loads(line) for line in (tmp_path/'run'/'history.jsonl').read_text().splitlines()]
    assert len(history) == 2 and history[0]['loss'] == pytest.approx(.6931, abs=2e-3) and found['judge_calls'] in (2, 4) and found['labels'] == 0     # equal answers are not compared
    assert (tmp_path/'run'/'sl'/'policy'/'config.json').exists() and 'gold' in _flat(found['report'])

def test_spin_on_constraints(smollm2, tmp_path, monkeypatch):
    "A chat model with adapters against itself, two rounds of a step each."
    monkeypatch.chdir(tmp_path)
    found, said = command('train', 'spin', '--lab', 'constraints', '--lora', '--rounds', 2, '--steps', 1, '--n-eval', 2, '--out', 'run')
    for k in (1, 2):
        history = [json.loads(line) for line in (tmp_path/'run'/f'round{k}'/'history.jsonl').read_text().splitlines()]
        assert len(history) == 1 and history[0]['loss'] == pytest.approx(.6931, abs=2e-3) and f'round {k}: loss 0.69' in said
    assert found['labels'] == 0 and found['tokens_generated'] > 20 and (tmp_path/'run'/'policy'/'config.json').exists() and 'gold' in _flat(found['report'])

def test_kto_on_hh(smollm2, shared_data, tmp_path, monkeypatch):
    "Pairs of people, split into thumbs: two steps with adapters."
    monkeypatch.chdir(tmp_path)
    found, said = command('train', 'kto', '--lab', 'pairs', '--data', shared_data/'hh_harmless'/'test.jsonl.gz', '--lora', '--n-eval', 2, '--out', 'run')
    history = [json.loads(line) for line in (tmp_path/'run'/'history.jsonl').read_text().splitlines()]
    assert len(history) == 2 and history[0]['loss'] == pytest.approx(.5, abs=2e-3) and found['labels'] == 4 and '2 thumbs up and 2 down' in said

def test_kto_on_constraints(smollm2, tmp_path, monkeypatch):
    "Thumbs of the lab's own annotators on the model's own answers."
    monkeypatch.chdir(tmp_path)
    found, said = command('train', 'kto', '--lab', 'constraints', '--n-eval', 4, '--out', 'run')
    thumbs = [json.loads(line) for line in (tmp_path/'run'/'data.jsonl').read_text().splitlines()]
    assert len(thumbs) == found['labels'] == 4 and f"{sum(r['label'] for r in thumbs)} thumbs up" in said and 'attributes.word' in _flat(found['report'])

def test_grpo_on_constraints(smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _ = command('train', 'grpo', '--lab', 'constraints', '--reward', 'gold', '--n-eval', 4, '--out', 'run')
    start = _flat(found['start'])
    assert set(start) >= {'gold', 'attributes.word', 'attributes.short', 'attributes.question'} and start['gold']['mean'] == pytest.approx(sum(start[f'attributes.{k}']['mean'] for k in ('word', 'short', 'question')) / 3, abs=1e-6)

def test_rlhf_on_hh(smollm2, shared_data, tmp_path, monkeypatch):
    "A reward model from human preferences, and two steps of PPO against it."
    monkeypatch.chdir(tmp_path)
    found, _ = command('train', 'rlhf', '--lab', 'pairs', '--data', shared_data/'hh_harmless'/'test.jsonl.gz', '--n-eval', 2, '--lora', '--out', 'run')
    history = [json.loads(line) for line in (tmp_path/'run'/'history.jsonl').read_text().splitlines()]
    assert len(history) == 2 and abs(history[0]['kl']) < 1e-3 and 'gold' not in history[0] and found['labels'] == 4

def test_compare_on_sentiment(smollm2, tmp_path, monkeypatch):
    "Three methods on a real model, one row each in the table; RLAIF asks the start's own likelihoods."
    pytest.importorskip('vaderSentiment'); monkeypatch.chdir(tmp_path)
    found, said = command('compare', '--lab', 'sentiment', '--methods', 'dpo,rlaif,kto', '--seeds', 1, '--workers', 1, '--out', 'race')
    rows = {r['method']: r for r in found['table']}
    assert found['failed'] == [] and list(rows) == ['dpo', 'rlaif', 'kto'] and {m: (r['labels'], r['judge_calls']) for m, r in rows.items()} == dict(dpo=(4, 0), rlaif=(0, 8), kto=(4, 0))
    assert all(-1 <= r['gold']['mean'] <= 1 and r['tax'] is None and r['tokens_trained'] > 50 for r in rows.values()) and 'min to go' in said
    page = (tmp_path/'race'/'report.html').read_text(); assert 'measured on sentiment' in page and page.count('data:image/png') == 3

def test_compare_on_pairs_and_a_benchmark(smollm2, tmp_path, monkeypatch):
    "Held-out pairs in place of gold, a benchmark's file beside them, and what knows nothing."
    monkeypatch.chdir(tmp_path)
    pairs = [dict(prompt=f'Name {i} birds.', chosen='A wren, a gull.', rejected=f'No, never {i}.') for i in range(40)]
    for name, rows in (('pairs', pairs), ('bench', [dict(p, subset='donotanswer') for p in pairs[:4]])): (tmp_path/f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    found, _ = command('compare', '--lab', 'pairs', '--model', smollm2, '--data', 'pairs.jsonl', '--methods', 'dpo', '--seeds', 1, '--workers', 1, '--benchmark', 'bench.jsonl', '--out', 'race')
    (row,) = found['table']
    assert row['gold'] is None and 0 <= row['preference_accuracy']['mean'] <= 1 and row['benchmark']['Safety']['n'] == 4 and row['benchmark']['shortest']['mean'] == 0
    assert (tmp_path/'race'/'report.html').read_text().count('tell right:') == 1
