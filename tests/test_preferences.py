"Preference data: every format reads alike, every fault is named, nothing is dropped in silence, splits do not leak."
import ast, csv, gzip, io, json, math, os, random, string, sys, time, warnings
from collections import Counter
from types import SimpleNamespace as NS
import matplotlib; matplotlib.use('Agg')
import pytest, torch
from datasets import Dataset
from hypothesis import given, settings, strategies as st
from alignlab.preferences import (audit_preferences, binary_to_pairs, collect_binary, collect_preferences, load_binary, load_demonstrations, load_preferences,
    pairs_to_binary, parse_dialogue, plot_length_gap, render_dialogue, split_by_prompt, validate_preferences)
from alignlab.preferences import _hub_offline, _seed_for
from conftest import ROOT

PAIRS = [dict(prompt=f'when does bus {i} leave?', chosen=f'at {i}', rejected='no, "sorry"\nbye') for i in range(40)]
user, assistant = (lambda t, r=r: {'role': r, 'content': t} for r in ('user', 'assistant'))
lines = lambda rows: '\n'.join(json.dumps(r) for r in rows).encode()
quick = settings(derandomize=True, deadline=None, max_examples=30)

def as_csv(rows):
    out = io.StringIO(newline=''); w = csv.DictWriter(out, rows[0]); w.writeheader(); w.writerows(rows)
    return out.getvalue().encode()
def as_parquet(rows):
    out = io.BytesIO(); Dataset.from_list(rows).to_parquet(out); return out.getvalue()
def put(folder, name, data):
    path = folder/name; path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data); return path
def quietly(fn, *args, **kw):
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always'); out = fn(*args, **kw)
    return out, [str(x.message) for x in w]

# --- formats
FILES = {'a.jsonl': lines, 'a.json': lambda r: json.dumps(r, indent=1).encode(), 'b.json': lines, 'a.csv': as_csv, 'a.parquet': as_parquet,
         'a.jsonl.gz': lines, 'a.json.gz': lambda r: json.dumps(r).encode(), 'a.csv.gz': as_csv, 'bom.jsonl': lambda r: b'\xef\xbb\xbf' + lines(r),
         'crlf.jsonl': lambda r: lines(r).replace(b'\n', b'\r\n') + b'\r\n\r\n', 'A.JSONL': lines}
@pytest.mark.parametrize('name', FILES)
def test_all_kinds_of_file_read_alike(name, tmp_path):
    ds, warned = quietly(load_preferences, put(tmp_path, name, FILES[name](PAIRS)))
    assert ds.to_list() == PAIRS and not warned and ds.column_names == ['prompt', 'chosen', 'rejected']

def test_rows_in_memory_read_alike():
    assert load_preferences(PAIRS).to_list() == load_preferences(Dataset.from_list(PAIRS)).to_list() == PAIRS

def test_a_str_path_and_u2028_inside_a_text(tmp_path):
    row = dict(prompt='p', chosen='a\u2028b\x85c', rejected='b')
    path = put(tmp_path, 'a.jsonl', json.dumps(row, ensure_ascii=False).encode())
    assert load_preferences(str(path)).to_list() == [row]

def test_other_columns_go_and_soft_labels_stay(tmp_path):
    rows = [dict(r, p_chosen=.25 + i/100, score=3) for i, r in enumerate(PAIRS)]
    for name in ('a.jsonl', 'a.csv', 'a.parquet'):
        ds = load_preferences(put(tmp_path, name, FILES[name](rows)))
        assert ds.column_names == ['prompt', 'chosen', 'rejected', 'p_chosen'] and ds['p_chosen'][:] == [r['p_chosen'] for r in rows]

P, C, R = [user('hi')], [assistant('hello')], [assistant('no')]
@pytest.mark.parametrize('row', [
    dict(prompt=P, chosen=C, rejected=R), dict(prompt=P, chosen='hello', rejected='no'), dict(prompt='hi', chosen=C, rejected=R),
    dict(chosen=P + C, rejected=P + R), dict(prompt='hi', chosen=P + C, rejected=P + R), dict(prompt=P, chosen=P + C, rejected=P + R),
    dict(prompt=[dict(P[0], id=1, name='x')], chosen=C, rejected=R),
    dict(chosen='\n\nHuman: hi\n\nAssistant: hello', rejected='\n\nHuman: hi\n\nAssistant: no'),
    dict(chosen='Human: hi\n\nAssistant:hello\n', rejected='\n\nHuman: hi  \n\nAssistant:  no '),
    dict(chosen='\r\n\r\nHuman: hi\r\n\r\nAssistant: hello', rejected='\n\nHuman: hi\n\nAssistant: no')])
def test_every_way_to_write_a_chat(row):
    assert load_preferences([row]).to_list() == [dict(prompt=P, chosen=C, rejected=R)]

def test_system_messages_and_longer_dialogues():
    head = [dict(role='system', content='be brief'), user('hi'), assistant('yes?'), user('when?')]
    ds = load_preferences([dict(chosen=head + C, rejected=head + R)])
    assert ds[0] == dict(prompt=head, chosen=C, rejected=R)

