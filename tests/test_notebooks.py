"Every notebook runs from top to bottom at the smoke budget, in this process (a kernel each would cost a torch import)."
import os, signal, sys
import pytest
from conftest import ALL, ROOT

NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(s[0] in '_.' for s in p.relative_to(ROOT).parts))
SKIP = ['gpu', 'net'] if ALL else ['slow', 'gpu', 'net']         # cells with these directives

SHOWN = [pytest.param(p, marks=pytest.mark.slow) if p.parent.name == 'checks' else p for p in NBS]     # what these run, the proofs, test_exercises runs as well

@pytest.mark.parametrize('nb', SHOWN, ids=lambda p: p.stem)
def test_notebook(nb, capfd, monkeypatch):
    import execnb.shell, nbdev.test
    interrupted = []
    def on_sigint(*args): interrupted.append(nb.name); signal.default_int_handler(*args)
    monkeypatch.setattr(nbdev.test, '_int_handler', on_sigint)    # nbdev's own ends the process, and pytest with it
    monkeypatch.setattr(execnb.shell.CaptureShell, 'leaks', [], raising=False)    # it misses this after a time-out or Ctrl-C
    monkeypatch.setattr(sys, 'path', sys.path[:])
    before, sigint = dict(os.environ), signal.getsignal(signal.SIGINT)
    try: ok, _ = nbdev.test.test_nb(nb, skip_flags=SKIP, basepath=ROOT, cell_timeout=300)
    finally:                                                      # what a notebook sets must not reach the next
        signal.signal(signal.SIGINT, sigint)
        os.environ.clear(); os.environ.update(before)
    if interrupted: raise KeyboardInterrupt(f'Ctrl-C, or {nb.name} sends SIGINT: cells run in a thread here, keep it from them')
    assert ok, capfd.readouterr().err[-3000:]
