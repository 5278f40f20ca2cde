"The comparison: its statistics, and what it promises when something goes wrong."
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from alignlab import comparison, report
from alignlab.comparison import METHODS, Contestant, Plan, Task, compare, drawn, tune
from alignlab.labs import HelpdeskLab, SentimentLab, open_lab
from alignlab.report import against, card_verdicts, differences, fieller, holm, ledger, markdown, save_report, summary
from alignlab.reward_model import RewardArgs, train_reward

numbers = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=3, max_size=12)

@given(numbers)
@settings(max_examples=60, deadline=None)
def test_fieller_holds_the_ratios_that_a_t_test_does_not_reject(ab):
    a, b = map(np.array, zip(*ab))
    assume(a.std() > .05 and b.std() > .05)
    e, own = fieller(a, b), stats.ttest_1samp(b, 0).confidence_interval(.95)
    if own.low <= 0 <= own.high:
        assert math.isnan(e.mean)
        return
    assume(min(abs(own.low), abs(own.high)) > .01)
    t = lambda ratio: stats.ttest_1samp(a - ratio * b, 0).pvalue if np.ptp(a - ratio * b) > 1e-9 else 1.
    assert e.low <= e.mean <= e.high and t((e.low + e.high) / 2) >= .0499
    if e.high - e.low > 1e-3: assert t(e.low) == pytest.approx(.05, abs=1e-3) and t(e.high) == pytest.approx(.05, abs=1e-3)

def test_fieller_refuses_what_is_not_paired():
    with pytest.raises(ValueError, match="equal length"): fieller([1., 2.], [1.])
    with pytest.raises(ValueError, match="at least 2"): fieller([1.], [1.])

@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm(ps):
    got, order = holm(ps), np.argsort(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, got)) and [got[i] for i in order] == sorted(got) and got[order[0]] == min(1., len(ps) * min(ps))

def test_trials_are_the_same_for_everybody_and_stay_in_their_space():
    for m, c in METHODS.items():
        trials = [drawn(m, i) for i in range(12)]
        assert trials == [drawn(m, i) for i in range(12)] and len({str(t) for t in trials}) == (12 if c.space else 1)
        assert all(low <= t[k] <= high for t in trials for k, (low, high) in c.space.items())

def row(method, seed, gold, kl=1., **more):
    e = lambda v: dict(mean=v, low=v - .1, high=v + .1, n=8)
    costs = dict(seconds=10., tokens_trained=5, tokens_generated=0, labels=100, demonstrations=0, judge_calls=0, models_in_memory=1)
    report = dict(gold=e(gold), win_rate=e(.6), length_controlled_win_rate=e(.6), kl=e(kl), length=e(30.), end_rate=e(1.), attributes=dict(helpful=e(gold)), skills=dict(judge=e(.9)))
    return dict(method=method, seed=seed, args={}, start=None, settings={}, costs={} if method == "start" else costs, report=report, each=dict(gold=[gold, gold + .2, gold - .1]),
                samples=[dict(prompt="<b>who</b> ?", completion="<script>x</script>", gold=gold)], history=[]) | more

def result(**golds):
    rows = [row("start", s, -.3) for s in range(4)] + [row(m, s, g) for m, gs in golds.items() for s, g in enumerate(gs)]
    return dict(plan=dict(lab="helpdesk", start="s", world="w", budget="smoke", completions=128, prompts=8, benchmark=None), settings={}, trials=[], rows=rows, failed=[])

def test_differences_are_taken_seed_by_seed_and_of_one_seed_prompt_by_prompt():
    r = result(dpo=[.1, .3, .2, .4], kto=[.0, .2, .1, .3])["rows"]
    assert differences(r, "dpo", "kto") == pytest.approx([.1] * 4)
    one = [x for x in r if x["seed"] == 2]
    assert differences(one, "dpo", "kto") == pytest.approx([.1] * 3) and differences([x for x in r if x["method"] != "kto"], "dpo", "kto") == []

