"RLAIF: AI labels and what is left out of them, soft labels against closed forms, judges as rewards, the three ways, and their cost."
import json, math
import pytest, torch
from hypothesis import given, settings, strategies as st
from alignlab.dpo import DPOArgs, dpo_loss, train_dpo
from alignlab.dpo_family import cdpo_loss
from alignlab.helpdesk import PRINCIPLES, make_prompts, principle_score, role_message
from alignlab.judges import GoldJudge, helpdesk_judge, swap_average
from alignlab.labs import open_lab
from alignlab.models import load_policy
from alignlab.preferences import collect_preferences
from alignlab.reward_model import RewardArgs
from alignlab.rlaif import ScoreReward, direct_reward, fit_scale, generate_rlaif_data, label_pairs, rescale, soft_dpo_loss, train_rlaif
from alignlab.rlhf import PPOArgs
from test_real_judges import Fake

close, nan = torch.testing.assert_close, math.nan
quick = settings(derandomize=True, deadline=None, max_examples=60)

@pytest.fixture(scope="module")
def lab(): return open_lab("helpdesk")

class Table:
    "A judge with P by (first, second)"
    def __init__(self, p): self.p, self.calls = p, 0
    def prefer(self, prompts, first, second): self.calls += len(prompts); return torch.tensor([float(self.p(a, b)) for a, b in zip(first, second)])

# --- labels
def test_what_gives_no_pair_is_counted_and_the_rest_has_soft_labels():
    p = {("a", "b"): .9, ("b", "a"): .3, ("c", "d"): .8, ("d", "c"): .8, ("e", "f"): nan, ("f", "e"): .2, ("g", "h"): .9, ("h", "g"): .6, ("i", "j"): .2, ("j", "i"): .9}
    j = Table(lambda a, b: p[a, b])
    d = label_pairs(list("123456789"), ["a", "c", "e", "g", "i", "x", "", " y", "z"], ["b", "d", "f", "h", "j", "x", "k", "y ", " "], j)
    assert d.info.description == "3 of 9 pairs have a label; 4 empty or identical; 1 tie; 1 unparsed; 1 flip with the order" and j.calls == 10
    assert [(r["prompt"], r["chosen"], r["rejected"], r["consistent"]) for r in d] == [("1", "a", "b", True), ("4", "g", "h", False), ("5", "j", "i", True)]
    close(torch.tensor(d["p_chosen"][:]), torch.tensor([.8, .65, .85]), atol=1e-6, rtol=0)

def test_no_label_at_all_is_an_error_that_says_why():
    with pytest.raises(ValueError, match="0 of 2 pairs have a label; 2 tie.*another judge"): label_pairs(["x", "y"], ["a", "b"], ["c", "d"], Table(lambda a, b: .7))

