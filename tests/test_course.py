"course.py on a copy with tiny chapters and this interpreter: no environment is made, nothing is installed."
import importlib.util, json, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from conftest import ROOT

@pytest.fixture
def course(tmp_path, monkeypatch):
    "course.py as a module of a folder of its own, whose .venv has this interpreter's commands"
    for f in ('course.py', 'pyproject.toml', 'constraints.txt'): shutil.copy(ROOT/f, tmp_path)
    (tmp_path/'nbs').mkdir(); (tmp_path/'.venv').mkdir()
    for k in ('ALIGNLAB_OUT', 'ALIGNLAB_BUDGET', 'ALIGNLAB_TORCH'): monkeypatch.delenv(k, raising=False)
    spec = importlib.util.spec_from_file_location('course', tmp_path/'course.py')
    m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    monkeypatch.setattr(m, 'BIN', Path(sys.executable).parent); monkeypatch.setattr(m, 'PY', Path(sys.executable))
    return m

@pytest.fixture
def commands(course, monkeypatch):
    "Commands that would run; those that hold a word of `commands.fail` fail"
    class Calls(list): fail = 'nothing'
    calls = Calls()
    def call(cmd, **kw): calls.append(' '.join(cmd[1:])); return int(calls.fail in calls[-1])
    monkeypatch.setattr(course.subprocess, 'call', call)
    return calls

def chapter(folder, name, *cells):
    code = [{'cell_type': 'code', 'id': f'c{i}', 'metadata': {}, 'outputs': [], 'execution_count': None, 'source': s} for i, s in enumerate(cells)]
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
    (folder/'nbs'/f'{name}.ipynb').write_text(json.dumps({'cells': code, 'metadata': kernel, 'nbformat': 4, 'nbformat_minor': 5}))

# --- setup
def test_setup_installs_torch_first_and_once(course, commands, capsys):
    course.setup(['lab'])
    assert commands == ['-m pip install -q -c constraints.txt torch', '-m pip install -q -c constraints.txt -e .[lab]']
    assert capsys.readouterr().out.count('$ ') == 2                    # each command is shown
    course.setup(['lab'])
    assert len(commands) == 2                                          # done before
    course.setup(['lab', 'test'])
    assert commands[-1].endswith('.[lab,test]') and len(commands) == 4
    course.setup(['lab'])
    assert len(commands) == 4                                          # the smaller set is there already
    with (course.ROOT/'constraints.txt').open('a') as f: f.write('# new\n')
    course.setup(['lab'])
    assert len(commands) == 6                                          # the pins have changed

def test_torch_is_pinned_without_a_local_version():
    pins = [line for line in (ROOT/'constraints.txt').read_text().splitlines() if line and line[0] != '#']
    assert pins[0].startswith('torch==') and all('==' in p and '+' not in p for p in pins)
    assert not [p for p in pins if p.startswith(('-e', 'alignlab'))]

def test_cpu_build_on_request(course, commands, monkeypatch):
    monkeypatch.setenv('ALIGNLAB_TORCH', 'cpu')
    course.setup(['lab'])
    assert commands[0].endswith(f'torch --extra-index-url {course.CPU_INDEX}') and course.CPU_INDEX not in commands[1]

def test_setup_says_what_to_do(course, commands, monkeypatch):
    commands.fail = '.[lab]'
    with pytest.raises(SystemExit, match='run the same command again'): course.setup(['lab'])
    assert not course.STAMP.exists()                                   # so that the next call tries again
    commands.fail = '-m venv'; monkeypatch.setattr(course, 'PY', course.VENV/'bin'/'none')
    with pytest.raises(SystemExit, match='apt install python3-venv'): course.setup(['lab'])
    assert not course.VENV.exists()                                    # no half-made environment stays
    monkeypatch.setattr(course.sys, 'version_info', (3, 8, 1))
    with pytest.raises(SystemExit, match='needs Python 3.11 or newer, and this is 3.8'): course.setup(['lab'])

def test_another_python_makes_a_new_environment(course, commands):
    course.STAMP.write_text(json.dumps({'python': '3.5', 'files': '', 'extras': ['lab']}))
    course.setup(['lab'])
    assert commands[0] == '-m venv --clear .venv'

def test_minimum_python_is_that_of_the_package(course):
    assert 'requires-python = ">={}.{}"'.format(*course.MIN) in (ROOT/'pyproject.toml').read_text()

