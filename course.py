#!/usr/bin/env python3
"""AlignLab's front door: sets up .venv once, then runs what you ask for. Standard library only, any OS.

  python course.py setup                           only the environment, in .venv
  python course.py lab [jupyter options]           JupyterLab on the first page of the course
  python course.py run [--budget smoke|lesson|full] [--only PATTERN]
                                                   every chapter without a browser, results in runs/course/; then the site
  python course.py site                            the course as a web site in _docs/, to be read without a network
  python course.py check                           what is out of step: export, exercises, README, style, types
  python course.py test [--all] [pytest options]   the tests; --all adds the slow ones

Every step is the plain command that it prints. Set ALIGNLAB_TORCH=cpu for PyTorch's CPU build: on Linux it is
far smaller than the default, which brings CUDA."""
import argparse, fnmatch, functools, hashlib, json, os, re, shlex, shutil, subprocess, sys, time
from pathlib import Path

MIN = (3, 11)                                      # what the pinned packages need
ROOT = Path(__file__).resolve().parent
VENV, WIN = ROOT/'.venv', os.name == 'nt'
BIN, EXE = VENV/('Scripts' if WIN else 'bin'), '.exe' if WIN else ''
PY, STAMP = BIN/f'python{EXE}', VENV/'.alignlab-setup'
BUDGETS = {'smoke': (20, 600), 'lesson': (120, 3600), 'full': (1800, -1)}   # seconds: a chapter (a guess), a cell at most
EXTRAS = {'setup': ['lab'], 'lab': ['lab'], 'run': ['lab'], 'site': ['lab'], 'check': ['lab', 'test'], 'test': ['lab', 'test']}
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'

def say(*a): print(*a, flush=True)                 # or our lines come after those of the commands

def show(cmd):
    "Print a command as one would type it in the repository's folder"
    cmd = [os.path.relpath(c, ROOT) if os.path.isabs(c) and ROOT in Path(c).parents else str(c) for c in cmd]
    say('$', subprocess.list2cmdline(cmd) if WIN else ' '.join(map(shlex.quote, cmd)))

def sh(cmd, env=None):
    "Show and run a command; its exit code"
    show(cmd)
    try: return subprocess.call([str(c) for c in cmd], cwd=str(ROOT), env=env)
    except KeyboardInterrupt: sys.exit(130)

def venv_env(**more):
    "The environment variables of an activated .venv (UTF-8 everywhere: notebooks are)"
    path = os.pathsep.join([str(BIN), os.environ.get('PATH', '')])
    return {**os.environ, 'PATH': path, 'VIRTUAL_ENV': str(VENV), 'PYTHONUTF8': '1',
            'PIP_DISABLE_PIP_VERSION_CHECK': '1', **more}

# --- setup
def setup(extras):
    "Make .venv and install the pinned packages, unless that was done for these files, this Python and these extras"
    if sys.version_info < MIN:
        sys.exit('AlignLab needs Python {}.{} or newer, and this is {}.{} ({}).\nInstall a newer one (python.org, your '
                 'package manager, pyenv, uv) and start course.py with it.'.format(*MIN, *sys.version_info[:2], sys.executable))
    if os.environ.get('ALIGNLAB_TORCH', '') not in ('', 'cpu'): sys.exit('ALIGNLAB_TORCH can only be cpu, or unset')
    files = hashlib.sha256(b''.join((ROOT/f).read_bytes() for f in ('pyproject.toml', 'constraints.txt'))).hexdigest()
    key = {'python': '{}.{}'.format(*sys.version_info), 'files': files}
    try: done = json.loads(STAMP.read_text())
    except (OSError, ValueError): done = {}
    same = {**key, 'extras': done.get('extras')} == done
    if same and PY.exists() and set(extras) <= set(done['extras']): return
    if same: extras = sorted({*extras, *done['extras']})
    fresh = not PY.exists() or done.get('python', key['python']) != key['python']     # or .venv is of another Python
    if fresh or not list(BIN.glob('pip*')):
        if sh([sys.executable, '-m', 'venv', *(['--clear'] if fresh else []), '.venv']):
            if fresh: shutil.rmtree(str(VENV), ignore_errors=True)
            sys.exit('\nThe environment could not be made. If the venv module is what is missing: on Debian and Ubuntu\n'
                     '`sudo apt install python3-venv`, on Fedora `sudo dnf install python3-pip`; Python from python.org '
                     'has it.\nThen run the same command again.')
    say('Installing the pinned packages: some minutes the first time, a second later on.')
    cpu = os.environ.get('ALIGNLAB_TORCH') == 'cpu'
    if sys.platform == 'linux' and not cpu and not shutil.which('nvidia-smi'):
        say('(No NVIDIA GPU is seen here: ALIGNLAB_TORCH=cpu may save gigabytes of download.)')
    if STAMP.exists(): STAMP.unlink()              # from here on .venv is neither the old nor the new
    pip = [PY, '-m', 'pip', 'install', *([] if sys.stdout.isatty() else ['-q']), '-c', 'constraints.txt']
    for what in (['torch', *(['--extra-index-url', CPU_INDEX] if cpu else [])], ['-e', f'.[{",".join(extras)}]']):
        if sh(pip + what, venv_env()):
            sys.exit('\npip failed: the reason stands above. If it was the network (a proxy is set by HTTPS_PROXY) or a full '
                     'disk,\nrun the same command again: what was downloaded is kept. If a version was not found, your Python '
                     '({})\nmay be too new or too old for the pins: they are tested with 3.11.'.format(key['python']))
    STAMP.write_text(json.dumps({**key, 'extras': extras}))

