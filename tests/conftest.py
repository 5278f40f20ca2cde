"What every test sees: the smoke budget, a throw-away output folder and no network."
import os, tempfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
ALL = os.environ.get('ALIGNLAB_ALL') == '1'                      # set by `python course.py test --all`
_out = tempfile.TemporaryDirectory(prefix='alignlab-', ignore_cleanup_errors=True)
os.environ.update(ALIGNLAB_BUDGET='smoke', ALIGNLAB_OUT=_out.name, ALIGNLAB_PROGRESS=os.path.join(_out.name, 'progress.json'), HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')

def pytest_configure(config): config.addinivalue_line('markers', 'slow: runs only with `python course.py test --all`')

def pytest_collection_modifyitems(items):
    if ALL: return
    for item in items:
        if 'slow' in item.keywords: item.add_marker(pytest.mark.skip(reason='slow: runs with `python course.py test --all`'))

@pytest.fixture(scope='session')
def shared_data():
    "The folder of real data sets, which not every checkout has beside it"
    path = ROOT.parent/'shared'/'data'
    return path if path.is_dir() else pytest.skip('no folder of real data beside this checkout')