def test_a_comparison_joins_the_ledger_and_what_differs_is_refused(tmp_path):
    save_report(result(dpo=[.1, .2, .1, .2]), tmp_path)
    plan = Plan("helpdesk", "s", "w", "smoke", 128, 8)
    rows, refused = ledger([tmp_path / "report.json", "helpdesk/dpo"], plan)
    assert len(rows) == 8 and [r["gold"] for r in rows if r["method"] == "dpo"] == [.1, .2, .1, .2] and all(r["record"].endswith("report.json") for r in rows)
    (no,) = refused; assert no["record"] == "helpdesk/dpo" and "world is" in no["why"] and "start is" in no["why"] and "budget is lesson, not smoke" in no["why"]
    rows, refused = ledger(); assert len(rows) > 500 and len({r["record"] for r in rows}) >= 8 and [r["record"] for r in refused] == ["helpdesk/constitutional"]

def test_a_tie_is_a_finding_and_noise_is_none():
    r = result(rlhf=[.10, .20, .15, .12], dpo=[.11, .19, .16, .12], kto=[.5, .62, .55, .5], sft=[.9, -.8, .3, -.2])["rows"]
    found = against(r, ["rlhf", "dpo", "kto", "sft"], "rlhf")
    assert {m: v for m, (_, _, v) in found.items()} == dict(dpo="tie", kto="better", sft="not distinguishable")

def test_shares_are_undefined_where_rlhf_gained_nothing():
    lost = {r["method"]: r for r in summary(result(rlhf=[-.5, .1, -.6, 0.], dpo=[.1, .2, .1, .2]))}
    won = {r["method"]: r for r in summary(result(rlhf=[.7, .72, .69, .7], dpo=[.2, .21, .2, .19]))}
    assert math.isnan(lost["dpo"]["share_of_rlhf"].mean) and won["dpo"]["share_of_rlhf"].mean == pytest.approx(.5, abs=.01) and str(lost["dpo"]["share_of_rlhf"]) == "undefined"
    said = {v["column"]: v for v in card_verdicts([lost["rlhf"], lost["dpo"]]) if v["row"] == "DPO"}
    assert said["Performance"]["verdict"] == "not testable here"
    assert {v["column"]: v for v in card_verdicts([won["rlhf"], won["dpo"]]) if v["row"] == "DPO"}["Performance"]["verdict"] == "contradicted here"

def test_the_cards_cells_are_read_off_the_rows():
    rows = {r["method"]: r for r in summary(result(rlhf=[.7, .72, .69, .7], rlaif=[.2, .21, .2, .19], spin=[.2, .3, .2, .3]))}
    said = lambda: {(v["row"], v["column"]): v["verdict"] for v in card_verdicts(list(rows.values()))}
    assert said()["RLHF", "Feedback Type"] == "supported here" and said()["RLAIF", "Feedback Type"] == "contradicted here" and said()["RLHF", "Data Requirements"] == "contradicted here"
    rows["rlaif"] |= dict(labels=0, judge_calls=200); rows["rlhf"] |= dict(labels=60_000, seconds=5.); rows["spin"] |= dict(labels=0, demonstrations=0)
    assert said()["RLAIF", "Feedback Type"] == said()["SPIN", "Feedback Type"] == "supported here" and said()["RLHF", "Data Requirements"] == "not testable here" and said()["RLHF", "Training Complexity"] == "contradicted here"
    rows["spin"]["demonstrations"] = 5; assert said()["SPIN", "Feedback Type"] == said()["SPIN", "Data Requirements"] == "contradicted here"

def test_what_nats_could_buy_is_known_for_all_seeds_or_for_none():
    "The best policy is estimated up to some distance; a mean over the seeds that happen to lie within would flatter"
    best = lambda kl, start: start + kl if kl < 3 else math.nan
    near, far = ([row("start", s, 0.) for s in range(2)] + [row("dpo", s, .5, kl) for s, kl in enumerate(kls)] for kls in ((1., 2.), (1., 4.)))
    assert report._of_attainable(near, "dpo", best) == [.5, .25] and report._of_attainable(far, "dpo", best) == report._of_attainable(near, "dpo", None) == []