@quick
@given(table=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_labels_do_not_depend_on_which_answer_is_called_first(table):
    texts = [(f"a{i}", f"b{i}") for i in range(len(table))]; p = {}
    for (a, b), (u, v) in zip(texts, table): p[a, b], p[b, a] = u, v
    x, first, second = [str(i) for i in range(len(table))], *map(list, zip(*texts))
    def rows(*q):
        try: return [(r["chosen"], round(r["p_chosen"], 6), r["consistent"]) for r in label_pairs(*q, Table(lambda a, b: p[a, b]))]
        except ValueError: return []
    assert rows(x, first, second) == rows(x, second, first)

def test_generate_rlaif_data_as_the_card_calls_it():
    x = make_prompts("train", 24); d = generate_rlaif_data(x, teacher_model="helpdesk-sft")
    assert d.column_names == ["prompt", "chosen", "rejected", "p_chosen", "consistent"] and 16 <= len(d) <= 24 and min(d["p_chosen"]) > .5 and "flip with the order" in d.info.description
    sft = load_policy("helpdesk-sft"); again = generate_rlaif_data(x, helpdesk_judge(sft), sft)
    assert d[:] == again[:]
    old = {r["prompt"]: r for r in collect_preferences(sft, x, swap_average(helpdesk_judge(sft)), 0, max_new_tokens=96)}           # the slow way, of another chapter
    assert all((old[r["prompt"]]["chosen"], pytest.approx(old[r["prompt"]]["p_chosen"], abs=1e-5)) == (r["chosen"], r["p_chosen"]) for r in d)

def test_generate_rlaif_data_through_a_server(tmp_path):
    def prefers_short(question, *a):
        a, b = question.split("[Answer A]\n")[1].split("\n\n[Answer B]\n"); b = b.split("\n\nReply")[0]
        return ("I would not say." if len(a.split()) % 5 == 0 else "A" if len(a) < len(b) else "B"), None
    with Fake(prefers_short) as f:
        d = generate_rlaif_data(make_prompts("train", 12), "any-model", base_url=f.url, cache=tmp_path)
        assert all(len(r["chosen"]) <= len(r["rejected"]) and r["consistent"] and r["p_chosen"] == 1 for r in d) and "unparsed" in d.info.description

def test_a_retired_teacher_is_one_line_that_names_the_parameter():
    with pytest.raises(ValueError, match=r"'gpt-4' cannot be asked any more: OpenAI shut it down on 2026-10-23; name another model \(teacher_model="): generate_rlaif_data(["x"], "gpt-4")

# --- soft labels
four = st.lists(st.floats(-20, 0), min_size=4, max_size=4)
@quick
@given(lps=four, p=st.floats(.5, 1), beta=st.floats(.05, 2))
def test_soft_dpo_is_dpo_at_1_and_conservative_dpo_between(lps, p, beta):
    x = [torch.tensor([v], dtype=torch.float64) for v in lps]
    close(soft_dpo_loss(*x, torch.ones(1), beta)[0], dpo_loss(*x, beta)[0])
    if p > .5: close(soft_dpo_loss(*x, torch.tensor([p], dtype=torch.float64), beta)[0], cdpo_loss(*x, beta, 1 - p)[0])
    turned = [x[1], x[0], x[3], x[2]]; close(soft_dpo_loss(*x, torch.tensor([p], dtype=torch.float64), beta)[0], soft_dpo_loss(*turned, torch.tensor([1 - p], dtype=torch.float64), beta)[0])

@quick
@given(p=st.floats(.02, .98), beta=st.floats(.1, 1))
def test_the_optimum_of_a_soft_label_is_a_margin_of_its_log_odds(p, beta):
    h = torch.tensor([math.log(p / (1 - p)) / beta], dtype=torch.float64, requires_grad=True); zero = torch.zeros(1, dtype=torch.float64)
    soft_dpo_loss(h, zero, zero, zero, torch.tensor([p], dtype=torch.float64), beta)[0].sum().backward()
    close(h.grad, torch.zeros(1, dtype=torch.float64), atol=1e-9, rtol=0)

def test_soft_dpo_on_an_enumerable_policy_finds_the_optimum_of_bradley_terry():
    "One prompt, four responses, labels of a known reward: the policy is the reference tilted by reward / beta"
    beta, reward, ref = .5, torch.tensor([.3, -.4, 1., 0.], dtype=torch.float64), torch.tensor([.4, .3, .2, .1], dtype=torch.float64).log()
    i, j = map(torch.tensor, zip(*[(a, b) for a in range(4) for b in range(4) if a != b]))
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True); opt = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    def step():
        opt.zero_grad(); lp = theta.log_softmax(0)
        loss = soft_dpo_loss(lp[i], lp[j], ref[i], ref[j], torch.sigmoid(reward[i] - reward[j]), beta)[0].mean(); loss.backward(); return loss
    opt.step(step)
    close(theta.softmax(0), (ref + reward / beta).softmax(0), atol=1e-5, rtol=0)

