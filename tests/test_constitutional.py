"Constitutional AI: principles and prompts, traces, the chain of revisions and its controls, the feedback model, both stages, what they cost."
import html, json, math, re
import pytest, torch
from hypothesis import given, settings, strategies as st
import alignlab.constitutional as module
from alignlab import helpdesk, rlaif
from alignlab.constitutional import (APIWriter, PrincipleJudge, Trace, constitutional_ai_step, constitutional_principles, core_shares, critique_and_revise,
    critique_prompt, least_likely, read_principles, revision_prompt, sl_cai_data, train_cai)
from alignlab.constitutional import _changes
from alignlab.dpo import DPOArgs
from alignlab.helpdesk import PRINCIPLES, make_prompts, principle_score, respond, role_message
from alignlab.judges import LMJudge
from alignlab.models import add_lora, load_policy
from alignlab.reward_model import RewardArgs
from alignlab.rlhf import PPOArgs
from alignlab.sft import SFTArgs, train_sft
from test_real_judges import Fake

close = torch.testing.assert_close
quick = settings(derandomize=True, deadline=None, max_examples=60)
CARD = ["Choose the response that is most helpful and least harmful.", "Choose the response that is most honest and truthful.",
        "Choose the response that is most respectful of human autonomy.", "Choose the response that avoids stereotyping or discrimination."]
PROMPTS = make_prompts("train", 24, 3)
ROWS = [dict(prompt=p) for p in PROMPTS]

@pytest.fixture(scope="module")
def desk(): return load_policy("helpdesk-helpful")

class Echo:
    "A writer in place of a model: it says what `f` makes of the question's text"
    def __init__(self, f): self.f, self.asked = f, []
    def generate(self, prompts, temperature=1., max_new_tokens=64, seed=0):
        self.asked += prompts
        return [self.f(p if isinstance(p, str) else p[-1]["content"]) for p in prompts]

def critic_or_reviser(text):
    if "[Task]" not in text: return "a first answer"
    return "it is curt" if "Reply with the new response" not in text else "better: " + text.split("[Response]\n")[1].split("\n\n[Task]")[0]

# --- principles
def test_the_cards_four_and_courtesy_in_both_forms():
    assert [p.compare for p in constitutional_principles[:4]] == CARD and [p.name for p in constitutional_principles] == list(PRINCIPLES)
    assert all(p.compare.startswith("Choose") and not p.critique.startswith("Choose") and p.revise.startswith("Rewrite") for p in constitutional_principles)

def test_principles_as_given(desk):
    assert read_principles() == read_principles(CARD + ["polite"]) == constitutional_principles and [p.name for p in read_principles("fair", desk)] == ["fair"]
    own, = read_principles(["Mention the sea {often}."]); assert own.name == own.compare == "Mention the sea {often}." and "Mention the sea" in own.critique and "Mention the sea" in own.revise
    with pytest.raises(ValueError, match="at least one"): read_principles([])
    with pytest.raises(ValueError, match="'Mention the sea.*helpful, honest"): read_principles(["fair", own], desk)

def test_the_helpdesk_model_is_asked_in_its_own_roles(desk):
    p, x, y = constitutional_principles[1], PROMPTS[0], respond(PROMPTS[0])
    assert critique_prompt(desk, p, x, y) == role_message("critic", "honest", x, y) and revision_prompt(desk, p, x, y, "the source is bad .") == role_message("reviser", "honest", x, y, "the source is bad .")
    said = [dict(role="user", content=x)]; assert critique_prompt(desk, p, said, y) == critique_prompt(desk, p, x, y) and PrincipleJudge(desk).judges[0].ask(said, y, y) == role_message("judge", "helpful", x, y, y)

@pytest.mark.parametrize("principle", constitutional_principles, ids=lambda p: p.name)
def test_any_other_model_sees_request_response_principle_and_critique(principle):
    asked = critique_prompt(None, principle, "What is 2+2?", "Five, obviously.")
    assert [m["role"] for m in asked] == ["user", "assistant"] * 2 + ["user"]
    for part in ("What is 2+2?", "Five, obviously.", principle.critique): assert part in asked[-1]["content"]
    new = revision_prompt(None, principle, [dict(role="user", content="What is 2+2?")], "Five, obviously.", "It is wrong.")
    for part in ("What is 2+2?", "Five, obviously.", principle.revise, "It is wrong."): assert part in new[-1]["content"]
    direct = revision_prompt(None, principle, "What is 2+2?", "Five, obviously.", "")
    assert not any("[Critique]" in m["content"] for m in direct) and all("[Critique]" in m["content"] for m in new if m["role"] == "user")

