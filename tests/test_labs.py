"Labs: what they promise to every chapter, whichever it is."
import pytest
import torch

from alignlab.labs import RewardAnnotator, open_lab

def test_options_and_names():
    with pytest.raises(ValueError, match="unknown lab 'casino': there are helpdesk, sentiment, constraints, pairs"): open_lab("casino")
    with pytest.raises(ValueError, match="needs a file"): open_lab("pairs")

def test_sentiment_splits_and_truth():
    pytest.importorskip("vaderSentiment")
    lab = open_lab("sentiment")
    sides = {s: lab.prompts(s) for s in ("train", "validation", "test")}
    assert min(map(len, sides.values())) > 20 and len(sides["train"]) > 200 and sum(map(len, sides.values())) == len(set().union(*sides.values()))
    assert lab.prompts("test", 5, seed=1) == lab.prompts("test", 5, seed=1) != lab.prompts("test", 5, seed=2)
    many = lab.prompts("train", 2000); assert len(many) == 2000 and set(many) == set(sides["train"])
    assert abs(lab.gold(sides["train"], sides["train"]).mean()) < .05          # the beginnings themselves are neutral
    good, bad = lab.gold([""] * 2, ["a great and happy day .", "an awful , boring mess ."])
    assert -1 <= bad < -.4 < .4 < good <= 1
    with pytest.raises(ValueError, match="split"): lab.prompts("dev")

def test_annotators_of_a_reward():
    a = RewardAnnotator(lambda p, c: torch.tensor([float(x) for x in c]), temperature=.5)
    ups = RewardAnnotator(a.reward, temperature=.5, threshold=1.).thumbs(["x"] * 4000, ["2"] * 2000 + ["1"] * 2000)
    assert abs(ups[:2000].float().mean() - torch.sigmoid(torch.tensor(2.))) < .03 and abs(ups[2000:].float().mean() - .5) < .04
    n = 4000; p = a.prefer([""] * 2, ["1", "0"], ["0", "1"])
    torch.testing.assert_close(p, torch.sigmoid(torch.tensor([2., -2.])))
    labels = a.label([""] * n, ["1"] * n, ["0"] * n, seed=3)
    assert labels.float().mean().item() == pytest.approx(p[0].item(), abs=.03) and a.labels == n and torch.equal(labels, a.label([""] * n, ["1"] * n, ["0"] * n, seed=3))

def test_constraints_are_verified():
    lab = open_lab("constraints")
    sides = {s: lab.prompts(s) for s in ("train", "validation", "test")}
    assert min(map(len, sides.values())) > 20 and sum(map(len, sides.values())) == len(set().union(*sides.values())) == len(lab.all_prompts())
    p = [x for x in lab.all_prompts() if '"green"' in x and "most 8 " in x][0]
    def held(text, ended=True): return tuple(int(v) for k, v in lab.measure([p], [text], [ended]).items() if k != "gold")
    assert held("Is the green sea calm?") == (1, 1, 1) and held("Is the GREEN sea calm? ") == (1, 1, 1) and held("Is it calm?") == (0, 1, 1)
    assert held("greenish?") == (0, 1, 1) and held("green " * 9 + "?") == (1, 0, 1) and held("green.") == (1, 1, 0) and held("") == (0, 0, 0) and held("Is it green?", False) == (0, 0, 0)
    assert lab.gold([p] * 2, ["green?", "x"]).tolist() == pytest.approx([1., 1 / 3])
    with pytest.raises(ValueError, match="split"): lab.prompts("dev")

def test_pairs_of_every_side():
    lab = open_lab("helpdesk")
    train, test = (lab.preferences(6, 0, split=s) for s in ("train", "test"))
    assert set(train["prompt"]) <= set(lab.prompts("train", 6, 0)) and set(test["prompt"]) <= set(lab.prompts("test", 6, 0))
