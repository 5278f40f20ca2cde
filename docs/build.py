"""Builds the course as a web site in _docs/: chapters, exercises, API, errata and glossary. Neither it nor its readers need a network.

    python docs/build.py [FOLDER]          (`python course.py site` and `alignlab site` call it)

Notebooks are staged as the pages of a Quarto project, which smalldocs renders. What a notebook shows is what was saved in it: nothing is run.
"""
import os
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

try:
    import nbformat
    import yaml
    from smalldocs.site import build as render
except ImportError as e: sys.exit(f"the site needs {e.name}: python course.py setup installs it")

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
KATEX = "https://cdn.jsdelivr.net/npm/katex@0.16.11/dist"
PARTS = {"Foundations": "0", "Methods": "1", "Measured": "2", "Tools": "3"}        # by the first digit of a chapter

def chapters(): return sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
def exercises(): return sorted((ROOT / "exercises").glob("*/*.ipynb"))
def modules(): return [m[1] for p in chapters() if (m := re.search(r"#\| *default_exp ([\w.]+)", p.read_text(encoding="utf-8")))]

@cache
def pages():
    "File -> its page in the site"
    return {p.resolve(): p.name for p in (ROOT / "nbs").glob("*.ipynb")} | {p.resolve(): f"exercises/{p.name}" for p in exercises()} | {p.resolve(): f"docs/{p.name}" for p in DOCS.glob("*.png")}

def address(link, source):
    "Where a notebook's link leads in the site, or nothing if the site has no such page"
    where, sharp, part = link.partition("#")
    if re.match(r"\w+:", link) or not where: return link
    page = pages().get((source.parent / where).resolve())
    return page and f"{'../' * (source.parents[2] == ROOT)}{page}{sharp}{part}"

def relinked(text, source):
    "A text whose links lead to the site's pages; a file that has none there becomes its name"
    def link(m): return f"{m[1]}[{m[2]}]({to})" if (to := address(m[3], source)) else m[2]
    return re.sub(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)", link, text)

def relinked_html(text, source):
    return re.sub(r"href=(['\"])([^'\"]+)\1", lambda m: f"href={m[1]}{(address(m[2], source) or '').replace('.ipynb', '.html')}{m[1]}", text)

def stage(source, target):
    "A notebook as a page: hidden cells and directives are gone, the first cell is its head"
    nb, cells = nbformat.read(source, 4), []
    for c in nb.cells:
        directives = re.findall(r"^#\| *([\w-]+)", c.source, re.M)
        if {"hide", "default_exp"} & set(directives): continue
        c.source = re.sub(r"^#\|.*\n?", "", c.source, flags=re.M)
        if c.cell_type == "markdown": c.source = relinked(c.source, source)
        for o in c.get("outputs", []):
            data = o.get("data", {})
            if "text/html" in data: data["text/html"] = relinked_html(data["text/html"], source)
            if "text/markdown" in data: data["text/markdown"] = relinked(data["text/markdown"], source)
        cells.append(c)
    head = re.match(r"# (.+)\n+(?:> (.+)\n*)?", cells[0].source)
    cells[0].source = cells[0].source[head.end():]
    number = f"{source.stem[:2]} " if source.stem[:2].isdigit() and source.parent.name == "nbs" else ""
    front = yaml.safe_dump({"title": number + head[1], **({"description": head[2]} if head[2] else {})}, allow_unicode=True, width=10**6)
    nb.cells = [nbformat.v4.new_raw_cell(f"---\n{front}---"), *(c for c in cells if c.source.strip())]
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, target)

def sidebar():
    "Parts of the course, in the order in which they are read"
    part = lambda name, paths: dict(section=name, contents=paths)
    own = [part(name, [p.name for p in chapters() if p.name[0] == digit]) for name, digit in PARTS.items()]
    return ["index.ipynb", *own[:3], part("Exercises", [f"exercises/{p.name}" for p in exercises()]), own[3],
            part("Reference", ["glossary.ipynb", "errata.ipynb", part("API", [f"api/{m.rpartition('.')[2]}.qmd" for m in modules()])])]