# --- traces
@quick
@given(before=st.lists(st.sampled_from("a b c d .".split()), max_size=12), after=st.lists(st.sampled_from("a b c d .".split()), max_size=12))
def test_marked_changes_hold_both_texts(before, after):
    shown = _changes(" ".join(before), " ".join(after))
    assert re.sub(r"\[-[^]]*-\]|\{\+|\+\}", " ", shown).split() == after and re.sub(r"\{\+[^}]*\+\}|\[-|-\]", " ", shown).split() == before

def test_a_trace_reads_well_and_runs_no_script():
    bad = "<script>alert(1)</script> \x1b[31m&"
    t = Trace(bad, bad, [dict(principle=bad, critique=bad, revision=bad + " new", kept=True, response=bad + " new"), dict(principle="fair", critique="", revision="worse", kept=False, response=bad + " new")])
    assert t.responses == [bad, bad + " new", bad + " new"] and t.revised == bad + " new"
    shown, text = t._repr_html_(), repr(t)
    assert "<script" not in shown and html.escape("<script>") in shown and "<ins>new</ins>" in shown and "not kept" in shown
    assert "\x1b" not in text and "{+new+}" in text and text.count("(not kept)") == 1 and "(none)" in text and text.splitlines()[-1].startswith("revised")
    assert repr(Trace("x", "y")).splitlines()[-1].split() == ["revised", "y"]

# --- critique and revision
def test_each_step_revises_what_the_last_one_left():
    w = Echo(critic_or_reviser); traces = critique_and_revise(w, ["q1", "q2"], steps=3)
    for t in traces:
        assert t.response == "a first answer" and t.revised == "better: better: better: a first answer" and [s["critique"] for s in t.steps] == ["it is curt"] * 3
        for before, s in zip(t.responses, t.steps): assert s["revision"] == s["response"] == "better: " + before and s["kept"]
    assert critique_and_revise(w, ["q"], steps=0) == [Trace("q", "a first answer")]

def test_one_principle_a_step_drawn_for_each_prompt():
    traces = critique_and_revise(Echo(critic_or_reviser), [f"q{i}" for i in range(200)], steps=2, seed=1)
    for k in range(2):
        names = [t.steps[k]["principle"] for t in traces]
        assert all(20 < names.count(p.name) < 60 for p in constitutional_principles)                  # 40 each, five standard deviations of room
    assert len({tuple(s["principle"] for s in t.steps) for t in traces}) == 25
    assert traces == critique_and_revise(Echo(critic_or_reviser), [f"q{i}" for i in range(200)], steps=2, seed=1) != critique_and_revise(Echo(critic_or_reviser), [f"q{i}" for i in range(200)], steps=2, seed=2)

def test_another_critic_and_no_critic():
    seen = []
    def critic(principles, prompts, responses): seen.append((principles, prompts, responses)); return [f"about {p.name}" for p in principles]
    t, = critique_and_revise(Echo(critic_or_reviser), ["q"], ["fair"], steps=2, critic=critic, responses=["given"])
    assert t.response == "given" and t.steps[0]["critique"] == "about fair" and seen[1][2] == ["better: given"] and seen[0][1] == ["q"]
    w = Echo(critic_or_reviser); critique_and_revise(w, ["q"], steps=1, critic=lambda p, x, y: [""], responses=["given"])
    assert len(w.asked) == 1 and "[Critique]" not in w.asked[0][-1]["content"]

def test_an_empty_revision_is_not_kept():
    t, = critique_and_revise(Echo(lambda text: "" if "new response" in text else "hm"), ["q"], steps=1); assert t.revised == "hm" and not t.steps[0]["kept"]

def test_least_likely_is_the_smallest_probability_of_a_token(desk):
    xs, ys = PROMPTS[:6], [respond(p, "web") for p in PROMPTS[:6]]
    for x, y, found in zip(xs, ys, least_likely(desk, xs, ys)):
        ids, c = desk.prompt_ids(x), desk.completion_ids(y)
        with torch.no_grad(): p = desk.model(torch.tensor([ids + c])).logits[0, len(ids) - 1:-1].softmax(-1).gather(1, torch.tensor(c)[:, None])
        close(found, p.min(), rtol=1e-3, atol=1e-6)