def test_trl_takes_what_we_make():
    from trl.data_utils import is_conversational, unpair_preference_dataset
    chat, text = load_preferences([dict(chosen=P + C, rejected=P + R)]), load_preferences(PAIRS)
    assert is_conversational(chat[0]) and not is_conversational(text[0])
    for ds in (chat, text): assert unpair_preference_dataset(ds).select_columns(['prompt', 'completion', 'label']).to_list() == pairs_to_binary(ds).to_list()

# --- structural faults: file, row, remedy
GOOD = json.dumps(PAIRS[0])
STRUCTURAL = [
    ('a.jsonl', f'{GOOD}\n\n{GOOD[:-5]}', ['a.jsonl, line 3: broken JSON', 'one object']),
    ('a.jsonl', '[' * 100_000, ['a.jsonl, line', 'broken JSON']),
    ('a.jsonl', f'{GOOD}\n{{"prompt": {"9" * 5000}}}', ['a.jsonl, line 2: broken JSON']),
    ('a.json', '[\n{"prompt": "a"\n{}]', ['a.json, line 3: broken JSON']),
    ('a.json', '{"prompt": "a",', ['a.json, line 1: broken JSON']),
    ('a.jsonl', f'{GOOD}\n["a"]', ['a.jsonl, line 2: of type list, not an object', 'expected prompt, chosen, rejected']),
    ('a.jsonl', f'{GOOD}\nnull', ['a.jsonl, line 2: of type NoneType']),
    ('a.jsonl', f'{GOOD}\n{{"prompt": "a", "chosen": "b"}}', ["a.jsonl, line 2: no column 'rejected' (there is: prompt, chosen)", 'expected']),
    ('a.json', f'[{GOOD}, {{"chosen": "b", "rejected": "c"}}]', ["a.json, row 2: no column 'prompt'"]),
    ('a.csv', 'prompt,chosen,reject\na,b,c\n', ["a.csv, row 1: no column 'rejected' (there is: prompt, chosen, reject)"]),
    ('a.csv', 'prompt,chosen,rejected\na,b,c\na,b,c,d\n', ['a.csv, row 2: 4 fields, but the header has 3', 'quote']),
    ('a.csv', 'prompt,chosen,rejected\na,b\n', ['a.csv, row 1: 2 fields, but the header has 3']),
    ('a.csv', 'prompt,chosen,rejected\na,"b"x,c\n', ['a.csv, line 2: broken CSV']),
    ('a.csv', b'prompt,chosen,rejected\na,caf\xe9,c\n', ['a.csv, line 2: not UTF-8']),
    ('a.csv', 'prompt,chosen,rejected\n', ['a.csv: no rows']), ('a.jsonl', '', ['a.jsonl: no rows']), ('a.json', '[]', ['a.json: no rows']),
    ('a.jsonl', json.dumps(dict(PAIRS[0], chosen=3)), ["a.jsonl, line 1: 'chosen' is of type int, not text or a list of messages"]),
    ('a.jsonl', json.dumps(dict(PAIRS[0], chosen=assistant('a'))), ["'chosen' is of type dict"]),
    ('a.jsonl', json.dumps(dict(PAIRS[0], chosen=['a'])), ["'chosen' holds a message that is not"]),
    ('a.jsonl', json.dumps(dict(PAIRS[0], chosen=[{'from': 'gpt', 'value': 'a'}])), ["'chosen' holds a message that is not", '"role"']),
    ('a.jsonl', json.dumps(dict(PAIRS[0], chosen=[{'role': 'bot', 'content': 'a'}])), ['system, user, assistant, tool']),
    ('a.jsonl', json.dumps(dict(PAIRS[0], p_chosen='high')), ["a.jsonl, line 1: 'p_chosen' is not a number"]),
    ('a.jsonl', json.dumps(dict(PAIRS[0], p_chosen=.5)) + '\n' + GOOD, ["a.jsonl, line 2: no column 'p_chosen'"]),
    ('a.jsonl', '{"chosen": "The ferry leaves", "rejected": "The ferry is late"}', ["a.jsonl, line 1: no column 'prompt'", r'\n\nHuman: … \n\nAssistant: …']),
    ('a.jsonl', GOOD + '\n' + json.dumps(dict(prompt=P, chosen=C, rejected=R)), ['a.jsonl, line 2: text and messages are mixed (line 1']),
    ('a.parquet', b'PAR1 no', ['a.parquet: broken Parquet']), ('a.txt', GOOD, ['a.txt: unknown kind of file', '.jsonl']),
    ('a.parquet.gz', 'x', ['a.parquet.gz: unknown kind of file']),
]
@pytest.mark.parametrize('name, data, parts', STRUCTURAL, ids=range(len(STRUCTURAL)))
def test_structural_faults_name_file_and_row(name, data, parts, tmp_path):
    path = put(tmp_path, name, data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError) as e: load_preferences(path)
    text = str(e.value)
    assert text.startswith(str(tmp_path)) and '\n' not in text and all(p in text for p in parts), text
    assert e.value.__suppress_context__ or e.value.__cause__ is None

