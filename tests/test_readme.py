"What the README says, runs; what it links to, exists."
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

def test_the_script_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert re.match(r"-?\d\.\d+ \[", capsys.readouterr().out)
    from transformers import AutoModelForCausalLM
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "runs/my-policy").num_parameters() > 800_000

def test_links_exist():
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", README) if not x.startswith("http")]
    assert len(links) > 10
    assert not [x for x in links if not (ROOT / x).exists()]

def test_every_chapter_is_in_the_table():
    for nb in (ROOT / "nbs").glob("[0-9]*.ipynb"): assert f"nbs/{nb.name}" in README, nb.name

def test_commands_exist():
    from typer.testing import CliRunner
    from alignlab.cli import app
    names = set(re.findall(r"^alignlab (\w+)", README, re.M))
    assert names == {c.name or c.callback.__name__ for c in (*app.registered_commands, *app.registered_groups)}     # each is shown, and no other
    for name in names: assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0
    assert set(re.findall(r"python course.py (\w+)", README)) <= {"setup", "lab", "run", "test"}

def test_the_caption_says_what_the_record_says():
    from alignlab.training import read_record
    runs = [r for r in read_record("helpdesk/dpo")["runs"] if r["method"] == "dpo" and r["args"]["beta"] == .03]
    worse = sum(r["report"]["gold"]["mean"] < r["start"]["gold"]["mean"] for r in runs)
    words = "no one two three four five".split()
    assert f"it ends below its start on {words[worse]} seeds of {words[len(runs)]}" in README.replace("\n", " ")