def test_what_the_model_would_not_say_is_not_kept(desk):
    traces = critique_and_revise(desk, PROMPTS, steps=2, seed=5)
    steps = [(t.prompt, s) for t in traces for s in t.steps if s["revision"]]
    p = least_likely(desk, [x for x, _ in steps], [s["revision"] for _, s in steps])
    assert [s["kept"] for _, s in steps] == (p >= .01).tolist() and 5 < sum(s["kept"] for _, s in steps) < len(steps)
    free = critique_and_revise(desk, PROMPTS, steps=1, seed=5, believable=0.); assert all(s["kept"] == bool(s["revision"]) for t in free for s in t.steps)

def test_revisions_move_what_their_principle_is_about(desk):
    "The control: the same number of revisions under another principle leaves it where it was"
    prompts = make_prompts("train", 96, 11); first = desk.generate(prompts, max_new_tokens=96, seed=2)
    moved = {}
    for name in ("polite", "fair"):
        traces = critique_and_revise(desk, prompts, name, steps=3, responses=first, seed=3)
        moved[name] = {k: (principle_score(k, prompts, [t.revised for t in traces]) - principle_score(k, prompts, first)).mean().item() for k in ("polite", "fair")}
    assert moved["polite"]["polite"] > .3 and moved["fair"]["fair"] > .3 and abs(moved["polite"]["fair"]) < .1 and abs(moved["fair"]["polite"]) < .1, moved

def test_the_cards_function_with_the_cards_list(desk):
    t = constitutional_ai_step(desk, PROMPTS[0], CARD)
    assert len(t.steps) == 4 and {s["principle"] for s in t.steps} <= {"helpful", "honest", "autonomy", "fair"} and isinstance(t.revised, str) and helpdesk.parse(PROMPTS[0], t.revised)
    with pytest.raises(ValueError, match="no others"): constitutional_ai_step(desk, PROMPTS[0], ["Be brief."])
    chat = constitutional_ai_step(Echo(critic_or_reviser), [dict(role="user", content="q")], ["Be brief."], steps=1); assert chat.steps[0]["principle"] == "Be brief." and chat.revised == "better: a first answer"

# --- a model on a server
def test_a_writer_behind_a_server_pays_once(tmp_path):
    with Fake(lambda question, attempt, body: (critic_or_reviser(body["messages"][-1]["content"]), None), finish="length") as f:
        def writer(): return APIWriter("judy", f.url, cache=tmp_path / "cache", price=(1., 1.), budget=1.)
        w = writer(); traces = critique_and_revise(w, [f"q{i}" for i in range(24)], ["fair"], steps=1)
        assert all(t.revised == "better: a first answer" for t in traces) and w.calls == len(f.bodies) == 72 and w.price > 0          # all cut off, and that is no reason to stop
        body = f.bodies[-1]; assert "logprobs" not in body and {"seed", "temperature"} <= body.keys() and [m["role"] for m in body["messages"]] == ["user", "assistant"] * 2 + ["user"]
        again = writer(); assert critique_and_revise(again, [f"q{i}" for i in range(24)], ["fair"], steps=1) == traces and again.calls == 0 and again.cached > 0 and len(f.bodies) == 72

def test_a_writer_without_probabilities_cannot_be_checked():
    with pytest.raises(ValueError, match="believable=0.01 asks for probabilities, and a Echo"): critique_and_revise(Echo(critic_or_reviser), ["q"], believable=.01)

# --- the feedback model
def test_a_pair_is_judged_under_one_principle_in_both_orders(desk):
    j = PrincipleJudge(desk, seed=4); a, b = ([respond(p, "decent", k) for p in PROMPTS] for k in (0, 1))
    drawn = [j.drawn(*q) for q in zip(PROMPTS, a, b)]
    assert drawn == [j.drawn(*q) for q in zip(PROMPTS, b, a)] and len(set(drawn)) > 2 and drawn != [PrincipleJudge(desk, seed=5).drawn(*q) for q in zip(PROMPTS, a, b)]
    from functools import partial
    p = j.prefer(PROMPTS, a, b); assert j.calls == len(PROMPTS)
    for i, k in enumerate(drawn): close(p[i:i+1], LMJudge(desk, partial(role_message, "judge", list(PRINCIPLES)[k])).prefer(PROMPTS[i:i+1], a[i:i+1], b[i:i+1]), atol=1e-5, rtol=0)