def test_without_soft_labels_it_is_dpo_bit_for_bit(lab):
    pairs = list(lab.preferences(32, 0)); j = GoldJudge(lab.gold); a = DPOArgs(steps=3, batch_size=8)
    mine = train_rlaif(lab.start, pairs, a, j, soft=False)
    theirs = train_dpo(lab.start, [dict(prompt=r["prompt"], chosen=r["chosen"], rejected=r["rejected"]) for r in label_pairs(*([r[k] for r in pairs] for k in ("prompt", "chosen", "rejected")), j)], a)
    for p, q in zip(mine.policy.model.parameters(), theirs.policy.model.parameters()): close(p, q, atol=0, rtol=0)
    assert mine.labels == 0 and mine.judge_calls == 64

@quick
@given(scale=st.floats(.3, 4), seed=st.integers(0, 20))
def test_fit_scale_finds_how_timid_a_judge_was(scale, seed):
    g = torch.Generator().manual_seed(seed); logit = torch.randn(4000, generator=g)
    said, truth = torch.sigmoid(logit / scale), torch.rand(4000, generator=g) < torch.sigmoid(logit)
    found = fit_scale(said, truth.float()); assert found == pytest.approx(scale, rel=.15)
    close(rescale(said, scale), torch.sigmoid(logit), atol=1e-3, rtol=0)

def test_fit_scale_without_pairs():
    with pytest.raises(ValueError, match="nothing to fit"): fit_scale(torch.tensor([nan]), torch.tensor([1.]))

# --- direct
def test_rubric_is_the_critics_own_probability(lab):
    x = make_prompts("test", 6); y = lab.start.generate(x, max_new_tokens=96, seed=3); r = direct_reward(lab.start); got = r.each(x, y)
    for k, row in zip(PRINCIPLES, got):
        asked = [role_message("critic", k, p, c) for p, c in zip(x, y)]
        with torch.no_grad(): good, bad = (lab.start.logps(asked, [w] * 6, ended=False).cpu() for w in ("nothing", "the"))
        close(row, 2 * torch.sigmoid(good - bad) - 1, atol=1e-4, rtol=0)
    assert r.calls == 30 and r.tokens > 0; close(r(x, y), got.mean(0), atol=1e-5, rtol=0)

def test_rubric_tells_good_answers_from_bad_under_its_principle(lab):
    x = make_prompts("test", 120); y = lab.start.generate(x, max_new_tokens=96, seed=3)
    score, truth = direct_reward(lab.start, ["fair"])(x, y), principle_score("fair", x, y)
    assert torch.corrcoef(torch.stack([score, truth]))[0, 1] > .5

def test_scores_must_be_single_tokens(lab):
    with pytest.raises(ValueError, match="'lighthouse keeper'.*1 to 9"): ScoreReward(lab.start, [lambda p, c: p], {"a": 0, "lighthouse keeper": 1})

def test_direct_reward_needs_ppo(lab):
    with pytest.raises(ValueError, match="no pairs for DPO"): train_rlaif(lab.start, [dict(prompt="x")], DPOArgs(), direct_reward(lab.start))

# --- the three ways
ROWS = [dict(prompt=p) for p in make_prompts("train", 24)]
def test_three_ways_learn_and_count_what_they_cost(lab):
    small = dict(steps=2, batch_size=8)
    dpo = train_rlaif(lab.start, ROWS, DPOArgs(**small)); assert dpo.judge_calls <= 24 * 2 * 5 and dpo.judge_calls % 10 == 0 and dpo.tokens_generated > 24 * 2 * 5 and dpo.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    ppo = train_rlaif(lab.start, ROWS, PPOArgs(minibatches=2, **small), watch=lab.gold, reward_args=RewardArgs(steps=2, batch_size=8, normalise=8)); assert abs(ppo.history[0]["kl"]) < 1e-4 and ppo.judge_calls == dpo.judge_calls and "gold" in ppo.history[0]
    direct = train_rlaif(lab.start, ROWS, PPOArgs(minibatches=2, **small), direct_reward(lab.start), watch=lab.gold); assert direct.judge_calls == 2 * 8 * 5 and -1 <= direct.history[0]["score"] <= 1
    assert [r.labels for r in (dpo, ppo, direct)] == [0, 0, 0]
    start = list(lab.start.model.parameters()); assert all(any(not torch.equal(p, q) for p, q in zip(start, r.policy.model.parameters())) for r in (dpo, ppo, direct))