def test_bad_gzip_missing_file_and_folder(tmp_path):
    whole = gzip.compress(lines(PAIRS))
    for data in (b'plain', whole[:-20], whole[:30] + b'\0' * 20 + whole[50:]):
        (tmp_path/'a.jsonl.gz').write_bytes(data)
        with pytest.raises(ValueError, match='a.jsonl.gz: cannot be read'): load_preferences(tmp_path/'a.jsonl.gz')
    for name in ('none.jsonl', 'data/none.csv', 'none'):
        with pytest.raises(ValueError, match='no such file'): load_preferences(name)
    with pytest.raises(ValueError, match='is a folder'): load_preferences(tmp_path)

def test_error_messages_show_no_text_of_the_data(tmp_path):
    for bad in (dict(prompt='SECRET', chosen=['SECRET'], rejected='SECRET'), dict(prompt='SECRET', chosen='SECRET', rejected='SECRET')):
        with pytest.raises(ValueError) as e: load_preferences(put(tmp_path, 'a.jsonl', lines([bad])))
        assert 'SECRET' not in str(e.value)

# --- the Hub
def test_hub_out_of_reach_is_one_error_at_once(monkeypatch):
    import datasets; from huggingface_hub import constants
    for k in list(os.environ):
        if k.lower().endswith('_proxy'): monkeypatch.delenv(k)
    for offline in (True, False):
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline); monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', offline)
        monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:1')
        t = time.time()
        with pytest.raises(ValueError, match='nobody/nothing-here: no such file, and not to be had from the Hub.*cannot be reached.*path of a .jsonl') as e:
            load_preferences('nobody/nothing-here')
        assert time.time() - t < 8 and '\n' not in str(e.value)
        assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (offline, offline)

def test_probe_gives_up_on_a_silent_name_server(monkeypatch):
    monkeypatch.setattr('alignlab.preferences.socket.create_connection', lambda *a, **k: time.sleep(1) or NS(close=lambda: None))
    t = time.time()
    assert _hub_offline('https://example.invalid', wait=.1) and time.time() - t < .9

def test_hub_rows_are_checked_like_any_other(monkeypatch):
    import datasets
    asked = []
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, split: asked.append((name, split)) or Dataset.from_list(PAIRS + [dict(PAIRS[0], rejected='')]))
    ds, warned = quietly(load_preferences, 'org/pairs', split='test')
    assert asked == [('org/pairs', 'test')] and len(ds) == 40 and 'org/pairs: 1 of 41' in warned[0] and 'row 41' in warned[0]

# --- faults of single rows
DIALOGUE = lambda *turns: ''.join(f'\n\n{("Human", "Assistant")[i % 2]}: {t}' for i, t in enumerate(turns))
ROW_FAULTS = [
    (dict(prompt='', chosen='a', rejected='b'), 'empty prompt'), (dict(prompt=' \n', chosen='a', rejected='b'), 'empty prompt'),
    (dict(prompt=None, chosen='a', rejected='b'), 'empty prompt'), (dict(prompt=[], chosen=C, rejected=R), 'empty prompt'),
    (dict(prompt=[user(' ')], chosen=C, rejected=R), 'empty prompt'),
    (dict(prompt='p', chosen='a', rejected=''), 'empty reply'), (dict(prompt='p', chosen='\t', rejected='b'), 'empty reply'),
    (dict(prompt='p', chosen=None, rejected='b'), 'empty reply'), (dict(prompt='p', chosen=[assistant('')], rejected=R), 'empty reply'),
    (dict(prompt='p', chosen='a', rejected='a'), 'identical replies'), (dict(prompt='p', chosen='a', rejected='a \n'), 'identical replies'),
    (dict(prompt='p', chosen=C, rejected=C), 'identical replies'), (dict(prompt='p', chosen='a', rejected='b\ud800'), 'broken Unicode (half a character)'),
    (dict(chosen=P + C, rejected=[user('ho')] + R), 'no shared prompt: the dialogues differ before the last reply'),
    (dict(chosen=P + C + P + C, rejected=P + R), 'no shared prompt: the dialogues differ before the last reply'),
    (dict(chosen=P + C + P, rejected=P + R), "the last turn is not the assistant's"), (dict(chosen=C, rejected=R), 'empty prompt'),
    (dict(prompt='other', chosen=P + C, rejected=P + R), 'the prompt is not that of the dialogues'),
    (dict(chosen=DIALOGUE('hi', 'a'), rejected=DIALOGUE('ho', 'b')), 'no shared prompt: the dialogues differ before the last reply'),
    (dict(chosen=DIALOGUE('hi', 'a', 'more', 'c'), rejected=DIALOGUE('hi', 'b')), 'no shared prompt: the dialogues differ before the last reply'),
    (dict(chosen=DIALOGUE('hi', 'a', 'and'), rejected=DIALOGUE('hi', 'b')), "the last turn is not the assistant's"),
    (dict(chosen=DIALOGUE('hi', 'a') + '\n\nAssistant: more', rejected=DIALOGUE('hi', 'b')), 'turns do not alternate'),
    (dict(chosen=DIALOGUE('hi') + DIALOGUE('hi', 'a'), rejected=DIALOGUE('hi') + DIALOGUE('hi', 'b')), 'turns do not alternate'),
    (dict(chosen=DIALOGUE('hi', ''), rejected=DIALOGUE('hi', 'b')), 'empty reply'), (dict(chosen=DIALOGUE('', 'a'), rejected=DIALOGUE('', 'b')), 'empty prompt'),
    (dict(chosen='', rejected=DIALOGUE('hi', 'b')), 'empty reply'), (dict(chosen='a', rejected=DIALOGUE('hi', 'b')), 'not a dialogue that begins with "Human:"'),
    (dict(chosen=DIALOGUE('hi', 'a'), rejected=DIALOGUE('hi', 'a ')), 'identical replies'),
]
@pytest.mark.parametrize('row, reason', ROW_FAULTS, ids=range(len(ROW_FAULTS)))
def test_row_faults_are_listed_with_their_reason(row, reason):
    ds, dropped = validate_preferences([row])
    assert dropped == [(1, reason)] and len(ds) == 0 and ds.column_names == ['prompt', 'chosen', 'rejected']