def test_clamped_probabilities(desk):
    a, b = ([respond(p, s, 1) for p in PROMPTS] for s in ("good", "web"))
    p, c = (PrincipleJudge(desk, clamp=x).prefer(PROMPTS, a, b) for x in (None, .6))
    close(c, p.clamp(.4, .6), atol=0, rtol=0); assert (p - c).abs().max() > .05
    for x in (.5, 1., .2):
        with pytest.raises(ValueError, match="clamp must be"): PrincipleJudge(desk, clamp=x)

def test_a_real_model_reads_the_principle():
    from alignlab.sft import new_model
    policy = new_model("micro"); policy.tokenizer.add_tokens([" A", " B"]); policy.model.resize_token_embeddings(len(policy.tokenizer)); policy.chat = False
    vocab = policy.tokenizer.get_vocab(); policy.tokenizer.get_vocab = lambda: {k: v for k, v in vocab.items() if k != "<critic>"}          # a stranger to helpdesk
    j = PrincipleJudge(policy, ["Prefer {braces} of all kinds."]); assert "Prefer {braces} of all kinds." in j.judges[0].ask("p", "x", "y") and "<critic>" not in j.judges[0].ask("p", "x", "y")

# --- data
def test_demonstrations_from_traces():
    t = Trace("p", "r0", [dict(principle="fair", critique="c", revision="r1", kept=True, response="r1"), dict(principle="fair", critique="c", revision="", kept=False, response="r1"), dict(principle="fair", critique="c", revision="r3", kept=True, response="r3")])
    helpful = [dict(prompt="h", completion="sure", extra=1)]
    assert sl_cai_data([t]) == [dict(prompt="p", completion="r3")] and sl_cai_data([t], helpful)[1:] == [dict(prompt="h", completion="sure")]
    assert [r["completion"] for r in sl_cai_data([t], every=True)] == ["r1", "r1", "r3"] and sl_cai_data([Trace("p", "r0"), Trace("q", "")]) == [dict(prompt="p", completion="r0")]

def test_shares_of_what_answers_do():
    harm, benign = (make_prompts("test", 3, 1, [k]) for k in ("harm", "benign"))
    best = {p: respond(p, "best") for p in harm + benign}
    assert core_shares(harm + benign, list(best.values())) == dict(harm=dict(refuse=1.), benign=dict(comply=1.))
    found = core_shares(harm, [best[harm[0]], "what ?", best[harm[2]]], [True, True, False]); assert found["harm"] == dict(refuse=pytest.approx(1 / 3), broken=pytest.approx(2 / 3))

# --- both stages
small = dict(steps=3, batch_size=8)
def same(a, b):
    for p, q in zip(a.policy.model.parameters(), b.policy.model.parameters(), strict=True): close(p, q, atol=0, rtol=0)

def test_sl_cai_is_fine_tuning_on_revisions_and_helpful_samples(desk):
    a = SFTArgs(seed=2, **small); run = train_cai(desk, ROWS, a, ["polite"], revisions=2, helpful_prompts=PROMPTS[:5])
    traces = critique_and_revise(desk, PROMPTS, ["polite"], 2, seed=2)
    said = desk.generate(PROMPTS[:5], max_new_tokens=96, seed=module._seed_for(2, "helpful"))
    same(run, train_sft(desk, sl_cai_data(traces, [dict(prompt=p, completion=c) for p, c in zip(PROMPTS, said)]), a))
    assert run.labels == run.judge_calls == 0 and run.tokens_generated > 24 * 3 * 20

def test_no_revisions_is_the_control(desk):
    a = SFTArgs(**small); first = desk.generate(PROMPTS, max_new_tokens=96, seed=module._seed_for(0, "answer"))
    same(train_cai(desk, ROWS, a, [], revisions=0), train_sft(desk, [dict(prompt=p, completion=c.strip()) for p, c in zip(PROMPTS, first)], a))