def test_the_labels_are_bought_once(lab, tmp_path):
    class Paid(Table):
        def __init__(self): super().__init__(lambda a, b: len(a) / (len(a) + len(b)))
    j, a = Paid(), DPOArgs(steps=4, batch_size=8, save_every=2)
    whole = train_rlaif(lab.start, ROWS, a, Paid())
    def stop(row):
        if row["step"] == 2: raise KeyboardInterrupt
    import alignlab.rlaif as module
    real, module.fit = module.fit, lambda *x, **k: real(*x, on_step=stop, **k)
    try:
        with pytest.raises(KeyboardInterrupt): train_rlaif(lab.start, ROWS, a, j, out=tmp_path / "run")
    finally: module.fit = real
    paid = j.calls; run = train_rlaif(lab.start, ROWS, a, j, out=tmp_path / "run", resume=True)
    assert paid > 0 and j.calls == paid and run.judge_calls == paid == whole.judge_calls
    for p, q in zip(run.policy.model.parameters(), whole.policy.model.parameters()): close(p, q, atol=0, rtol=0)
    assert json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[-1])["judge_calls"] == paid

def test_peoples_pairs_are_mixed_in_and_counted(lab):
    people, a = [dict(prompt=p, chosen="bye .", rejected="hello !") for p in make_prompts("train", 5, 9)], DPOArgs(steps=2, batch_size=16)
    run, alone = (train_rlaif(lab.start, ROWS[:8], a, GoldJudge(lab.gold), people=x) for x in (people, ()))
    assert (run.labels, alone.labels) == (5, 0) and run.judge_calls == alone.judge_calls and any(not torch.equal(p, q) for p, q in zip(run.policy.model.parameters(), alone.policy.model.parameters()))
    with pytest.raises(ValueError, match="leave people out"): train_rlaif(lab.start, ROWS[:8], PPOArgs(steps=1, batch_size=4, minibatches=1), direct_reward(lab.start), people=people)

def test_labels_made_of_something_else_are_refused(lab, tmp_path):
    a = DPOArgs(steps=1, batch_size=4); train_rlaif(lab.start, ROWS[:8], a, GoldJudge(lab.gold), out=tmp_path / "run")
    (tmp_path / "left").mkdir(); (tmp_path / "run" / "labels.jsonl").rename(tmp_path / "left" / "labels.jsonl")          # all that a run left that was stopped early
    for rows, judge in ((ROWS[:7], GoldJudge(lab.gold)), (ROWS[:8], None)):
        with pytest.raises(ValueError, match="labels.jsonl was made of other data or settings"): train_rlaif(lab.start, rows, a, judge, out=tmp_path / "left")
    assert train_rlaif(lab.start, ROWS[:8], a, GoldJudge(lab.gold), out=tmp_path / "left").history

def test_pairs_of_a_file_are_judged_anew_whatever_their_labels_say(lab):
    pairs = list(lab.preferences(16, 0)); turned = [dict(prompt=r["prompt"], chosen=r["rejected"], rejected=r["chosen"]) for r in pairs]; a = DPOArgs(steps=2, batch_size=8)
    one, two = (train_rlaif(lab.start, d, a, GoldJudge(lab.gold)) for d in (pairs, turned))
    for p, q in zip(one.policy.model.parameters(), two.policy.model.parameters()): close(p, q, atol=0, rtol=0)