@pytest.mark.parametrize('p, ok', [(0, True), (1, True), (.5, True), (-.01, False), (1.01, False), (math.nan, False), (None, False), ('', False)])
def test_soft_labels_are_probabilities(p, ok):
    ds, dropped = validate_preferences([dict(PAIRS[0], p_chosen=p)])
    assert (len(ds) == 1) == ok and (ok or dropped == [(1, 'p_chosen is not within 0 and 1')])

def test_duplicates_are_dropped_and_conflicts_are_not():
    a = PAIRS[0]; flipped = dict(a, chosen=a['rejected'], rejected=a['chosen'])
    ds, dropped = validate_preferences([a, flipped, dict(a), dict(a, chosen=a['chosen'] + ' '), dict(a, prompt='other')])
    assert len(ds) == 3 and dropped == [(3, 'duplicate of an earlier row'), (4, 'duplicate of an earlier row')]

def test_the_list_is_in_the_warning_with_line_numbers(tmp_path):
    text = lines(PAIRS[:20]) + b'\n\n' + lines([dict(PAIRS[0], rejected='')]) + b'\n' + lines(PAIRS[20:]) + b'\n' + lines([PAIRS[5]])
    path = put(tmp_path, 'a.jsonl', text)
    with pytest.warns(UserWarning) as w: ds = load_preferences(path)
    assert len(ds) == 40 and len(w) == 1 and w[0].filename == __file__
    assert str(w[0].message) == f'{path}: 2 of 42 rows cannot be used: 1 empty reply (row 22); 1 duplicate of an earlier row (row 43); left out'
    assert validate_preferences(path)[1] == [(22, 'empty reply'), (43, 'duplicate of an earlier row')]

@pytest.mark.parametrize('good, bad, ok', [(19, 1, True), (18, 1, False), (38, 2, True), (37, 2, False), (0, 1, False), (0, 3, False)])
def test_five_percent(good, bad, ok, tmp_path):
    rows = PAIRS[:good] + [dict(prompt=str(i), chosen='a', rejected='a') for i in range(bad)]
    path = put(tmp_path, 'a.jsonl', lines(rows))
    if ok: assert len(quietly(load_preferences, path)[0]) == good
    else:
        with pytest.raises(ValueError, match=rf'a.jsonl: {bad} of {good+bad} rows .*{bad} identical replies \(rows? {good+1}.*over 5%.*mend or remove'): load_preferences(path)

def test_strict_allows_none_and_passes_clean_files(tmp_path):
    assert len(load_preferences(PAIRS, strict=True)) == 40
    for load, bad in ((load_preferences, dict(prompt='x', chosen='a', rejected='a')), (load_demonstrations, dict(prompt='x', completion=''))):
        rows = [dict(r, completion='c') if 'completion' in bad else r for r in PAIRS] + [bad]
        with pytest.raises(ValueError, match=r'1 of 41 rows .*\(row 41\); strict'): load(put(tmp_path, 'a.jsonl', lines(rows)), strict=True)

def test_what_was_validated_can_be_saved_and_loaded(tmp_path):
    dirty = PAIRS[:10] + [dict(PAIRS[0], chosen='')] * 5
    with pytest.raises(ValueError, match='^data: 5 of 15 rows.*over 5%'): load_preferences(dirty)
    clean, dropped = validate_preferences(dirty)
    clean.to_json(tmp_path/'clean.jsonl')
    assert len(dropped) == 5 and load_preferences(tmp_path/'clean.jsonl', strict=True).to_list() == PAIRS[:10]

# --- thumbs and demonstrations
@pytest.mark.parametrize('spelling', [(True, False), (1, 0), ('True', 'false'), ('1', '0'), (1., 0.)])
def test_labels_in_their_spellings(spelling):
    ds = load_binary([dict(prompt='p', completion=c, label=v) for c, v in zip('ab', spelling)])
    assert ds['label'][:] == [True, False] and ds.features['label'].dtype == 'bool'

@pytest.mark.parametrize('v', ['maybe', 2, None, -1, .5, [], 'up'])
def test_other_labels_are_refused(v):
    with pytest.raises(ValueError, match="data, row 1: 'label' is neither true nor false; expected prompt, completion, label"): load_binary([dict(prompt='p', completion='a', label=v)])

