"The comparison: its statistics, and what it promises when something goes wrong."
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from alignlab import comparison
from alignlab.comparison import METHODS, Contestant, Plan, against, card_verdicts, compare, differences, drawn, fieller, holm, markdown, picked, save_report, summary

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
        assert trials == [drawn(m, i) for i in range(12)] and len({str(t) for t in trials}) == 12
        assert all(low <= t[k] <= high for t in trials for k, (low, high) in c.space.items())

def test_annotators_pick_and_gold_has_no_say():
    trials = [dict(method="dpo", trial=i, settings=dict(lr=i), win_rate=w, gold=g) for i, (w, g) in enumerate([(.5, .9), (.7, .1), (.7, .8)])]
    assert picked(trials) == picked(trials[::-1]) == {"dpo": dict(lr=1)}

def row(method, seed, gold, kl=1., **more):
    e = lambda v: dict(mean=v, low=v - .1, high=v + .1, n=8)
    costs = dict(seconds=10., tokens_trained=5, tokens_generated=0, labels=100, demonstrations=0, judge_calls=0, models_in_memory=1)
    return dict(method=method, seed=seed, settings={}, costs={} if method == "start" else costs, report=dict(gold=e(gold), win_rate=e(.6), kl=e(kl), length=e(30.)), each=dict(gold=[gold, gold + .2, gold - .1]),
                samples=[dict(prompt="<b>who</b> ?", completion="<script>x</script>", gold=gold)], history=[]) | more

def result(**golds):
    rows = [row("start", s, -.3) for s in range(4)] + [row(m, s, g) for m, gs in golds.items() for s, g in enumerate(gs)]
    return dict(plan=dict(lab="nowhere", budget="smoke", completions=128, prompts=8), settings={}, trials=[], rows=rows, failed=[])

def test_differences_are_taken_seed_by_seed_and_of_one_seed_prompt_by_prompt():
    r = result(dpo=[.1, .3, .2, .4], kto=[.0, .2, .1, .3])["rows"]
    assert differences(r, "dpo", "kto") == pytest.approx([.1] * 4)
    one = [x for x in r if x["seed"] == 2]
    assert differences(one, "dpo", "kto") == pytest.approx([.1] * 3) and differences([x for x in r if x["method"] != "kto"], "dpo", "kto") == []

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

def test_the_page_stands_alone_and_lets_nothing_in(tmp_path):
    r = result(rlhf=[.1, .2, .1, .2], dpo=[.1, .2, .1, .2]) | dict(failed=[dict(method="kto", seed=0, error="<i>boom</i>")])
    page = save_report(r, tmp_path).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<i>boom" not in page and "http" not in page.replace("http-equiv", "") and page.count("data:image/png") == 2
    assert json.loads((tmp_path / "report.json").read_text())["table"][0]["method"] == "rlhf" and "NaN" not in (tmp_path / "report.json").read_text() and (tmp_path / "report.md").read_text() == markdown(summary(r))

@pytest.fixture
def quick(monkeypatch):
    "Two contestants that train for a step, one of which fails on seed 1; reports without skills"
    from alignlab.dpo import DPOArgs, train_dpo
    from alignlab.labs import HelpdeskLab
    whole = HelpdeskLab.evaluate
    monkeypatch.setattr(HelpdeskLab, "evaluate", lambda self, policy, n=None, seed=0: whole(self, policy, n=8, seed=seed, skills=False))
    def once(t, **s): return train_dpo(t.start, t.pairs[:8], DPOArgs(steps=1, batch_size=4, seed=t.seed))
    def fails(t, **s):
        if t.seed == 1 and not fails.mended: raise RuntimeError("no room")
        return once(t)
    fails.mended = False
    monkeypatch.setattr(comparison, "METHODS", dict(dpo=Contestant("DPO", "pairs", once, {}), kto=Contestant("KTO", "thumbs", fails, {})))
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

def test_rows_of_other_settings_are_made_again(quick, tmp_path):
    run = lambda **settings: comparison._job(Plan.of("helpdesk", "smoke"), tmp_path, "rows", "dpo", 0, settings)
    first = run(lr=1e-4); again = run(lr=1e-4); other = run(lr=3e-4)
    assert first == again and other["settings"] == dict(lr=3e-4) and run(lr=3e-4) == other

def test_folders_of_another_comparison_are_refused(quick, tmp_path):
    comparison._begin(tmp_path, Plan.of("helpdesk", "lesson"))
    with pytest.raises(ValueError, match="another comparison: budget was lesson, now smoke"): compare(methods=["dpo"], seeds=1, budget="smoke", out=tmp_path)
    with pytest.raises(ValueError, match="unknown methods telepathy"): compare(methods=["telepathy"], out=tmp_path / "new")
    with pytest.raises(ValueError, match="seeds must be at least 1"): compare(methods=["dpo"], seeds=0, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
