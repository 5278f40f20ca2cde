"Ruff and mypy have nothing to say, and what they are told to ignore is named rule by rule in pyproject.toml."
import re, subprocess, sys
import pytest
from conftest import ROOT

@pytest.mark.parametrize('tool', [['ruff', 'check', '.'], ['mypy']], ids=lambda t: t[0])
def test_clean(tool):
    done = subprocess.run([sys.executable, '-m', *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]

def test_no_blanket_ignores():
    bare = re.compile(r'#\s*(noqa(?!:)|type:\s*ignore(?!\[))')
    found = [f'{p.relative_to(ROOT)}: {m[0]}' for folder in ('alignlab', 'nbs', 'tests', 'benchmarks', 'docs') for p in (ROOT/folder).rglob('*') if p.suffix in ('.py', '.ipynb') and (m := bare.search(p.read_text(encoding='utf-8')))]
    assert not found, found