def test_thumbs_keep_disagreement_and_drop_repetition():
    rows = [dict(prompt='p', completion='a', label=v) for v in (True, False, True)] + [dict(prompt='p', completion=str(i), label=True) for i in range(40)]
    ds, warned = quietly(load_binary, rows)
    assert len(ds) == 42 and 'duplicate of an earlier row (row 3)' in warned[0]
    with pytest.raises(ValueError, match="no column 'label'"): load_binary([dict(prompt='p', completion='a')])

def test_demonstrations_as_text_chats_and_dialogues(tmp_path):
    text = load_demonstrations(put(tmp_path, 'a.csv', b'prompt,completion\nhi,hello\n'))
    chats = [load_demonstrations([row]) for row in (dict(messages=P + C), dict(prompt='hi', messages=P + C), dict(prompt='hi', completion=C), dict(completion=DIALOGUE('hi', 'hello')))]
    assert text.to_list() == [dict(prompt='hi', completion='hello')] and all(c.to_list() == [dict(prompt=P, completion=C)] for c in chats)
    with pytest.raises(ValueError, match="no column 'completion'"): load_demonstrations(PAIRS)

# --- dialogues
plain_text = st.text(st.characters(exclude_characters='\r', exclude_categories=['Cs']), min_size=1, max_size=30)
marked_text = st.lists(st.sampled_from(['Human:', 'Assistant:', '\n', '\nHuman:', ' ', 'a', 'Human', '\n\nHuman', ':'])).map(''.join)
content = (plain_text | marked_text).map(str.strip).filter(lambda t: t and '\n\nHuman:' not in t and '\n\nAssistant:' not in t)

@quick
@given(st.lists(content, min_size=1, max_size=7))
def test_render_then_parse_gives_back_the_messages(texts):
    messages = [(user, assistant)[i % 2](t) for i, t in enumerate(texts)]
    assert parse_dialogue(render_dialogue(messages)) == messages

@quick
@given(st.lists(content, min_size=1, max_size=5).filter(lambda t: len(t) % 2), content, content)
def test_pairs_survive_the_form_of_hh(texts, a, b):
    prompt = [(user, assistant)[i % 2](t) for i, t in enumerate(texts)]
    ds, dropped = validate_preferences([dict(chosen=render_dialogue(prompt + [assistant(a)]), rejected=render_dialogue(prompt + [assistant(b)]))])
    assert (dropped == [(1, 'identical replies')]) if a == b else ds.to_list() == [dict(prompt=prompt, chosen=[assistant(a)], rejected=[assistant(b)])]

@quick
@given(st.lists(st.sampled_from(['\n\nHuman:', '\n\nAssistant:', 'Human:', '\n', ' ', 'x']), max_size=12).map(''.join))
def test_parsing_any_text_gives_alternating_turns_or_a_reason(text):
    try: messages = parse_dialogue(text)
    except ValueError as e: assert str(e); return
    assert [m['role'] for m in messages] == [('user', 'assistant')[i % 2] for i in range(len(messages))] and messages

def test_other_roles_cannot_be_rendered():
    with pytest.raises(ValueError, match="role 'tool'"): render_dialogue([dict(role='tool', content='x')])

@pytest.mark.parametrize('part, rows, dropped', [('train', 1400, {'empty reply': 4, 'turns do not alternate': 4}), ('test', 400, {'turns do not alternate': 1})])
def test_the_real_hh_file(shared_data, part, rows, dropped):
    path = shared_data/'hh_harmless'/f'{part}.jsonl.gz'
    ds, warned = quietly(load_preferences, path)
    _, faults = validate_preferences(path)
    assert Counter(why for _, why in faults) == dropped and len(ds) == rows - len(faults) and len(warned) == 1
    with pytest.raises(ValueError, match=f'{len(faults)} of {rows} rows .*strict'): load_preferences(path, strict=True)
    raw = [json.loads(line) for line in gzip.open(path, 'rt', encoding='utf-8')]
    bad, flat = {n for n, _ in faults}, lambda text: ' '.join(text.split())
    for row, old in zip(ds, [r for n, r in enumerate(raw, 1) if n not in bad], strict=True):  # nothing lost, nothing moved
        for side in ('chosen', 'rejected'): assert flat(render_dialogue(row['prompt'] + row[side])) == flat(old[side])
        assert row['prompt'][-1]['role'] == 'user' and len(row['chosen']) == len(row['rejected']) == 1

# --- audit
def test_audit_by_hand():
    ds = Dataset.from_list([dict(prompt='p', chosen='a b c', rejected='a'), dict(prompt='p', chosen='a', rejected='a b c'), dict(prompt='p', chosen='a b c', rejected='a'),
                            dict(prompt='q r', chosen='x y', rejected='x z'), dict(prompt='q r', chosen='same', rejected='same ')])
    a = audit_preferences(ds, max_length=3)
    assert {k: a[k] for k in ('rows', 'prompts', 'duplicates', 'identical', 'conflicts', 'cut', 'empty_when_cut', 'identical_when_cut')} == \
        dict(rows=5, prompts=2, duplicates=1, identical=1, conflicts=1, cut=5 - 1, empty_when_cut=0, identical_when_cut=1)
    assert a['length_gap'] == pytest.approx(2/5) and a['longer_chosen'] == pytest.approx((2 + 2*.5)/5) and a['length_in'] == 'words'
    assert audit_preferences(ds, max_length=2)['empty_when_cut'] == 2 and 'cut' not in audit_preferences(ds)