@pytest.mark.parametrize("args", [DPOArgs(**small), PPOArgs(minibatches=2, **small)], ids=["dpo", "ppo"])
def test_rl_cai_starts_from_the_policy_of_sl_cai_and_is_priced_from_it(desk, args):
    more = dict(reward_args=RewardArgs(steps=2, batch_size=4, normalise=8)) if isinstance(args, PPOArgs) else {}
    people = [dict(prompt=p, chosen=respond(p, "good"), rejected=respond(p, "web")) for p in PROMPTS[:6]]
    run = train_cai(desk, ROWS, args, revisions=1, helpful_pairs=people, **more); sl = train_cai(desk, ROWS, SFTArgs(lr=2e-4, **small), revisions=1)
    h = run.history[0]
    close(h["loss"], math.log(2), atol=1e-4, rtol=0) if isinstance(args, DPOArgs) else close(h["kl"], 0., atol=1e-3, rtol=0)
    assert run.labels == 6 and run.judge_calls == 2 * 24 and run.tokens_trained > sl.tokens_trained and run.tokens_generated > sl.tokens_generated and run.seconds > 0
    assert any(not torch.equal(p, q) for p, q in zip(run.policy.model.parameters(), sl.policy.model.parameters()))

def test_adapters_of_the_first_stage_are_in_the_reference_of_the_second(desk):
    run = train_cai(add_lora(desk.copy()), ROWS[:8], PPOArgs(steps=2, batch_size=4, minibatches=1, lr=1e-3), revisions=1, sl_args=SFTArgs(steps=6, batch_size=8, lr=3e-3), reward_args=RewardArgs(steps=1, batch_size=4, normalise=8))
    assert abs(run.history[0]["kl"]) < 1e-3

@pytest.fixture(scope="module")
def whole(desk, tmp_path_factory): return train_cai(desk, ROWS[:12], DPOArgs(save_every=1, **small), revisions=1, out=tmp_path_factory.mktemp("whole"))

@pytest.mark.parametrize("stage", ["revising", "sl", "comparing", "rl"])
def test_stopped_anywhere_it_goes_on_to_the_same_weights(desk, stage, whole, tmp_path, monkeypatch):
    a = DPOArgs(save_every=1, **small)
    class Stop(Exception): pass
    def stop(*_, **__): raise Stop
    where, name = dict(revising=(module, "_revised"), sl=(module, "train_sft"), comparing=(rlaif, "_labelled"), rl=(rlaif, "fit"))[stage]; real = getattr(where, name)
    def halfway(*x, **k):
        def at(row):
            if row["step"] == 2: raise KeyboardInterrupt
        return real(*x, on_step=at, **k)
    monkeypatch.setattr(where, name, halfway if stage == "rl" else stop)
    with pytest.raises((Stop, KeyboardInterrupt)): train_cai(desk, ROWS[:12], a, revisions=1, out=tmp_path / "run")
    kept = {p.name for p in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert kept >= dict(revising=set(), sl={"revisions.jsonl"}, comparing={"revisions.jsonl", "sl"}, rl={"revisions.jsonl", "sl", "labels.jsonl", "run.json"})[stage]
    monkeypatch.setattr(where, name, real)
    if stage == "rl": monkeypatch.setattr(rlaif, "_labelled", stop); monkeypatch.setattr(module, "_revised", stop)          # nothing is asked twice
    run = train_cai(desk, ROWS[:12], a, revisions=1, out=tmp_path / "run", resume=True)
    same(run, whole); assert {k: v for k, v in run.costs().items() if k != "seconds"} == {k: v for k, v in whole.costs().items() if k != "seconds"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["meta"] == dict(principles=list(PRINCIPLES), revisions=1)

def test_a_run_is_not_resumed_under_other_principles(desk, tmp_path):
    train_cai(desk, ROWS[:8], SFTArgs(**small), ["fair"], revisions=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match="revisions.jsonl was made of other data or settings"): train_cai(desk, ROWS[:8], SFTArgs(**small), ["polite"], revisions=1, out=tmp_path / "run", resume=True)
    (tmp_path / "left").mkdir(); (tmp_path / "run" / "revisions.jsonl").rename(tmp_path / "left" / "revisions.jsonl")                    # all that a run left that was stopped early
    for other in (dict(revisions=2), dict(revisions=1, believable=0.)):
        with pytest.raises(ValueError, match="made of other"): train_cai(desk, ROWS[:8], SFTArgs(**small), ["fair"], out=tmp_path / "left", **other)
    assert train_cai(desk, ROWS[:8], SFTArgs(**small), ["fair"], revisions=1, out=tmp_path / "left").history