def test_a_seed_whose_start_failed_is_left_out_and_nothing_at_all_is_an_error():
    r = result(dpo=[.1, .2, .3, .4]); r["rows"] = [x for x in r["rows"] if (x["method"], x["seed"]) != ("start", 3)]
    assert summary(r)[0]["seeds"] == 3 and summary(r)[0]["gold"].mean == pytest.approx(.2)
    with pytest.raises(RuntimeError, match="no run came through: ValueError: x"): summary(r | dict(rows=[], failed=[dict(method="dpo", seed=0, error="ValueError: x")]))

def test_the_page_stands_alone_and_lets_nothing_in(tmp_path):
    r = result(rlhf=[.1, .2, .1, .2], dpo=[.1, .2, .1, .2]) | dict(failed=[dict(method="kto", seed=0, error="<i>boom</i>")])
    save_report(r, tmp_path); page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<i>boom" not in page and "http" not in page.replace("http-equiv", "") and page.count("data:image/png") == 3
    assert json.loads((tmp_path / "report.json").read_text())["table"][0]["method"] == "rlhf" and "NaN" not in (tmp_path / "report.json").read_text() and (tmp_path / "report.md").read_text() == markdown(summary(r))

def test_answers_that_the_limit_cuts_off_are_read_with_an_end_where_hardly_any_has_one(monkeypatch):
    "A base model goes on: a reward model that read its pairs closed knows nothing about open ones, and a punished missing end is all that RL would learn"
    lab = open_lab("helpdesk"); pairs = list(lab.preferences(8, 0))
    args = RewardArgs(steps=1, batch_size=4, lr=1e-6, normalise=32, max_new_tokens=12)         # twelve tokens: hardly any answer has its end
    plain, closing = (train_reward(lab.start, pairs, replace(args, open_end=open_end)).policy for open_end in (False, True))
    prompts, texts = [r["prompt"] for r in pairs], [r["chosen"] for r in pairs]
    assert torch.equal(closing(prompts, texts, False), closing(prompts, texts, True)) and not torch.allclose(plain(prompts, texts, False), plain(prompts, texts, True))
    sample = lab.start.sample([pairs[i % 8]["prompt"] for i in range(32)], max_new_tokens=12, seed=0)
    assert not sample.ended.all()
    again = closing(sample.prompts, sample.text, sample.ended.tolist())
    assert again.mean().item() == pytest.approx(0, abs=.05) and again.std().item() == pytest.approx(1, abs=.05)
    assert closing.copy().model.config.reward_open_end
    assert (SentimentLab.open_end, HelpdeskLab.open_end) == (True, False)
    seen, task = [], Task(lab, 0, 64, "none"); task.kept = lambda name, make: pairs
    monkeypatch.setattr(comparison, "_reward", lambda t: SimpleNamespace(policy=closing)); monkeypatch.setattr(comparison, "add_costs", lambda run, first: run)
    for name in ("train_rlhf", "train_grpo"): monkeypatch.setattr(comparison, name, lambda start, data, args, reward: seen.append(args.missing_end))
    for open_end in (False, True):
        monkeypatch.setattr(lab, "open_end", open_end, raising=False)
        comparison._rlhf(task); comparison._rloo(task)
    assert seen == [-1., -1., None, None]

@pytest.fixture
def quick(monkeypatch):
    "Two contestants that train for a step, one of which fails on seed 1; reports without skills"
    from alignlab.dpo import DPOArgs, train_dpo
    from alignlab.labs import HelpdeskLab
    whole = HelpdeskLab.evaluate
    monkeypatch.setattr(HelpdeskLab, "evaluate", lambda self, policy, n=None, seed=0: whole(self, policy, n=8, seed=seed, skills=False))
    def once(t, **s): return train_dpo(t.start, comparison._pairs(t)[:8], DPOArgs(steps=1, batch_size=4, seed=t.seed))
    def fails(t, **s):
        if t.seed == 1 and not fails.mended: raise RuntimeError("no room")
        return once(t)
    fails.mended = False
    monkeypatch.setattr(comparison, "METHODS", dict(dpo=Contestant("DPO", "pairs", comparison._pairs, once, dict(lr=(1e-4, 1e-3))), kto=Contestant("KTO", "thumbs", comparison._pairs, fails, {})))
    return fails

