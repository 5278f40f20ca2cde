"Labs: what they promise to every chapter, whichever it is."
import pytest
import torch

from alignlab.labs import RewardAnnotator, open_lab

def test_options_and_names():
    with pytest.raises(ValueError, match="unknown lab 'casino': there are helpdesk, sentiment, pairs"): open_lab("casino")
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
    n = 4000; p = a.prefer([""] * 2, ["1", "0"], ["0", "1"])
    torch.testing.assert_close(p, torch.sigmoid(torch.tensor([2., -2.])))
    labels = a.label([""] * n, ["1"] * n, ["0"] * n, seed=3)
    assert labels.float().mean().item() == pytest.approx(p[0].item(), abs=.03) and a.labels == n and torch.equal(labels, a.label([""] * n, ["1"] * n, ["0"] * n, seed=3))
