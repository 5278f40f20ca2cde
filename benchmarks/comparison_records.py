"""Make the record of the comparison: twelve trials of each method, then all methods for some seeds at the settings that won.

    python benchmarks/comparison_records.py [--seeds 10] [--workers N] [--tune-only]

What `alignlab compare --tune` does, kept under runs/records/comparison as it goes, and shipped. Interrupted, it goes on where it was.
"""
import argparse
import warnings

import records

from alignlab.comparison import METHODS, Plan, compare, tune
from alignlab.training import write_record

FOLDER = records.DONE / "comparison"

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=10); p.add_argument("--workers", type=int, default=2); p.add_argument("--tune-only", action="store_true")
    args = p.parse_args()
    warnings.simplefilter("ignore")
    say = lambda line: print(line, flush=True)
    if args.tune_only: raise SystemExit(tune(Plan.of("helpdesk", "lesson"), list(METHODS), FOLDER, args.workers, say) and None)
    found = compare(seeds=args.seeds, budget="lesson", out=FOLDER, trials=True, workers=args.workers, say=say)
    if found["failed"]: raise SystemExit(f"failed: {found['failed']}")
    plan = found["plan"]
    rows = [dict(r, each=dict(gold=[round(v, 3) for v in r["each"]["gold"]])) for r in found["rows"]]
    write_record(records.ROOT / "helpdesk" / "comparison.json", "helpdesk", "comparison", rows, world=plan["world"], start=plan["start"], budget=plan["budget"], plan=plan, settings=found["settings"], trials=found["trials"])
