"""Make the record of the comparison: twelve trials of each method, all methods for some seeds at the settings that won, and what changes the order.

    python benchmarks/comparison_records.py tune                            first: the trials
    python benchmarks/comparison_records.py factors [--share i/n]           fewer labels, flipped ones, other people's answers, few thumbs up
    python benchmarks/comparison_records.py helpdesk [--seeds 10] [--workers N]     the race itself (as `alignlab compare --tune` runs it), and the record
    python benchmarks/comparison_records.py sentiment --seeds 3 --methods sft,dpo,rlaif,spin,kto,best_of_n     SmolLM2-135M and VADER's score at `full`, nothing tuned; for a GPU

Kept under runs/records/comparison as it goes; interrupted, it goes on where it was.
"""
import argparse
import random
import warnings

import records
import torch
from records import SHARE, cell

from alignlab.comparison import METHODS, Plan, Task, _row, compare, picked, tune
from alignlab.helpdesk import Annotator, respond
from alignlab.labs import open_lab
from alignlab.training import write_record

FOLDER, say = records.DONE / "comparison", lambda line: print(line, flush=True)
CHANGES = ("flipped labels", "160 labels", "640 labels", "others' answers", "1 up for 10 down")
FEEDBACK = "rlhf", "dpo", "kto"                       # those that learn from people's labels

class Changed(Task):
    "A task of which one thing is different"
    def __init__(self, change, seed, plan):
        super().__init__(open_lab("helpdesk", annotator=Annotator(seed=seed, flip=.3 if change == "flipped labels" else 0.)), seed, plan.completions, FOLDER / "changed" / change.replace(" ", "_"))
        if change in ("160 labels", "640 labels"): self.labels = int(change.split()[0])
        self.instead = {"others' answers": dict(pairs=self.compared, thumbs=self.thumbed), "1 up for 10 down": dict(thumbs=self.few_ups)}.get(change, {})
    def kept(self, name, make): return super().kept(name, self.instead.get(name, make))
    def others(self, n):
        "Answers of a good author and of a flawed one, at random"
        rng, prompts = random.Random(self.seed), self.lab.prompts("train", self.labels, self.seed)
        return prompts, *([respond(p, rng.choice(("good", "flawed")), rng.randrange(10**6)) for p in prompts] for _ in range(n))
    def compared(self):
        prompts, first, second = self.others(2)
        better = self.lab.annotator.label(prompts, first, second, self.seed).tolist()
        return [dict(prompt=p, chosen=a if w else b, rejected=b if w else a) for p, a, b, w in zip(prompts, first, second, better) if a != b]
    def thumbed(self):
        prompts, said = self.others(1)
        return [dict(prompt=p, completion=c, label=l) for p, c, l in zip(prompts, said, self.lab.annotator.thumbs(prompts, said, seed=self.seed).tolist())]
    def few_ups(self):
        up, down = ([r for r in self.lab.thumbs(2 * self.labels, self.seed) if r["label"] == side] for side in (True, False))
        rows = up[:self.labels // 11] + down[:self.labels * 10 // 11]
        return random.Random(self.seed).sample(rows, len(rows))

def factors(plan, seeds):
    "Rows of the methods that learn from people's labels, under each change; settings as picked for the race"
    settings, rows = picked(tune(plan, list(METHODS), FOLDER, 1, lambda line: None)[0]), []
    for change in CHANGES:
        for m in ("kto",) if change == "1 up for 10 down" else FEEDBACK:
            for seed in range(seeds):                 # innermost: so shares are of equal cost
                def made(): t = Changed(change, seed, plan); return _row(plan, t, m, settings[m]) | dict(change=change)
                rows.append(cell(f"comparison/changed-{change}-{m}-{seed}".replace(" ", "_").replace("'", ""), made))
    return rows

def short(x):
    "Numbers to five digits"
    return {k: short(v) for k, v in x.items()} if isinstance(x, dict) else float(f"{x:.5g}") if isinstance(x, float) else x

def lean(r):
    "A row without what no chapter reads: single prompts, most of the history, answers of all seeds but the first"
    history = [{k: h[k] for k in ("step", "loss", "score", "kl") if k in h} for h in r["history"][::2]]
    return dict(r, each={}, history=history, samples=r["samples"][:3] if r["seed"] == 0 else [], report=short({k: v for k, v in r["report"].items() if k != "diversity"}))

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["tune", "factors", "helpdesk", "sentiment"]); p.add_argument("--seeds", type=int, default=10); p.add_argument("--factor-seeds", type=int, default=5); p.add_argument("--workers", type=int, default=2); p.add_argument("--share"); p.add_argument("--methods")
    args, plan = p.parse_args(), Plan.of("helpdesk", "lesson")
    warnings.simplefilter("ignore")
    if args.share: SHARE["mine"], SHARE["of"] = map(int, args.share.split("/")); torch.set_num_threads(1)
    if args.what == "tune": tune(plan, list(METHODS), FOLDER, args.workers, say)
    if args.what == "factors": factors(plan, args.factor_seeds)
    if args.what == "helpdesk":
        found = compare(seeds=args.seeds, budget="lesson", out=FOLDER, retune=True, workers=args.workers, say=say)
        if found["failed"]: raise SystemExit(f"failed: {found['failed']}")
        write_record(records.ROOT / "helpdesk" / "comparison.json", "helpdesk", "comparison", list(map(lean, found["rows"] + factors(plan, args.factor_seeds))), world=plan.world, start=plan.start, budget=plan.budget, plan=found["plan"], settings=found["settings"], trials=found["trials"])
    if args.what == "sentiment":
        found = compare("sentiment", args.methods and args.methods.split(","), args.seeds, "full", FOLDER / "sentiment", say=say)
        if found["failed"]: raise SystemExit(f"failed: {found['failed']}")
        plan = Plan(**found["plan"])
        write_record(records.ROOT / "sentiment" / "comparison.json", "sentiment", "comparison", list(map(lean, found["rows"])), world=plan.world, start=plan.start, budget=plan.budget, plan=found["plan"], settings=found["settings"], trials=[])