# --- the tasks
def test_tasks_pass_options_on(course, commands, monkeypatch):
    monkeypatch.setattr(course, 'setup', lambda extras: commands.append(','.join(extras)))
    assert course.main(['lab', '--no-browser']) == 0
    assert course.main(['test', '--all', '-k', 'dpo']) == 0
    assert course.main(['test', '-n0']) == 0                     # who says how many processes is believed
    assert commands == ['lab', f'lab --ServerApp.root_dir={course.ROOT} nbs/index.ipynb --no-browser', 'lab,test', '-m pytest -n 2 --dist worksteal -k dpo', 'lab,test', '-m pytest -n0']

@pytest.mark.parametrize('args', [[], ['tset'], ['setup', '--fast'], ['run', '--budget', 'huge'], ['run', '--only', 'nothing'], ['run', '--out', 'x']])
def test_wrong_use_is_told_before_any_setup(args, course, commands, capsys):
    chapter(course.ROOT, '00_one', '1')
    try: rc = course.main(args)
    except SystemExit as e: rc = e.code
    assert rc == 2 and not commands and 'course.py' in capsys.readouterr().err

# --- run
def test_run_goes_on_after_a_failure_and_prints_figures(course, capsys, monkeypatch):
    leave = '''import json, os, pathlib
out = pathlib.Path(os.environ["ALIGNLAB_OUT"])/"figures"/"01_good.json"
out.write_text(json.dumps({"title": "Gold reward", "rows": [{"name": "start", "value": "0.10"}, {"name": "dpo, 64 steps", "value": "0.90 ± 0.02"}]}))
os.environ["ALIGNLAB_BUDGET"]'''
    chapter(course.ROOT, '00_bad', '1', 'raise ValueError("beta must be positive")', 'never')
    chapter(course.ROOT, '01_good', leave)
    chapter(course.ROOT, 'index', 'never')                             # not a chapter
    old = course.ROOT/'runs'/'course'/'smoke'; (old/'figures').mkdir(parents=True)
    (old/'00_bad.ipynb').write_text('{}'); (old/'figures'/'00_bad.json').write_text('{"title": "stale", "rows": []}')
    monkeypatch.setattr(course, 'setup', lambda extras: None)
    assert course.main(['run']) == 1
    out = capsys.readouterr().out
    assert '[1/2] 00_bad: FAILED' in out and '[2/2] 01_good: done' in out and 'to go' in out
    assert 'execute --timeout=600 --output=../runs/course/smoke/01_good.ipynb nbs/01_good.ipynb'.replace('/', os.sep) in out.replace('/', os.sep)
    assert '1 of 2 chapters done' in out and '1 FAILED: 00_bad' in out and 'ValueError: beta must be positive' in out.split('1 FAILED')[1]
    assert '01_good: Gold reward\n  start          0.10\n  dpo, 64 steps  0.90 ± 0.02\n' in out and 'stale' not in out
    cell = json.loads((old/'01_good.ipynb').read_text(encoding='utf-8'))['cells'][0]
    assert "'smoke'" in str(cell['outputs']) and not (old/'00_bad.ipynb').exists()
    assert list(json.loads((old.parent/'times.json').read_text())['smoke']) == ['01_good']
    assert not (course.ROOT/'nbs'/'01_good.json').exists() and str(old) in out

def test_a_broken_figure_file_does_not_stop_the_rest(course, tmp_path):
    (tmp_path/'figures').mkdir()
    for name, text in {'a': '{', 'b': '[1]', 'c': '{"title": "T", "rows": [{"name": "n", "value": 3}]}'}.items():
        (tmp_path/'figures'/f'{name}.json').write_text(text)
    lines = course.figures(tmp_path, ['a', 'b', 'none', 'c'])
    assert [s.split('(')[0] for s in lines if s] == ['a: its figures cannot be read ', 'b: its figures cannot be read ', 'c: T', '  n  3']

def test_only_takes_a_part_of_the_name_or_wildcards(course):
    for name in ('00_tabular', '14_dpo', '15_dpo_family', 'index'): chapter(course.ROOT, name, '1')
    names = lambda only: [p.stem for p in course.chapters(only)]
    assert names('') == ['00_tabular', '14_dpo', '15_dpo_family']
    assert names('dpo') == names('1?_') == ['14_dpo', '15_dpo_family'] and names('*family') == ['15_dpo_family']

def test_it_is_standard_library_only_and_old_pythons_can_read_it():
    code = 'import sys; sys.path.insert(0, "."); import course; print(course.__doc__[:8])'
    p = subprocess.run([sys.executable, '-I', '-S', '-c', code], cwd=ROOT, capture_output=True, text=True)    # -S: no site-packages
    assert p.stdout == 'AlignLab\n', p.stderr
    import ast
    ast.parse((ROOT/'course.py').read_text(encoding='utf-8'), feature_version=(3, 7))
