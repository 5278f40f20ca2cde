"""How long each chapter takes: after `python course.py run`, its times become a record and a column of the index.

    python course.py run && python benchmarks/times.py [runs/course/times.json]
"""
import json
import re
import sys
from pathlib import Path

from alignlab.training import machine, versions

ROOT = Path(__file__).resolve().parents[1]

def span(s): return f"{s:.0f} s" if s < 90 else f"{s / 60:.1f} min"

def filled(text, seconds):
    "The first page's table with its last column, and the sum below it"
    for name, s in seconds.items(): text = re.sub(rf"(\({name}\.ipynb\).*\| )[\d.]+ (s|min) \|$", rf"\g<1>{span(s)} |", text, flags=re.M)
    return re.sub(r"all together \d+ minutes", f"all together {sum(seconds.values()) / 60:.0f} minutes", text)

if __name__ == "__main__":
    seconds = json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs/course/times.json").read_text())["smoke"]
    record = dict(schema=1, machine=machine(), versions=versions(), budget="smoke", seconds=seconds)
    (ROOT / "alignlab/records/course/times.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path = ROOT / "nbs/index.ipynb"
    nb = json.loads(path.read_text(encoding="utf-8"))
    for c in nb["cells"]: c["source"] = filled("".join(c["source"]), seconds).splitlines(keepends=True)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
