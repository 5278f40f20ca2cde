"The web site: it is built from what is committed, every page opens without a network, and nothing on it is broken, on a desk or on a phone."
import re, shutil, subprocess, sys
import pytest
from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
LOOK = '''() => ({
    wide: document.documentElement.scrollWidth - innerWidth,
    math: [...document.querySelectorAll('.math')].filter(m => !m.querySelector('.katex')).map(m => m.textContent.slice(0, 60)),
    wrong: [...document.querySelectorAll('.katex-error')].map(m => m.textContent.slice(0, 60)),
    images: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src.slice(-60)),
    title: document.querySelectorAll('h1').length, words: document.body.innerText.length })'''

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'site'
    done = subprocess.run([sys.executable, '-m', 'alignlab', 'site', out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr                                     # broken links, addresses of a network, warnings
    return out

def pages(site): return sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html'))

def everything_is_there(site):
    names = {p.stem for p in (ROOT/'nbs').glob('*.ipynb')} | {f'exercises/{p.stem}' for p in (ROOT/'exercises').glob('*/*.ipynb')}
    assert {f'{n}.html' for n in names} <= set(pages(site)) and 'api/kto.html' in pages(site)
    kto = (site/'api'/'kto.html').read_text(encoding='utf-8')
    assert 'kto_loss' in kto and 'log π(completion), summed' in kto               # signatures and docments
    chapter = re.sub(r'<[^>]+>', '', (site/'19_kto.html').read_text(encoding='utf-8'))
    assert 'def reference_point' in chapter and '#|' not in chapter
    solved = (ROOT/'solutions'/'19_kto'/'19_kto.ipynb').read_text(encoding='utf-8')
    assert 'BEGIN SOLUTION' in solved and 'BEGIN SOLUTION' not in (site/'exercises'/'19_kto.html').read_text(encoding='utf-8')

def test_every_page_opens_on_a_desk_and_on_a_phone(site):
    "One test, so that one process builds the site and starts the browser"
    everything_is_there(site)
    if not CHROMIUM: pytest.skip('no Chromium here: pages were built, and not looked at')
    from playwright.sync_api import sync_playwright
    said, seen = [], 0
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        for width, height in ((1280, 900), (390, 844)):
            tab = browser.new_page(viewport=dict(width=width, height=height))
            tab.on('console', lambda m: said.append((tab.url[-40:], m.text)) if m.type in ('error', 'warning') else None)
            tab.on('pageerror', lambda e: said.append((tab.url[-40:], str(e))))
            tab.on('request', lambda r: said.append((tab.url[-40:], r.url)) if not r.url.startswith(('file:', 'data:')) else None)
            for page in pages(site):
                tab.goto(f'file://{site}/{page}')
                tab.wait_for_load_state('load')
                found = tab.evaluate(LOOK)
                seen += found['title']
                assert found.pop('words') > 100 and found.pop('title') == 1, page
                assert found.pop('wide') <= 0 and not any(found.values()), (page, width, found)
        searched_and_dark(browser.new_page(viewport=dict(width=1280, height=900)), site)
        browser.close()
    assert not said, said[:5]
    assert seen == 2 * len(pages(site)) > 100

def searched_and_dark(tab, site):
    "The search finds by words of a page's text, from file:// too; the switch darkens"
    tab.goto(f'file://{site}/index.html')
    tab.locator('.smalldocs-search input').first.fill('loss aversion')
    tab.wait_for_selector('.search-result', timeout=10000)
    found = tab.eval_on_selector_all('.search-result', 'all => all.map(a => a.getAttribute("href"))')
    assert any('19_kto' in h for h in found), found
    tab.goto(f'file://{site}/14_dpo.html')
    shade = lambda: tab.evaluate('getComputedStyle(document.body).backgroundColor')
    light = shade()
    tab.locator('.quarto-color-scheme-toggle').first.click()
    tab.wait_for_timeout(300)
    assert sum(map(int, re.findall(r'\d+', shade())[:3])) < 200 < 600 < sum(map(int, re.findall(r'\d+', light)[:3])), (light, shade())

def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path/'thesis.txt').write_text('years of work')
    done = subprocess.run([sys.executable, '-m', 'alignlab', 'site', tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and 'holds other things' in done.stderr and (tmp_path/'thesis.txt').read_text() == 'years of work'