def test_audit_renders_in_both_ways_and_as_json():
    a = audit_preferences(Dataset.from_list([dict(r, p_chosen=.25) for r in PAIRS]))
    assert a['p_below_half'] == 40 and a['p_chosen'] == .25
    assert '<table>' in a._repr_html_() and 'longer chosen' in str(a) and len(str(a).splitlines()) == len(a) == a._repr_html_().count('<tr>') - 1
    assert json.loads(json.dumps(a)) == dict(a)

def test_audit_counts_tokens_of_the_template():
    class Tok:
        chat_template = 'x'
        def __call__(self, text, add_special_tokens): assert not add_special_tokens; return {'input_ids': list(text)}
        def apply_chat_template(self, m, add_generation_prompt, tokenize): assert add_generation_prompt and not tokenize; return f"<{m[-1]['content']}>"
    a = audit_preferences(load_preferences([dict(prompt=P, chosen=C, rejected=R)]), Tok(), max_length=6)
    assert (a['prompt_length'], a['chosen_length'], a['rejected_length'], a['length_in'], a['cut']) == (4, 5, 2, 'tokens', 1)

def test_prompts_repeated_in_replies_are_seen():
    ds = Dataset.from_list([dict(prompt='hi', chosen='hi there', rejected='hi you'), dict(prompt='hi', chosen='hi there', rejected='no')])
    assert audit_preferences(ds)['prompt_repeated'] == 1

words = st.lists(st.sampled_from('abc'), min_size=1, max_size=4).map(' '.join)
@quick
@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=12), st.integers(1, 6))
def test_swapping_the_columns_turns_the_lengths_round_and_nothing_else(rows, k):
    make = lambda i, j: audit_preferences(Dataset.from_list([dict(prompt=r[0], chosen=r[i], rejected=r[j]) for r in rows]), max_length=k)
    a, b = make(1, 2), make(2, 1)
    assert a['length_gap'] == pytest.approx(-b['length_gap']) and a['longer_chosen'] == pytest.approx(1 - b['longer_chosen'])
    same = set(a) - {'length_gap', 'longer_chosen', 'chosen_length', 'rejected_length'}
    assert {c: a[c] for c in same} == {c: b[c] for c in same}
    left = [(c.split()[:max(k - len(x.split()), 0)], r.split()[:max(k - len(x.split()), 0)], c == r) for x, c, r in rows]
    assert a['identical_when_cut'] == sum(c == r != [] and not eq for c, r, eq in left) and a['empty_when_cut'] == sum(c == [] for c, _, _ in left)

def test_missing_columns_and_rows_are_named():
    binary = pairs_to_binary(load_preferences(PAIRS))
    for fn in (audit_preferences, plot_length_gap, pairs_to_binary):
        with pytest.raises(ValueError, match='no column .*rejected.*there is: prompt, completion, label'): fn(binary)
        with pytest.raises(ValueError, match='no rows'): fn(load_preferences(PAIRS).select([]))
    with pytest.raises(ValueError, match='no column completion, label'): binary_to_pairs(load_preferences(PAIRS))
    with pytest.raises(ValueError, match='no column prompt'): split_by_prompt(binary.remove_columns('prompt'))

def test_the_plot_counts_every_pair_and_names_its_axes():
    import matplotlib.pyplot as plt
    for ds in (load_preferences(PAIRS), load_preferences([dict(prompt=P, chosen=C, rejected=R)]), Dataset.from_list([dict(chosen='a ' * n, rejected='b') for n in (1, 5, 900)])):
        ax = plot_length_gap(ds)
        assert sum(b.get_height() for b in ax.patches) == len(ds) and 'words' in ax.get_xlabel() and ax.get_ylabel() == 'pairs'
    assert plot_length_gap(ds, ax=ax) is ax
    plt.close('all')

# --- pairs and thumbs
pairs = st.lists(st.tuples(st.sampled_from('pqr'), st.sampled_from('abcd'), st.sampled_from('abcd')).filter(lambda t: t[1] != t[2]), min_size=1, max_size=15)
dataset = lambda rows: Dataset.from_list([dict(prompt=x, chosen=a, rejected=b) for x, a, b in rows])

@quick
@given(pairs, st.integers(0, 3))
def test_pairs_to_thumbs_and_back_keeps_the_books(rows, seed):
    thumbs = pairs_to_binary(dataset(rows))
    assert len(thumbs) == 2 * len(rows) and sum(thumbs['label']) == len(rows)
    count = lambda side, label: Counter((x, y) for x, y, l in zip(thumbs['prompt'], thumbs['completion'], thumbs['label']) if l == label)
    assert count(0, True) == Counter((x, a) for x, a, _ in rows) and count(0, False) == Counter((x, b) for x, _, b in rows)
    try: back = binary_to_pairs(thumbs, seed)
    except ValueError: assert any(a1 == b2 for x1, a1, _ in rows for x2, _, b2 in rows if x1 == x2); return
    assert len(back) <= len(rows) and back.to_list() == binary_to_pairs(thumbs, seed).to_list()
    assert not Counter(zip(back['prompt'], back['chosen'])) - count(0, True) and not Counter(zip(back['prompt'], back['rejected'])) - count(0, False)
    assert all(a != b for a, b in zip(back['chosen'], back['rejected']))

