"JupyterLab: `alignlab lab` opens on the first page, what that page shows and links to is there, and an exercise runs in it."
import contextlib, json, os, shutil, signal, socket, subprocess, sys, time, urllib.request
import pytest
from conftest import ROOT
from test_site import CHROMIUM

@pytest.fixture
def lab(tmp_path):
    "Address of a JupyterLab on a copy of the course, as `alignlab lab` starts it (an open notebook may be saved)"
    for name in ('nbs', 'exercises', 'solutions', 'docs'): shutil.copytree(ROOT/name, tmp_path/name)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    browser = tmp_path/'browser'                                                   # in a browser's place: keeps the page that it is told to open
    browser.write_text('#!/bin/sh\ncat "${1#file://}" > opened\n'); browser.chmod(0o755)
    (tmp_path/'config').mkdir()
    (tmp_path/'config'/'jupyter_server_config.json').write_text(json.dumps(dict(ServerApp=dict(port=port, allow_root=True, browser=f'{browser} %s'), IdentityProvider=dict(token='t'))))
    env = os.environ | {'ALIGNLAB_BUDGET': 'smoke', 'ALIGNLAB_PROGRESS': str(tmp_path/'progress.json'), 'JUPYTER_CONFIG_DIR': str(tmp_path/'config'), 'JUPYTER_DATA_DIR': str(tmp_path/'data')}
    with open(tmp_path/'log', 'w') as log:
        process = subprocess.Popen([sys.executable, '-m', 'alignlab', 'lab'], cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    address, until = f'http://127.0.0.1:{port}', time.monotonic() + 90
    try:
        while '/lab/tree/nbs/index.ipynb' not in (opened.read_text() if (opened := tmp_path/'opened').exists() else ''):
            assert process.poll() is None and time.monotonic() < until, (tmp_path/'log').read_text()[-2000:]
            time.sleep(.3)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)

def test_the_first_page_and_an_exercise(lab):
    for there in ('api/contents/exercises/14_dpo/14_dpo.ipynb', 'files/docs/comparison.png'): assert urllib.request.urlopen(f'{lab}/{there}?token=t').status == 200
    if not CHROMIUM: pytest.skip('no Chromium here: pages were served, and not looked at')
    from playwright.sync_api import sync_playwright
    outside = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        tab = browser.new_page(viewport=dict(width=1280, height=900))
        tab.on('request', lambda r: outside.append(r.url) if not r.url.startswith((lab, lab.replace('http', 'ws'), 'data:', 'blob:')) else None)
        tab.goto(f'{lab}/lab/tree/nbs/index.ipynb?token=t')
        picture = tab.locator('.jp-RenderedMarkdown img').first
        picture.wait_for(timeout=60_000)
        tab.wait_for_function('() => [...document.querySelectorAll(".jp-RenderedMarkdown img")].some(i => i.naturalWidth > 100)', timeout=30_000)
        tab.get_by_role('link', name='00 Tabular').first.click()                  # a chapter opens beside it
        tab.locator('.lm-TabBar-tabLabel', has_text='00_tabular.ipynb').first.wait_for(timeout=30_000)
        tab.goto(f'{lab}/lab/tree/exercises/14_dpo/14_dpo.ipynb?token=t&reset')
        tab.locator('.jp-Notebook .jp-Cell').first.wait_for(timeout=60_000)
        tab.get_by_role('menuitem', name='Run', exact=True).click()
        tab.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        tab.locator('.jp-OutputArea', has_text='14.1: not written yet').first.wait_for(timeout=120_000)
        browser.close()
    assert not outside, outside[:3]
