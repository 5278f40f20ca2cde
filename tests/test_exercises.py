"Exercises: made from their solutions without a leak, and with checks that are proven. What a check must survive, and what it must not let pass."
import copy, importlib, json, math, pkgutil, re, subprocess, sys, threading
from pathlib import Path
import nbformat, pytest, torch
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner
import alignlab
from alignlab import exercises as X
from alignlab.cli import app
from conftest import ROOT

SOURCES = sorted((ROOT/'solutions').glob('*/*.ipynb'))
each_source = pytest.mark.parametrize('path', SOURCES, ids=lambda p: p.stem)
TAUGHT = {'12_rlhf', '14_dpo', '16_rlaif', '17_constitutional_ai', '18_spin', '19_kto', '20_comparison'}

def read(path): return nbformat.read(path, 4)
def run(line): return CliRunner().invoke(app, line.split())

# --- the notebooks
def test_there_is_one_for_each_method_and_the_comparison():
    assert {p.stem for p in SOURCES} == TAUGHT
    assert {p.stem for p in (ROOT/'solutions').glob('*.toml')} == TAUGHT

@each_source
def test_checks_are_proven(path):
    "`alignlab exercises prove`: stubs fail every check, solutions pass all, each mutant and each generic wrong answer fails one"
    done = run(f'exercises prove {path.stem}')
    print(done.stdout)
    assert done.exit_code == 0, done.stderr

def test_exercises_are_byte_for_byte_nbgraders(tmp_path):
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config
    import shutil
    shutil.copytree(ROOT/'solutions', tmp_path/'solutions')
    config = Config()
    config.CourseDirectory.root = str(tmp_path)
    config.CourseDirectory.source_directory, config.CourseDirectory.release_directory = 'solutions', 'exercises'
    config.CourseDirectory.db_url = f'sqlite:///{tmp_path}/gradebook.db'
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PATH', str(Path(sys.executable).parent), prepend=':')             # it starts alembic
        api = NbGraderAPI(config=config)
        for path in SOURCES:
            done = api.generate_assignment(path.stem)
            assert done['success'], done['log']
            released = path.relative_to(ROOT/'solutions')
            assert (tmp_path/'exercises'/released).read_bytes() == (ROOT/'exercises'/released).read_bytes(), path.stem

@each_source
def test_anatomy(path):
    nb, toml = read(path), X.tomllib.loads((ROOT/'solutions'/f'{path.stem}.toml').read_text(encoding='utf-8'))
    chapter = str(int(path.stem[:2]))
    heads = [(m[1], c.source) for c in nb.cells if c.cell_type == 'markdown' and (m := X._HEAD.search(c.source))]
    ids = [t for t, _ in heads]
    assert ids == [f'{chapter}.{k + 1}' for k in range(len(ids))] and 5 <= len(ids) <= 9
    marks = {X._mark(c)['grade_id']: (c, X._mark(c)) for c in nb.cells if X._mark(c)}
    texts = {t: '\n'.join(c.source for c in cells) for t, cells in sections(nb).items()}
    written = [t for t in ids if f"text-{t.replace('.', '-')}" in marks]
    assert len(written) == 1 and '5 points' in texts[written[0]], 'one written answer, with a rubric'
    for task, text in texts.items():
        assert re.search(r'^difficulty [1-5]/5 · importance [1-5]/5 · about \d+ min · ', text, re.M), f'{task}: no box'
        if task in written: continue
        assert [f'<summary>Hint {k} ' in text for k in (1, 2, 3)] == [True] * 3, f'{task}: three hints'
        answer, mark = marks[f"ex-{task.replace('.', '-')}"]
        test, graded = marks[f"test-{task.replace('.', '-')}"]
        assert mark['solution'] and not mark['grade'] and graded['grade'] and graded['locked'] and graded['points'] > 0
        assert answer.metadata['alignlab']['task'] == task
        for name in answer.metadata['alignlab']['hides']: assert name == 'trl' or importlib.import_module(name)
        assert f'assert (report := check("{task}"' in test.source
        assert len(toml[task]) >= 4

def sections(nb):
    "Task -> its cells"
    out, task = {}, None
    for c in nb.cells:
        if c.cell_type == 'markdown' and (m := X._HEAD.search(c.source)): task = m[1]
        if task: out.setdefault(task, []).append(c)
    return out