@quick
@given(st.lists(st.tuples(st.sampled_from('pqr'), st.booleans()), min_size=1, max_size=20))
def test_as_many_pairs_as_the_rarer_thumb_of_each_prompt(rows):
    ds = Dataset.from_list([dict(prompt=x, completion=f'answer {i}', label=l) for i, (x, l) in enumerate(rows)])
    n = sum(min(rows.count((x, True)), rows.count((x, False))) for x in 'pqr')
    if n: assert len(binary_to_pairs(ds)) == n
    else:
        with pytest.raises(ValueError, match='no pairs: none of the'): binary_to_pairs(ds)

def test_one_pair_per_prompt_survives_the_round_trip_also_as_chat():
    for ds in (load_preferences(PAIRS), load_preferences([dict(prompt=[user(r['prompt'])], chosen=r['chosen'], rejected=r['rejected']) for r in PAIRS])):
        assert binary_to_pairs(pairs_to_binary(ds), seed=5).to_list() == ds.to_list()

# --- splits
@quick
@given(st.lists(st.sampled_from([a + b for a in string.ascii_lowercase for b in 'xyz']), min_size=2, max_size=60).filter(lambda p: len(set(p)) > 1), st.floats(.01, .99))
def test_splits_are_disjoint_complete_and_never_empty(prompts, fraction):
    ds = Dataset.from_dict(dict(prompt=prompts, row=list(range(len(prompts)))))
    train, held_out = split_by_prompt(ds, fraction)
    assert not set(train['prompt']) & set(held_out['prompt']) and len(train) and len(held_out)
    assert sorted([*train['row'], *held_out['row']]) == ds['row'][:] and train['row'][:] == sorted(train['row'])
    order = random.Random(0).sample(range(len(ds)), len(ds))
    assert set(split_by_prompt(ds.select(order), fraction)[1]['prompt']) == set(held_out['prompt'])

def test_splits_are_the_same_everywhere_and_stay_when_the_file_grows():
    prompts = [f'prompt {i}' for i in range(400)]
    held = split_by_prompt(Dataset.from_dict(dict(prompt=prompts)))[1]['prompt'][:]
    assert held[:3] == ['prompt 14', 'prompt 15', 'prompt 19'] and 20 < len(held) < 60
    grown = split_by_prompt(Dataset.from_dict(dict(prompt=[f'new {i}' for i in range(400)] + prompts)))[1]['prompt'][:]
    assert [p for p in grown if p.startswith('prompt')] == held

def test_spelling_variants_of_a_prompt_and_chats_stay_together():
    variants = [v for i in range(50) for v in (f'When {i}?', f' when  {i}?\n', f'WHEN {i}?')]
    for ds in (Dataset.from_dict(dict(prompt=variants)), Dataset.from_dict(dict(prompt=[[user(v)] for v in variants]))):
        parts = [{' '.join((p if isinstance(p, str) else p[0]['content']).lower().split()) for p in part['prompt']} for part in split_by_prompt(ds, .3)]
        assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 50

@pytest.mark.parametrize('fraction', [0, 1, -1, 10, 1.5])
def test_impossible_splits_are_refused(fraction):
    with pytest.raises(ValueError, match='fraction must be between 0 and 1'): split_by_prompt(Dataset.from_dict(dict(prompt=['a', 'b'])), fraction)
    with pytest.raises(ValueError, match='at least two different prompts'): split_by_prompt(Dataset.from_dict(dict(prompt=['a', 'A '])))

# --- collecting
class Policy:
    def __init__(self, texts=None): self.texts, self.calls = texts, []
    def sample(self, prompts, n, temperature, max_new_tokens, seed):
        self.calls.append(NS(n=n, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed))
        return NS(text=self.texts or [f'{i} {"ab"[j]}' for i, _ in enumerate(prompts) for j in range(n)])
class Judge:
    "P(first is better) by a function of both texts"
    def __init__(self, p): self.p, self.first = p, []
    def prefer(self, prompts, first, second):
        self.first += first
        return torch.tensor([self.p(a, b) for a, b in zip(first, second)])
class Annotator(Judge):
    def label(self, prompts, first, second, seed):
        self.seed = seed
        return torch.rand(len(first), generator=torch.Generator().manual_seed(seed)) < self.prefer(prompts, first, second)

MANY = [f'prompt {i}' for i in range(1000)]
def test_the_judges_probability_is_that_of_the_chosen_reply():
    policy, judge = Policy(), Judge(lambda a, b: .8 if a.endswith('a') else .2)
    ds = collect_preferences(policy, MANY, judge, seed=3, temperature=.7, max_new_tokens=9)
    assert vars(policy.calls[0]) == dict(n=2, temperature=.7, max_new_tokens=9, seed=3)
    assert ds.to_list() == [dict(prompt=x, chosen=f'{i} a', rejected=f'{i} b', p_chosen=pytest.approx(.8)) for i, x in enumerate(MANY)]
    assert ds.info.description == '1000 of 1000 prompts gave a pair'