def timeless(rows): return [{k: v for k, v in r.items() if k not in ("costs", "history")} for r in rows]

def test_what_fails_is_reported_and_done_when_run_again(quick, tmp_path):
    said, run = [], lambda: compare(methods=["dpo", "kto"], seeds=2, budget="smoke", out=tmp_path / "race", workers=1, say=said.append)
    first = run()
    assert [(f["method"], f["seed"], f["error"]) for f in first["failed"]] == [("kto", 1, "RuntimeError: no room")] and [(r["method"], r["seed"]) for r in first["rows"]] == [("start", 0), ("start", 1), ("dpo", 0), ("dpo", 1), ("kto", 0)]
    assert any("kto 1: failed, RuntimeError: no room" in line for line in said) and any("min to go" in line for line in said)
    quick.mended = True
    (tmp_path / "race" / "rows" / "dpo-0.json").unlink()                        # as if it had been killed before this row
    second = run()
    assert second["failed"] == [] and len(second["rows"]) == 6 and timeless(second["rows"])[:5] == timeless(first["rows"])

def test_a_benchmark_is_scored_beside_the_lab(quick, tmp_path):
    from alignlab.helpdesk import make_prompts, respond
    rows = [dict(prompt=p, chosen=respond(p, "good", 1), rejected=respond(p, "decent", 2), subset="desk" if i % 2 else "town") for i, p in enumerate(make_prompts("test", 8, 3))]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    r = compare(methods=["dpo"], seeds=2, budget="smoke", out=tmp_path / "race", workers=1, say=lambda line: None, benchmark=str(tmp_path / "bench.jsonl"))
    scores = {(x["method"], x["seed"]): x["report"]["benchmark"] for x in r["rows"]}
    assert scores["start", 0]["total"]["mean"] == .5 != scores["dpo", 0]["total"]["mean"] and scores["start", 0]["longest"] == scores["dpo", 1]["longest"]
    save_report(r, tmp_path / "race"); page, md = ((tmp_path / "race" / f"report.{k}").read_text() for k in ("html", "md"))
    assert "Benchmark: bench.jsonl" in page and "without reference" in md and page.count("data:image/png") == 4

def test_on_pairs_there_is_no_gold(tmp_path):
    "Rows as a lab without a true reward gives them: everything is told by held-out pairs"
    r = result(rlhf=[.1, .2, .1, .2], dpo=[.3, .4, .3, .4])
    for x in r["rows"]:
        g = x["report"].pop("gold"); x["report"] = {k: x["report"][k] for k in ("kl", "length")} | dict(preference_accuracy=g, attributes={}); x["each"] = {}; x["samples"] = [dict(s, prompt=[dict(role="user", content="<b>who</b> ?")], gold=None) for s in x["samples"]]
    r["rows"][0]["report"]["knows_nothing"] = dict(longest=dict(mean=.4, low=.3, high=.5, n=9)); r["plan"] |= dict(lab="pairs", benchmark=None)
    rows = {x["method"]: x for x in summary(r)}
    assert rows["dpo"]["gain"][2] == "better" and rows["dpo"]["gold"] is None and rows["dpo"]["tax"] is None and rows["dpo"]["share_of_attainable"] is None
    save_report(r, tmp_path); page = (tmp_path / "report.html").read_text()
    assert "Best by pairs told right: <b>DPO</b>" in page and "longest 0.40 [0.30, 0.50]" in page and "&lt;b&gt;who" in page