@each_source
def test_what_is_asked_for_is_not_exported(path):
    exported = {name for m in pkgutil.iter_modules(alignlab.__path__) if m.name != 'checks' and not m.name.startswith('_') for name in getattr(importlib.import_module(f'alignlab.{m.name}'), '__all__', [])}
    asked = {m[1] for c in read(path).cells if c.cell_type == 'code' and (m := re.search(r'^check\(\s*"\d+\.\d+",\s*(\w+)\)', c.source, re.M))}
    assert asked and not asked & exported

@each_source
def test_released_notebook_fails_everywhere_and_does_not_crash(path):
    reports = X.run_notebook(ROOT/'exercises'/path.relative_to(ROOT/'solutions'))
    assert [r.task for r in reports] == [t for t in sections(read(path)) if t in X._CHECKS]
    assert not [name for r in reports for name, passed, *_ in r.rows if passed]

@each_source
def test_solutions_hold_no_outputs_and_no_paths(path):
    cells = read(path).cells
    assert not [c for c in cells if c.cell_type == 'code' and (c.outputs or c.execution_count)]
    assert not re.search(r'(?<![\w.~-])/(?:home|root|tmp|work|Users)/\w', '\n'.join(c.source for c in cells))

# --- marker mistakes and leaks
MARK = dict(grade=False, grade_id='ex-1-1', locked=False, schema_version=3, solution=True, task=False)
SOLUTION = 'def f(x):\n    ### BEGIN SOLUTION\n    return torch.add(x, x, alpha=2)\n    ### END SOLUTION'

def course(tmp_path, *cells):
    for d in ('nbs', 'solutions/01_a', 'solutions/02_b'): (tmp_path/d).mkdir(parents=True)
    good = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOLUTION, metadata=dict(nbgrader=dict(MARK)))])
    nbformat.write(good, tmp_path/'solutions/01_a/01_a.ipynb')
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), tmp_path/'solutions/02_b/02_b.ipynb')
    return tmp_path

def code(source, **mark): return nbformat.v4.new_code_cell(source, metadata=dict(nbgrader=dict(MARK, **mark)) if mark is not None else {})
plain, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell

@pytest.mark.parametrize('cells, said', [
    ([code(SOLUTION.replace('### END', '# END'))], "should be '### END SOLUTION'"),
    ([code(SOLUTION.replace('    ### END SOLUTION', ''))], "'### END SOLUTION' is missing"),
    ([code(SOLUTION.replace('    ### BEGIN SOLUTION\n', ''))], 'out of place'),
    ([code(SOLUTION.replace('### BEGIN', '##BEGIN'))], "should be '### BEGIN SOLUTION'"),
    ([code('def f(x): return 2')], 'without a solution region'),
    ([plain(SOLUTION)], 'not marked as an answer'),
    ([plain('x = 1\n### BEGIN HIDDEN TESTS\nassert f(1) == 12345\n### END HIDDEN TESTS')], 'not graded'),
    ([code(SOLUTION), text('Try `return torch.add(x, x, alpha=2)`.')], 'can be read in the exercise'),
    ([code(SOLUTION), plain('# return torch.add(x, x, alpha=2)')], 'can be read in the exercise'),
    ([code(SOLUTION), nbformat.v4.new_code_cell('1', metadata=dict(note='return torch.add(x, x, alpha=2)'))], 'can be read in the exercise'),
    ([code(SOLUTION), text('### BEGIN MARK SCHEME')], 'is missing'),
    ([code('assert f(1) == 1\n### BEGIN HIDDEN TESTS\nassert f(71) == 142857\n### END HIDDEN TESTS', grade=True, solution=False, points=1), text('such as `assert f(71) == 142857`')], 'can be read'),
    ([nbformat.v4.new_markdown_cell('The model answer is forty-two.', metadata=dict(nbgrader=dict(MARK, grade=True, points=1))), text('The model answer is forty-two.')], 'can be read'),
])
def test_faults_are_refused_and_nothing_is_written(tmp_path, cells, said):
    root = course(tmp_path, *cells)
    with pytest.raises(ValueError, match='not built: 02_b.ipynb') as e: X.build(root)
    assert said in str(e.value) and not (root/'exercises').exists()