def test_who_is_shown_first_is_a_fair_lot():
    for seed in range(3):
        judge = Judge(lambda a, b: .9)
        ds = collect_preferences(Policy(), MANY, judge, seed)
        shown = sum(t.endswith('a') for t in judge.first)
        assert 430 < shown < 570 and sum(t.endswith('a') for t in ds['chosen']) == shown

def test_lot_and_labels_are_independent():
    annotator = Annotator(lambda a, b: .5)
    ds = collect_preferences(Policy(), MANY, annotator, seed=7)
    first_won = [c == f for c, f in zip(ds['chosen'], annotator.first)]
    for group in ('a', 'b'):
        wins = [w for w, f in zip(first_won, annotator.first) if f.endswith(group)]
        assert .4 < sum(wins) / len(wins) < .6
    assert set(ds['p_chosen']) == {1.} and annotator.seed != 7

def test_labels_and_not_probabilities_come_from_annotators():
    ds = collect_preferences(Policy(), MANY, Annotator(lambda a, b: .8 if a.endswith('a') else .2))
    assert .75 < sum(t.endswith('a') for t in ds['chosen']) / 1000 < .85 and set(ds['p_chosen']) == {1.}

def test_seeds_decide_everything():
    run = lambda seed: collect_preferences(Policy(), MANY[:50], Annotator(lambda a, b: .5), seed).to_list()
    assert run(1) == run(1) != run(2)
    assert _seed_for(1, 'order') != _seed_for(1, 'label') and 0 <= _seed_for(1, 'order') < 2**32

def test_pairs_without_a_preference_are_left_out_and_counted():
    texts = ['same', 'same ', '', 'x', 'tie', 'tie2', 'nan', 'nan2', 'good', 'bad']
    judge = Judge(lambda a, b: .5 if 'tie' in a else math.nan if 'nan' in a else float(a == 'good'))
    ds = collect_preferences(Policy(texts), list('12345'), judge)
    assert ds.to_list() == [dict(prompt='5', chosen='good', rejected='bad', p_chosen=1.)]
    assert ds.info.description.startswith('1 of 5 prompts gave a pair') and all(f'1 {why}' in ds.info.description for why in ('identical', 'empty', 'tie', 'unparsed'))

@pytest.mark.parametrize('texts', [['a', 'a'] * 4, ['', ''] * 4, ['x', 'y'] * 4])
def test_no_pair_at_all_is_an_error(texts):
    with pytest.raises(ValueError, match='0 of 4 prompts gave a pair; 4 (identical|empty|tie)'): collect_preferences(Policy(texts), MANY[:4], Judge(lambda a, b: .5))

def test_wrong_counts_are_refused():
    class Odd(Judge):
        def prefer(self, *args): return super().prefer(*args)[:, None]
    with pytest.raises(ValueError, match=r'policy.sample gave answers of shape \(3,\); expected \(8,\)'): collect_preferences(Policy(['a'] * 3), MANY[:4], None)
    with pytest.raises(ValueError, match=r'the judge gave answers of shape \(4, 1\); expected \(4,\)'): collect_preferences(Policy(), MANY[:4], Odd(lambda a, b: 1.))
    with pytest.raises(ValueError, match='0 of 0'): collect_preferences(Policy(), [], Judge(lambda a, b: 1.))

def test_chats_give_chats():
    ds = collect_preferences(Policy(), [[user('hi')]] * 3, Judge(lambda a, b: .9 if a.endswith('a') else .1))
    assert ds[1] == dict(prompt=[user('hi')], chosen=[assistant('1 a')], rejected=[assistant('1 b')], p_chosen=pytest.approx(.9))
    assert len(validate_preferences(ds)[0]) == 3

def test_thumbs_are_collected_and_empty_answers_counted():
    class Thumbs:
        def thumbs(self, prompts, completions, seed): self.seed = seed; return torch.tensor(['good' in c for c in completions])
    policy, annotator = Policy(['good', '', 'poor']), Thumbs()
    ds = collect_binary(policy, list('123'), annotator, seed=4, temperature=.5, max_new_tokens=7)
    assert ds.to_list() == [dict(prompt='1', completion='good', label=True), dict(prompt='3', completion='poor', label=False)]
    assert vars(policy.calls[0]) == dict(n=1, temperature=.5, max_new_tokens=7, seed=4) and annotator.seed == _seed_for(4, 'label')
    assert ds.info.description == '2 of 3 prompts gave an answer; 1 empty' and load_binary(ds).to_list() == ds.to_list()
    with pytest.raises(ValueError, match='0 of 1 prompts'): collect_binary(Policy(['']), ['1'], annotator)

def test_importing_the_module_imports_no_library_of_data():
    tops = [n for n in ast.parse((ROOT/'alignlab'/'preferences.py').read_text(encoding='utf-8')).body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name.split('.')[0] for n in tops if isinstance(n, ast.Import) for a in n.names} | {n.module.split('.')[0] for n in tops if isinstance(n, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names) | {'torch'}