# smalldocs fetches its index, which a browser allows no page from file:// to do; a script it may load
FETCHED = '''const r = await fetch(offset + "search.json");
      index = await r.json();'''
LOADED = '''await new Promise((done, failed) => document.head.append(Object.assign(document.createElement("script"), {src: offset + "search.js", onload: done, onerror: failed})));
      index = window.searchIndex;'''

def vendored(site):
    "A site that needs no server and no network: the search's index as a script, KaTeX from this folder, no fonts from elsewhere"
    script = (site / "site_libs/smalldocs.js").read_text(encoding="utf-8")
    if script.count(FETCHED) != 1: raise RuntimeError("this version of smalldocs loads its search in another way: see FETCHED in docs/build.py")
    (site / "site_libs/smalldocs.js").write_text(script.replace(FETCHED, LOADED), encoding="utf-8")
    (site / "search.js").write_text(f"window.searchIndex = {(site / 'search.json').read_text(encoding='utf-8')};", encoding="utf-8")
    (site / "search.json").unlink()
    shutil.copytree(DOCS / "katex", site / "site_libs/katex")
    for p in site.rglob("*.css"): p.write_text(re.sub(r"@import\s+url\([^)]*https?:[^)]*\);?", "", p.read_text(encoding="utf-8")), encoding="utf-8")
    with open(site / "site_libs/smalldocs.css", "a", encoding="utf-8") as f: f.write("\n.math, .katex, .katex-display { position: relative } .katex-display { overflow-x: auto; overflow-y: hidden }\n")      # or a long formula is wider than a phone
    for p in site.rglob("*.html"): p.write_text(p.read_text(encoding="utf-8").replace(KATEX, f"{os.path.relpath(site, p.parent)}/site_libs/katex"), encoding="utf-8")

def broken(site):
    "(page, address) of links that lead nowhere, and of assets that a network would have to bring"
    there, out = {p.relative_to(site).as_posix() for p in site.rglob("*")} | {"."}, []
    for p in site.rglob("*.html"):
        page, name = p.read_text(encoding="utf-8"), p.relative_to(site).as_posix()
        for h in re.findall(r'(?:href|src)="([^"#?:]+)(?:[#?][^"]*)?"', page):
            if os.path.normpath(os.path.join(os.path.dirname(name), h)).replace(os.sep, "/") not in there: out.append((name, h))
        out += [(name, u) for u in re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="(https?://[^"]+)"', page)]
    for p in site.rglob("*.css"): out += [(p.name, u) for u in re.findall(r"url\([\"']?(https?://[^)\"']+)", p.read_text(encoding="utf-8"))]
    return out

def staged(to):
    "The Quarto project: pages, pictures, and the configuration with its sidebar"
    for p in (*chapters(), *(ROOT / "nbs" / f"{n}.ipynb" for n in ("index", "glossary", "errata"))): stage(p, to / p.name)
    for p in exercises(): stage(p, to / "exercises" / p.name)
    shutil.copytree(DOCS, to / "docs", ignore=lambda d, names: [n for n in names if not n.endswith(".png")])
    config = yaml.safe_load((DOCS / "_quarto.yml").read_text(encoding="utf-8"))
    config["website"]["sidebar"] = dict(style="docked", contents=sidebar())
    config["smalldocs"]["api"] |= dict(root=str(ROOT), packages=[f"alignlab.{m}" for m in modules()])
    (to / "_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return to

def main(site=ROOT / "_docs"):
    site = Path(site)
    if site.is_file() or site.is_dir() and any(site.iterdir()) and not (site / "site_libs").is_dir(): sys.exit(f"{site} holds other things, and a site replaces all that is there: name a new folder, or an empty one")
    with tempfile.TemporaryDirectory() as folder:
        built = render(staged(Path(folder)), quiet=True)
        vendored(built.out)
        wrong = [*built.warnings, *(f"{page}: {to} leads nowhere, or to a network" for page, to in broken(built.out))]
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(built.out, site)
    for w in wrong: print(w, file=sys.stderr)
    print(f"{len(list(site.rglob('*.html')))} pages: open {os.path.relpath(site)}/index.html")
    return bool(wrong)

if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
