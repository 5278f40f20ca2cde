"The alignment tax: instruments that must read right on policies whose every habit is known."
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.helpdesk import FACTS, RANK, RELATIONS, make_prompts, parse, read_prompt, respond
from alignlab.models import add_lora, load_policy
from alignlab.tax import BETTER, average_weights, bad_examples, behaviours, beliefs, bill, calibration_error, continued, kl_by_position, text_nll, undone, world_texts

@pytest.fixture(scope="module")
def start(): return load_policy("helpdesk-sft")
@pytest.fixture(scope="module")
def base(): return load_policy("helpdesk-base")

class Says:
    "A policy that gives the answer of a function"
    def __init__(self, answer): self.answer = answer
    def sample(self, prompts, n=1, temperature=1., max_new_tokens=96, seed=0): return SimpleNamespace(text=[self.answer(p) for p in prompts], ended=torch.ones(len(prompts), dtype=torch.bool))

def means(policy, n=24): return {k: v.mean().item() for k, v in behaviours(policy, n).items()}

def test_a_perfect_policy_owes_nothing():
    found = means(Says(lambda p: respond(p, "best")))
    assert found == dict(compliance=0, refusal=1, help=1, over_refusal=0, evasion=0, sycophancy=0)

def test_each_habit_is_seen():
    refuses, shrugs = (Says(lambda p, c=c: c.format(**read_prompt(p).slots)) for c in ("i will not help with the {X} .", "i do not know about the {X} ."))
    assert means(refuses) | dict(sycophancy=0) == dict(compliance=0, refusal=1, help=0, over_refusal=1, evasion=1, sycophancy=0) and means(shrugs)["evasion"] == 1 and means(shrugs)["over_refusal"] == 0
    def flatters(p):
        s = read_prompt(p).slots
        return RELATIONS[s["rel"]][1].format(X=s["X"], V=s["V"]) if "V" in s else respond(p, "best")
    assert means(Says(flatters))["sycophancy"] == 1

def test_believing_it_anyway_is_no_flattery():
    "A policy that always says the same value agrees with some visitors, with and without their opinion"
    found = behaviours(Says(lambda p: RELATIONS[(s := read_prompt(p).slots)["rel"]][1].format(X=s["X"], V=RELATIONS[s["rel"]][2][0]) if read_prompt(p).kind == "fact" else respond(p, "best")), 48)
    assert found["sycophancy"].abs().max() == 0

@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_calibration_error(rows, bins):
    confidence, right = torch.tensor([c for c, _ in rows]), torch.tensor([r for _, r in rows])
    e = calibration_error(confidence, right, bins)
    order = torch.randperm(len(rows))
    assert 0 <= e <= 1 and calibration_error(confidence[order], right[order], bins) == pytest.approx(e, abs=1e-6)
    assert e >= abs(confidence.double().mean() - right.double().mean()) - 1e-6 and calibration_error(confidence, right, 1) == pytest.approx(abs(confidence.double().mean() - right.double().mean()).item(), abs=1e-6)

def test_texts(start, base):
    texts = world_texts(40, 10**6)
    assert len(texts) == 40 and texts == world_texts(40, 10**6) != world_texts(40, 10**6 + 1) and not any(t.startswith("<judge>") for t in texts)
    ids = [start.tokenizer(t).input_ids for t in texts[:3]]
    with torch.no_grad(): logits = [start.model(torch.tensor([i])).logits[0].log_softmax(-1) for i in ids]
    plain = torch.stack([-l[torch.arange(len(i) - 1), torch.tensor(i[1:])].mean() for l, i in zip(logits, ids)])
    torch.testing.assert_close(text_nll(start, texts[:3]), plain, rtol=1e-4, atol=1e-4)
    assert text_nll(base, texts).mean() < text_nll(start, texts).mean()
    with pytest.raises(ValueError, match="text 1 has 1 tokens"): text_nll(start, [texts[0], "hello"])

def test_beliefs(base):
    confidence, right = beliefs(base, list(RANK)[:20])
    assert right.mean() == 1 and confidence.min() > 0 and confidence.max() <= 1 and all((p, r) in FACTS for p, r in list(RANK)[:20])

def test_averages(start, base):
    half = average_weights(start, base, .5)
    for (k, a), b, c in zip(start.model.named_parameters(), base.model.parameters(), half.model.parameters()): torch.testing.assert_close(c, (a + b) / 2, msg=k)
    torch.testing.assert_close(text_nll(average_weights(start, base, 1.), world_texts(4)), text_nll(base, world_texts(4)))
    with pytest.raises(ValueError, match="different parameters"): average_weights(start, add_lora(start.copy(), 2), .5)

def test_where_the_kl_sits(start, base):
    prompts = make_prompts("test", 6, 0)
    kl, there = kl_by_position(start, start, prompts)
    assert kl.abs().max() < 1e-5 and there[0] == 1 and (there.diff() <= 0).all() and len(kl) == len(there)
    assert kl_by_position(base, start, prompts)[0].sum() > .1

def test_continued(start):
    prompts = make_prompts("test", 4, 0)
    plain = start.sample(prompts, 1, 1., 96, 3)
    assert continued(start, prompts, [""] * 4, 3) == (plain.text, plain.ended.tolist())
    answers, _ = continued(start, prompts, ["hello !"] * 4, 3)
    assert all(a.startswith("hello ! ") for a in answers)

def test_ten_examples(start):
    rows, before = bad_examples(10, 3), [p.clone() for p in start.model.parameters()]
    assert rows == bad_examples(10, 3) and len({r["prompt"] for r in rows}) == 10 and all(parse(r["prompt"], r["completion"])[0] == "comply" and read_prompt(r["prompt"]).kind == "harm" for r in rows)
    after = undone(start, rows, steps=3)
    said = [[r[k] for r in rows] for k in ("prompt", "completion")]
    with torch.no_grad(): assert after.logps(*said).mean() > start.logps(*said).mean() + 1
    assert all(torch.equal(a, b) for a, b in zip(before, start.model.parameters()))

def test_a_bill_has_every_item(start):
    found = bill(start, 16)
    assert set(BETTER) | {"refusal", "help"} == set(found) and all(v == v for v in found.values())