def test_on_pairs_nothing_is_tuned(tmp_path, monkeypatch):
    plan = Plan("pairs", "s", "w", "smoke", 8, 8)
    with pytest.raises(ValueError, match="settings cannot be tuned there"): tune(plan, ["dpo"], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert comparison._settings(plan, ["dpo", "best_of_n"], []) == dict(dpo=dict(lr=1e-5), best_of_n={})

def test_rows_of_other_settings_are_made_again(quick, tmp_path):
    run = lambda **settings: comparison._job(Plan.of("helpdesk", "smoke"), tmp_path, "rows", "dpo", 0, settings)
    first = run(lr=1e-4); again = run(lr=1e-4); other = run(lr=3e-4)
    assert first == again and other["settings"] == dict(lr=3e-4) and run(lr=3e-4) == other

def test_trials_go_on_where_they_were(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_TRIALS", 3)
    run = lambda: tune(Plan.of("helpdesk", "smoke"), ["dpo", "kto"], tmp_path, say=lambda line: None)
    first, failed = run(); assert not failed and [(t["method"], t["trial"], t["settings"]) for t in first] == [("dpo", i, drawn("dpo", i)) for i in range(3)]           # kto has nothing to tune
    (tmp_path / "trials" / "dpo-1.json").unlink(); times = lambda: {p.name: p.stat().st_mtime_ns for p in (tmp_path / "trials").iterdir()}
    kept = times(); second, _ = run()
    assert {k: v for k, v in times().items() if k in kept} == kept and [{**t, "seconds": 0} for t in second] == [{**t, "seconds": 0} for t in first]

@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_killed_anywhere_it_leaves_no_process_and_goes_on(tmp_path):
    line = [sys.executable, "-m", "alignlab", "compare", "--methods", "dpo", "--seeds", "2", "--workers", "2", "--budget", "smoke", "--out", "race", "--json"]
    def environ(p):
        try: return open(f"/proc/{p}/environ", "rb").read()
        except OSError: return b""                                              # somebody else's, or gone by now
    def alive(): return [p for p in os.listdir("/proc") if p.isdigit() and f"ALIGNLAB_TEST={tmp_path}".encode() in environ(p)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ALIGNLAB_TEST": str(tmp_path)}
    process, rows = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), tmp_path / "race" / "rows"
    until = time.monotonic() + 240
    while not (rows.is_dir() and list(rows.glob("*.json"))) and time.monotonic() < until: time.sleep(.05)
    assert len(alive()) >= 3                                                    # itself and two workers
    process.send_signal(signal.SIGKILL); process.wait()
    while alive() and time.monotonic() < until: time.sleep(.1)
    assert not alive()
    before = {p.name: p.read_text() for p in rows.glob("*.json")}; assert 1 <= len(before) < 4
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == [] and [(r["method"], r["seed"]) for r in found["rows"]] == [("dpo", 0), ("dpo", 1)] and all((rows / k).read_text() == v for k, v in before.items())

def test_folders_of_another_comparison_are_refused(quick, tmp_path):
    comparison._begin(tmp_path, Plan.of("helpdesk", "lesson"))
    with pytest.raises(ValueError, match="another comparison: budget was lesson, now smoke"): compare(methods=["dpo"], seeds=1, budget="smoke", out=tmp_path)
    with pytest.raises(ValueError, match="unknown methods telepathy"): compare(methods=["telepathy"], out=tmp_path / "new")
    with pytest.raises(ValueError, match="unknown methods rl_cai: on sentiment there are"): compare(lab="sentiment", methods=["rl_cai"], out=tmp_path / "new")
    with pytest.raises(ValueError, match="a judge is for lab pairs"): compare(methods=["dpo"], out=tmp_path / "new", judge="some-model")
    with pytest.raises(ValueError, match="none.jsonl: no such file"): compare(methods=["dpo"], out=tmp_path / "new", benchmark="none.jsonl")
    with pytest.raises(ValueError, match="are for lab pairs"): compare(methods=["dpo"], out=tmp_path / "new", data="pairs.jsonl")
    (tmp_path / "said.jsonl").write_text(json.dumps(dict(instruction="p", output="a", generator="g")) + "\n")
    with pytest.raises(ValueError, match="said.jsonl: replies to compare with.*name a judge"): compare(methods=["dpo"], out=tmp_path / "new", benchmark=str(tmp_path / "said.jsonl"))
    with pytest.raises(ValueError, match="seeds must be at least 1"): compare(methods=["dpo"], seeds=0, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()

def test_an_interval_that_is_none_in_a_file_is_shown_without_one():
    e = report._read(dict(mean=.5, low=None, high=None, n=1))
    assert math.isnan(e.low) and math.isnan(e.high) and str(e).startswith("0.50")