def test_build_is_repeatable_and_removes_what_has_no_source(tmp_path):
    root = course(tmp_path, code(SOLUTION))
    made = ['exercises/01_a/01_a.ipynb', 'exercises/02_b/02_b.ipynb']
    assert X.build(root, dry=True) == made and not (root/'exercises').exists()
    assert X.build(root) == made and X.build(root) == []
    (root/made[0]).write_text((root/made[0]).read_text().replace('YOUR', 'MY'))
    (root/'solutions/02_b/02_b.ipynb').unlink()
    assert X.build(root) == made and not (root/made[1]).exists() and 'alpha' not in (root/made[0]).read_text()

def test_building_anew_keeps_a_students_answers(tmp_path):
    root = course(tmp_path, code(SOLUTION)); X.build(root)
    mine, draft = root/'exercises/01_a/01_a.ipynb', root/'exercises/02_b/draft.ipynb'
    answered = mine.read_text().replace('raise NotImplementedError()', 'return x + x  # mine')
    half = mine.read_text().replace('raise NotImplementedError()', 'y = x + x  # half\\n    raise NotImplementedError()')
    assert X._untouched(mine); mine.write_text(half); assert not X._untouched(mine)             # begun, and not done, is a student's as well
    mine.write_text(answered); draft.write_text(answered)
    scratch = draft.with_name('scratch.ipynb'); nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1 + 1')]), scratch)
    for n in (1, 2):
        with pytest.warns(UserWarning, match=f'01_a.ipynb held answers: they are in exercises/01_a/answers/01_a-{n}.ipynb'): assert X.build(root) == ['exercises/01_a/01_a.ipynb']
        assert (mine.parent/f'answers/01_a-{n}.ipynb').read_text() == draft.read_text() == answered and 'mine' not in mine.read_text() and scratch.exists()
        mine.write_text(answered)

# --- check
@X.catches('0.9', 'doubles', 'look here')
def _(f, g):
    x = torch.randn(4, generator=g)
    X.same(f(x), 2 * x)

class Hostile:
    def __call__(self, *a): raise Hostile.Error()
    class Error(Exception):
        def __str__(self): raise ValueError('no text')
    def __getattr__(self, name): raise RuntimeError(name)
    def __deepcopy__(self, memo): raise RuntimeError('no copy')

def deep(x): return deep(x)
def leave(x): sys.exit(3)
def stop(x): raise GeneratorExit
WRONG = [None, 3, 'text', Hostile(), Hostile, deep, leave, stop, lambda: 1, lambda x: x, lambda x: x.sum(), lambda x: Hostile(), lambda x: {Hostile(): 1}, lambda x: iter(x),
    lambda x: 2 * x.double(), lambda x: (2 * x)[None], lambda x: (2 * x).tolist(), lambda x: x.numpy() * 2, lambda x: x * math.nan, type('T', (torch.Tensor,), {})(torch.zeros(4)), X._Agreeable(), lambda x: X._Agreeable()]
@pytest.mark.parametrize('i', range(len(WRONG)))
def test_check_never_raises_and_passes_nothing_wrong(i):
    answer = WRONG[i]
    report = X.check('0.9', answer)
    assert not report and '0.9' in repr(report) and '0.9' in report._repr_html_()

def test_check_passes_the_right_answer_and_leaves_the_session_alone(capfd):
    def talks(x): print('hello'); torch.rand(5); return x + x
    torch.manual_seed(3); a = torch.rand(2); torch.manual_seed(3)
    assert X.check('0.9', talks) and X.check('0.9', talks, seed=5)
    torch.testing.assert_close(torch.rand(2), a)
    assert 'hello' not in capfd.readouterr().out

def test_unknown_tasks_and_interrupts():
    assert not X.check('77.1', len) and 'there is no exercise' in repr(X.check('77.1', len)) and not X.check(None, len)
    def interrupted(x): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): X.check('0.9', interrupted)

def test_without_assertions_nothing_passes():
    code = 'from alignlab.exercises import *\n@catches("0.1", "any")\ndef _(f, g): assert False\nprint(check("0.1", 1))'
    out = subprocess.run([sys.executable, '-O', '-c', code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert '0 of 1' in out and '-O' in out

def test_text_of_answers_is_escaped():
    def nasty(x): raise RuntimeError('<script>alert(1)</script>')
    html = X.check('0.9', nasty)._repr_html_()
    assert '<script>' not in html and '&lt;script&gt;' in html

def test_an_answer_sees_copies():
    x = torch.ones(3)
    for change, arg in ((lambda t: t.mul_(2), x), (lambda rows: rows.append(1), [0]), (lambda t: t.requires_grad_(True), x)):
        with pytest.raises(AssertionError, match='changes its arguments'): X.Answer(change)(arg)
    assert x.sum() == 3 and not x.requires_grad
    canned = X.Canned({'q': 'a'})
    assert X.Answer(lambda f: f('q') + f('q'))(canned) == 'aa' and canned.asked == [('q',), ('q',)]

values = st.recursive(st.one_of(st.booleans(), st.integers(-99, 99), st.floats(.01, 99), st.text(max_size=3), st.lists(st.floats(.25, 9, width=32), min_size=1, max_size=4).map(torch.tensor)),
                      lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3), st.tuples(inner, inner)), max_leaves=5)
