"What the README says, runs; what it links to, exists."
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

def test_the_script_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, loop = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert re.match(r"-?\d\.\d+ \[", capsys.readouterr().out)
    exec(compile(loop, "README.md", "exec"), {})
    losses = [float(x) for x in capsys.readouterr().out.split()]
    assert losses[0] == .5 and losses[-1] < losses[0]
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
    assert set(re.findall(r"python course.py (\w+)", README)) <= {"setup", "lab", "run", "site", "check", "test"}

def test_the_caption_says_what_the_record_says():
    from alignlab.training import read_record
    runs = [r for r in read_record("helpdesk/dpo")["runs"] if r["method"] == "dpo" and r["args"]["beta"] == .03]
    worse = sum(r["report"]["gold"]["mean"] < r["start"]["gold"]["mean"] for r in runs)
    words = "no one two three four five".split()
    assert f"it ends below its start on {words[worse]} seeds of {words[len(runs)]}" in README.replace("\n", " ")

def test_the_race_is_told_as_the_record_has_it():
    from alignlab.comparison import raced
    from alignlab.report import summary
    from alignlab.training import read_record
    rows = {r["title"]: r for r in summary(raced(read_record("helpdesk/comparison")))}
    said = README.replace("\n", " ")
    assert f"gains most: {rows['SFT continued']['gain'][0]} of gold reward, where RLHF with PPO gains {rows['RLHF (PPO)']['gain'][0]}." in said
    assert f"its share is {rows['DPO']['share_of_rlhf']}." in said
    assert all(r["gain"][2] == "better" and len({r["seeds"] for r in rows.values()}) == 1 for r in rows.values()) and rows["DPO"]["seeds"] == 10
    assert max(rows, key=lambda t: rows[t]["gain"][0].mean) == "SFT continued"
    assert {t for t, r in rows.items() if r["versus_rlhf"] and r["versus_rlhf"][2] != "not distinguishable"} == {"SFT continued", "SPIN"} and len(rows) == 10

def test_a_class_takes_what_is_said():
    from alignlab.training import read_record
    r = read_record("grading/class")
    assert r["size"] == 100 and r["real"]["exercise"] == "19_kto"
    assert f"A class of a hundred on a small exercise takes {r['seconds_two_at_a_time'] / 60:.0f} minutes on {r['machine']['cores']} cores, a notebook of the KTO exercise, which trains, {r['real']['seconds_by_kind']['right']['mean']:.0f} s" in README.replace("\n", " ")

def test_the_worked_example_of_contributing_runs(capsys):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})
    assert re.match(r"-?\d\.\d+ \[", capsys.readouterr().out)
