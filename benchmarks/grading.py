"""A class of 100 in the box, and nbgrader on the same notebooks (of hostile ones, those that do no harm outside of a box). Writes a record, prints it.

    python benchmarks/grading.py [--out alignlab/records/grading/class.json] [--size 100] [--real 19_kto]

Right, partly right, broken and hostile notebooks on a small exercise; it is graded at once, again with a kill -9 on the way, and the files are compared.
Then a few of a real exercise, whose checks train. nbgrader's own execution has a kernel for each notebook and tests inside; both get the same time-outs.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

import nbformat
from traitlets.config import Config

from alignlab import grading as G
from alignlab.exercises import _mutate
from alignlab.training import machine, versions

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from test_grading import HALF, HOSTILE, WRONG, solution, submission  # noqa: E402

BROKEN = "malformed", "no notebook", "syntax", "blank", "cells of another kind"
HARMLESS = "always equal", "asserts removed from the syntax tree", "float subclass", "leaves in a function", "leaves at the end", "loops in a function", "recurses", "points in the metadata", "test rewritten", "NaN"
SECONDS = 4                      # for a cell or a call, in both graders

def small_class(size):
    "Name -> (kind, text, points or None where several are fair); the exercise is that of the tests, less the one line that only the box understands"
    source = solution()
    source.cells[2].source = "\n".join(line for line in source.cells[2].source.split("\n") if ".grad(" not in line)
    hostile = [k for k in HOSTILE if k not in (*BROKEN, "honest", "half of it", "a warning")]
    people = {}
    for i in range(size):
        kind = ("right", "right", "right", "right", "partial", "broken", "hostile", "hostile", "hostile", "hostile")[i % 10]
        if kind == "right": text, worth = submission(f"{HALF}      # {i}"), (2, 1)
        elif kind == "partial": text, worth = submission(f"{WRONG}      # {i}"), (0, 1)
        else:
            name = BROKEN[i // 10 % len(BROKEN)] if kind == "broken" else hostile[(i // 10 * 4 + i % 10 - 6) % len(hostile)]
            text, *worth = HOSTILE[name]
            kind = "harmless" if name in HARMLESS else kind
            if name == "no gradient": worth = (2, 1)                    # the line that asks for one is not asked here
        people[f"s{i:03}"] = kind, text.replace("PORT", "9"), None if None in worth else sum(worth)
    return source, people

def hand_in(folder, stem, source, people):
    "The instructor's notebook and the submissions, as files"
    (folder / "in").mkdir(parents=True)
    (folder / f"{stem}.ipynb").write_text(nbformat.writes(source), encoding="utf-8")
    for name, (_, text, _) in people.items(): (folder / "in" / f"{name}.ipynb").write_text(text, encoding="utf-8")

def boxed(folder, stem, people, jobs, seconds=SECONDS):
    "(seconds in all, seconds by kind, scores by name), graded by this course's grader"
    took, began = defaultdict(list), time.perf_counter()
    def noted(line):
        if m := re.match(r"\[\S+ (\w+): .* in ([\d.]+) s", line): took[people[m[1]][0]].append(float(m[2]))
    done = G.grade(folder / "in", folder / f"{stem}.ipynb", folder / f"grades-{jobs}", jobs=jobs, seconds=seconds, say=noted)
    return time.perf_counter() - began, took, {r["student"]: r["score"] for r in done["results"]}

def files(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

def cut(folder, stem, n):
    "Graded by the command, killed on the way, and run again: how many were done when it was killed"
    command = [sys.executable, "-m", "alignlab", "grade", str(folder / "in"), "--solution", str(folder / f"{stem}.ipynb"), "--out", str(folder / "cut"), "--seconds", str(SECONDS)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(done := list((folder / "cut" / "students").glob("*.json"))) < n // 3 and first.poll() is None: time.sleep(.2)
    os.killpg(first.pid, signal.SIGKILL); first.wait()
    subprocess.run(command, check=True, capture_output=True)
    return len(done)

def nbgraders(folder, stem, source, people, seconds=SECONDS):
    "(seconds by kind, scores by name) of nbgrader's own execution, in one process, as its formgrader calls it"
    from nbgrader.apps import NbGraderAPI
    config = Config()
    config.CourseDirectory.root, config.CourseDirectory.db_url = str(folder), f"sqlite:///{folder}/gradebook.db"
    config.Execute.timeout = int(seconds)
    (folder / "source" / stem).mkdir(parents=True)
    (folder / "source" / stem / f"{stem}.ipynb").write_text(nbformat.writes(source), encoding="utf-8")
    api, took, scores = NbGraderAPI(config=config), defaultdict(list), {}
    assert api.generate_assignment(stem)["success"]
    for name, (kind, text, _) in people.items():
        where = folder / "submitted" / name / stem
        where.mkdir(parents=True); (where / f"{stem}.ipynb").write_text(text, encoding="utf-8")
        began = time.perf_counter(); ok = api.autograde(stem, name)["success"]; took[kind].append(time.perf_counter() - began)
        with api.gradebook as gb: scores[name] = sum(g.auto_score or 0 for n in gb.find_submission(stem, name).notebooks for g in n.grades if g.cell.name.startswith("test")) if ok else None
    return took, scores

def per_kind(took): return {k: dict(n=len(v), mean=round(fmean(v), 2), median=round(median(v), 2), most=round(max(v), 2)) for k, v in took.items()}

def wrong(people, scores): return {k: [worth, scores.get(k)] for k, (_, _, worth) in people.items() if worth is not None and scores.get(k) != worth}

def real_class(stem):
    "Three solutions and three with a planted mistake each, of a real exercise"
    source = nbformat.read(ROOT / "solutions" / stem / f"{stem}.ipynb", 4)
    points = sum(c.metadata["nbgrader"]["points"] for c in source.cells if (m := c.metadata.get("nbgrader", {})).get("grade") and not m["solution"])
    mutants = [(task, name, edits) for task, own in tomllib.loads((ROOT / "solutions" / f"{stem}.toml").read_text(encoding="utf-8")).items() for name, edits in own.items()][:3]
    people = {}
    for i in range(3): people[f"right{i}"] = "right", nbformat.writes(source).replace("### BEGIN SOLUTION", f"### BEGIN SOLUTION {i}"), points
    for i, (task, name, edits) in enumerate(mutants):
        nb = nbformat.from_dict(source)
        cell = next(c for c in nb.cells if c.metadata.get("alignlab", {}).get("task") == task)
        cell.source = _mutate(cell.source, edits, name)
        people[f"partial{i}"] = "partial", nbformat.writes(nb), None
    return source, people

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=str(ROOT / "alignlab/records/grading/class.json")); p.add_argument("--size", type=int, default=100); p.add_argument("--real", default="19_kto")
    a = p.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"     # nbgrader starts alembic and a kernel
    os.environ["ALIGNLAB_BUDGET"] = "smoke"
    with tempfile.TemporaryDirectory() as tmp:
        small, real = Path(tmp) / "small", Path(tmp) / "real"
        source, people = small_class(a.size)
        hand_in(small, "1", source, people)
        all_2, _, scores = boxed(small, "1", people, jobs=2)
        print(f"two at a time: {all_2:.0f} s", file=sys.stderr)
        all_1, took, again = boxed(small, "1", people, jobs=1)
        killed_at = cut(small, "1", a.size)
        same = files(small / "cut") == files(small / "grades-2")
        print(f"one at a time: {all_1:.0f} s; killed at {killed_at}, the same files afterwards: {same}", file=sys.stderr)
        safe = {k: v for k, v in people.items() if v[0] != "hostile"}
        theirs, their_scores = nbgraders(small / "nb", "1", source, safe)
        result = dict(size=a.size, kinds={k: sum(v[0] == k for v in people.values()) for k in ("right", "partial", "broken", "harmless", "hostile")}, seconds_of_a_call=SECONDS,
            seconds_two_at_a_time=round(all_2, 1), seconds_one_at_a_time=round(all_1, 1), seconds_by_kind=per_kind(took), graded=len(scores), not_as_expected=wrong(people, scores), regraded_the_same=scores == again,
            killed_at=killed_at, resumed_to_the_same_files=same, nbgrader=dict(n=len(safe), seconds_by_kind=per_kind(theirs), not_as_expected=wrong(safe, their_scores)))
        if a.real:
            source, people = real_class(a.real)
            hand_in(real, a.real, source, people)
            total, took, scores = boxed(real, a.real, people, jobs=1, seconds=60)
            theirs, their_scores = nbgraders(real / "nb", a.real, source, people, seconds=300)
            result["real"] = dict(exercise=a.real, seconds=round(total, 1), seconds_by_kind=per_kind(took), scores=scores, not_as_expected=wrong(people, scores), nbgrader=dict(seconds_by_kind=per_kind(theirs), scores=their_scores))
    import alignlab
    record = dict(schema=1, machine=machine(), versions=versions(), alignlab=alignlab.__version__, **result)
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    Path(a.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