@settings(max_examples=60, deadline=None)
@given(values)
def test_same_accepts_a_copy_and_nothing_else(x):
    X.same(copy.deepcopy(x), x)
    for wrong in ([x], (x,), {'x': x}, None, math.nan, X._leaves(x, X._filled(math.nan)), X._leaves(x, X._retyped)):
        if repr(wrong) == repr(x): continue                                         # an empty list has nothing to spoil
        with pytest.raises(AssertionError): X.same(wrong, x)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=5), st.floats(1e-6, 1e6), st.integers(0, 4))
def test_tolerance_is_a_fraction_of_the_signal(numbers, scale, i):
    x = torch.tensor(numbers, dtype=torch.float64) * scale
    if not x.abs().max() > 0: return
    wrong = x.clone(); wrong[i % len(x)] += 2e-3 * x.abs().max()
    X.same(x + 1e-6 * x.abs().max(), x)
    with pytest.raises(AssertionError): X.same(wrong, x)

# --- progress
def test_progress_is_kept_once_solved_and_survives(tmp_path, monkeypatch):
    book = tmp_path/'deep'/'progress.json'
    monkeypatch.setenv('ALIGNLAB_PROGRESS', str(book))
    X._CHECKS['1.1'] = X._CHECKS['0.9']
    try:
        for answer in (None, lambda x: 2 * x, None): X.check('1.1', answer)
        assert json.loads(book.read_text())['1.1'] | {'solved': 1} == dict(passed=0, of=1, tries=3, solved=1)
        for bad in ('', '[]', '{"1.1"'):
            book.write_text(bad)
            report = X.check('1.1', lambda x: 2 * x)
            assert report and 'could not be kept' in report.note and book.read_text() == bad           # nothing of yours is overwritten
        book.unlink()
        threads = [threading.Thread(target=X._note, args=(X.Report('1.1', [('a', True, '', '')]),)) for _ in range(8)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert json.loads(book.read_text())['1.1']['solved'] and [p.name for p in book.parent.iterdir()] == ['progress.json']
        X.check('0.9', None, seed=0); assert '0.9' not in book.read_text()
    finally: del X._CHECKS['1.1']

def test_progress_counts_tasks():
    rows = X.progress(ROOT)
    assert [r['exercise'].partition(']')[0][1:] for r in rows] == sorted(TAUGHT) and all(r['solved'].startswith('0 of') for r in rows)

# --- the command
def test_list_check_and_their_json(tmp_path):
    listed = run('exercises list --json')
    assert listed.exit_code == 0 and {r['notebook'].split('/')[1] for r in json.loads(listed.stdout)['tasks']} == TAUGHT
    assert '19.1' in run('exercises list').stdout
    nb = read(ROOT/'exercises/19_kto/19_kto.ipynb')
    answer = next(c for c in nb.cells if c.metadata.get('alignlab', {}).get('task') == '19.1')
    answer.source = 'def reference_from_table(t):\n    %time n = len(t)\n    return t.diagonal().mean().clamp(min=0).detach()'
    nb.cells = nb.cells[:nb.cells.index(answer) + 2]
    nbformat.write(nb, tmp_path/'mine.ipynb')
    checked = run(f'exercises check {tmp_path/"mine.ipynb"} --json')
    first = json.loads(checked.stdout)['tasks'][0]
    assert checked.exit_code == 1 and 'takes the matched pairs' in first['checks'][0]['caught']
    assert run(f'exercises check {tmp_path/"mine.ipynb"}').exit_code == 1

@pytest.mark.parametrize('line', ['exercises', 'exercises check nowhere.ipynb', 'exercises check README.md', 'exercises prove 99_nobody', 'exercises frobnicate'])
def test_wrong_use(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = run(line)
    assert done.exit_code == 2 and not done.stdout and len(done.stderr.strip().splitlines()) == 1