# --- run
def span(s): return f'{s:.0f} s' if s < 90 else f'{s/60:.0f} min' if s < 5400 else f'{s/3600:.1f} h'

def chapters(only=''):
    "The chapters in order, those whose name holds the pattern"
    return [p for p in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')) if fnmatch.fnmatch(p.stem, f'*{only}*')]

def execute(nb, out, env, limit, tick):
    "Run one chapter; its exit code. The executed copy and the log lie in `out`"
    copy = out/nb.name
    for old in (copy, out/'figures'/f'{nb.stem}.json'): old.unlink(missing_ok=True)   # or a failure would show old results
    if ROOT in out.parents: copy = '..'/copy.relative_to(ROOT)                        # `jupyter execute` counts from nbs/
    cmd = [BIN/f'jupyter{EXE}', 'execute', f'--timeout={limit}', f'--output={copy}', f'nbs/{nb.name}']
    show(cmd)
    with (out/f'{nb.stem}.log').open('wb') as log:
        p = subprocess.Popen([str(c) for c in cmd], cwd=str(ROOT), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while True:
                try: return p.wait(1 if sys.stdout.isatty() else 30)
                except subprocess.TimeoutExpired: tick()
        except KeyboardInterrupt:                  # the chapter got it too, and stops its kernel
            p.wait()
            say('\nInterrupted. Chapters that are done are kept; --only PATTERN runs some of them.')
            sys.exit(130)

def tail(log, n=6):
    "The last lines of a log, without colours"
    text = re.sub(r'\x1b\[[0-9;]*m', '', log.read_text(encoding='utf-8', errors='replace'))
    return [line.rstrip() for line in text.splitlines() if line.strip()][-n:] or ['(no output)']

def figures(out, names):
    "The figures that the chapters left, as lines of text"
    lines = []
    for name in names:
        try:
            fig = json.loads((out/'figures'/f'{name}.json').read_text(encoding='utf-8'))
            rows = [(str(r['name']), str(r['value'])) for r in fig['rows']]
            w = max((len(k) for k, _ in rows), default=0)
            lines += ['', f"{name}: {fig['title']}", *(f'  {k:{w}}  {v}' for k, v in rows)]
        except FileNotFoundError: pass
        except (OSError, ValueError, KeyError, TypeError) as e: lines += ['', f'{name}: its figures cannot be read ({e!r})']
    return lines

def run(budget, nbs):
    "Execute chapters in order, going on after a failure; print figures, places and failures. The exit code"
    out = Path(os.environ.get('ALIGNLAB_OUT') or ROOT/'runs').resolve()/'course'/budget
    (out/'figures').mkdir(parents=True, exist_ok=True)
    guess, limit = BUDGETS[budget]
    book, begin, failed, wide = out.parent/'times.json', time.time(), [], 70 if sys.stdout.isatty() else 0
    try: times = json.loads(book.read_text())
    except (OSError, ValueError): times = {}
    took = times.setdefault(budget, {})            # seconds of each chapter, the last time it was done
    def expect(nb): return took.get(nb.stem) or (sum(took.values())/len(took) if took else guess)
    def tick(i, start, pad=wide):
        spent = time.time() - start
        left = max(expect(nbs[i]) - spent, spent/4) + sum(map(expect, nbs[i+1:]))       # spent/4: late chapters stay late
        print(f'[{i+1}/{len(nbs)}] {nbs[i].stem}: {span(spent)}, about {span(left)} to go'.ljust(pad), end='\r' if pad else '\n', flush=True)
    env = venv_env(ALIGNLAB_BUDGET=budget, ALIGNLAB_OUT=str(out))
    say(f'Chapters: {len(nbs)}, with ALIGNLAB_BUDGET={budget} ALIGNLAB_OUT={out}')
    for i, nb in enumerate(nbs):
        start = time.time()
        tick(i, start, 0)
        rc, spent = execute(nb, out, env, limit, functools.partial(tick, i, start)), time.time() - start
        if rc: failed.append(nb.stem)
        else:
            took[nb.stem] = round(spent, 1)
            book.write_text(json.dumps(times, indent=1))
        end = f'FAILED after {span(spent)}: {tail(out/f"{nb.stem}.log", 1)[0][:160]}' if rc else f'done in {span(spent)}'
        say(f'[{i+1}/{len(nbs)}] {nb.stem}: {end}'.ljust(wide))
    for line in figures(out, [p.stem for p in nbs]): say(line)
    say(f'\n{len(nbs)-len(failed)} of {len(nbs)} chapters done in {span(time.time()-begin)}. Results:\n'
        f'  executed chapters and logs   {out}\n  figures as JSON              {out/"figures"}')
    if failed: say(f'\n{len(failed)} FAILED: {", ".join(failed)}')
    for name in failed: say('\n  '.join([f'\n{name} ({out/name}.log)', *tail(out/f'{name}.log')]))
    return 1 if failed else 0

def main(argv):
    if hasattr(sys.stdout, 'reconfigure'): sys.stdout.reconfigure(errors='replace')
    task, rest = (argv[0], argv[1:]) if argv else ('', [])
    if task in ('-h', '--help', 'help'): return print(__doc__)
    if task not in EXTRAS or (task in ('setup', 'site', 'check') and rest):
        print(__doc__, f'\nunknown: {" ".join(argv)}' if argv else '', file=sys.stderr)
        return 2
    if task == 'run':                              # before the setup: a typing error should not take minutes
        p = argparse.ArgumentParser(prog='course.py run', description='Run every chapter without a browser')
        p.add_argument('--budget', default=os.environ.get('ALIGNLAB_BUDGET') or 'smoke', help='smoke (default), lesson or full')
        p.add_argument('--only', default='', metavar='PATTERN', help='only chapters whose name holds PATTERN, e.g. dpo or 1?_')
        a = p.parse_args(rest)
        if a.budget not in BUDGETS: p.error(f'--budget {a.budget}: choose from {", ".join(BUDGETS)}')
        nbs = chapters(a.only)
        if not nbs: p.error(f'no chapter matches {a.only!r}; there are: {" ".join(c.stem for c in chapters())}')
    setup(EXTRAS[task])
    site = [PY, ROOT/'docs'/'build.py']
    if task == 'run': return run(a.budget, nbs) or (0 if a.only else sh(site, venv_env()))
    if task == 'site': return sh(site, venv_env())
    if task == 'lab': return sh([BIN/f'jupyter{EXE}', 'lab', f'--ServerApp.root_dir={ROOT}', 'nbs/index.ipynb', *rest], venv_env())
    if task == 'check': return sh([PY, '-m', 'pytest', '--durations=0', '--durations-min=9', *(f'tests/test_{t}.py' for t in ('sync', 'readme', 'style'))], venv_env())
    if task == 'test':
        more = {'ALIGNLAB_ALL': '1'} if '--all' in rest else {}
        two = [] if any(r.startswith('-n') for r in rest) else ['-n', '2', '--dist', 'worksteal']     # two processes of one thread are faster than one of two
        if two: more['OMP_NUM_THREADS'] = '1'
        return sh([PY, '-m', 'pytest', *two, *(r for r in rest if r != '--all')], venv_env(**more))
    say('Ready:', os.path.relpath(str(VENV), str(ROOT)), 'is set up.')

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
