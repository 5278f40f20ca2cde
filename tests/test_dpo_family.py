"Relatives of DPO: value and gradient against TRL or the authors' formula, fixed points on a table, invariances, and online rounds."
import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from alignlab.dpo import DPOArgs, dpo_loss
from alignlab.dpo_family import RELATIVES, RelativeArgs, RelativeObjective, cdpo_loss, hinge_loss, ipo_loss, orpo_loss, robust_loss, simpo_loss, train_online_dpo, train_relative
from alignlab.models import Policy
from alignlab.tabular import expected_pair_loss, fit_tabular, optimal_policy, preference_prob
from test_dpo import char_tokenizer, random_llama

quick = settings(derandomize=True, deadline=None, max_examples=40)
four = st.lists(st.floats(-50, -.1), min_size=4, max_size=4).map(lambda x: torch.tensor(x, dtype=torch.float64)[:, None])
betas, rates = st.floats(.01, 5), st.floats(0, .45)
ROWS = dict(prompt=["hi ", "what is it? ", "abc ", "z "], chosen=["yes", "a cat", "def", "ok then"], rejected=["no way man", "dog", "xyzzy", "q"])

@quick
@given(four, betas, rates, st.floats(-20, 20))
def test_formulas_and_invariances(x, beta, eps, shift):
    w, l, rw, rl = x
    h = (w - l) - (rw - rl)
    want = {cdpo_loss: -(1 - eps) * F.logsigmoid(beta * h) - eps * F.logsigmoid(-beta * h), robust_loss: ((1 - eps) * -F.logsigmoid(beta * h) - eps * -F.logsigmoid(-beta * h)) / (1 - 2 * eps)}
    for f, value in want.items():
        torch.testing.assert_close(f(*x, beta, eps)[0], value)
        torch.testing.assert_close(f(*x, beta, 0.)[0], dpo_loss(*x, beta)[0])
        torch.testing.assert_close(f(w + shift, l + shift, rw, rl, beta, eps)[0], value, rtol=1e-6, atol=1e-6)
    flipped = eps * robust_loss(l, w, rl, rw, beta, eps)[0] + (1 - eps) * robust_loss(*x, beta, eps)[0]      # unbiased under flips
    torch.testing.assert_close(flipped, dpo_loss(*x, beta)[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ipo_loss(*x, beta)[0], (h - .5 / beta)**2); torch.testing.assert_close(hinge_loss(*x, beta)[0], (1 - beta * h).clamp(min=0))
    torch.testing.assert_close(simpo_loss(w, l, beta, .5)[0], -F.logsigmoid(beta * (w - l) - .5))
    odds = lambda m: torch.log(m.exp() / (1 - m.exp()))
    torch.testing.assert_close(orpo_loss(w, l)[0], -F.logsigmoid(odds(w) - odds(l)), rtol=1e-6, atol=1e-6)

def test_nothing_overflows():
    x = torch.tensor([-1e4, -1e-6, -5., -5.])[:, None].requires_grad_()
    for f in (cdpo_loss, robust_loss, hinge_loss, ipo_loss):
        losses, metrics = f(*x); losses.sum().backward()
        assert losses.isfinite().all() and x.grad.isfinite().all() and not any(m.requires_grad for m in metrics.values())
    assert orpo_loss(x[0], x[1])[0].isfinite().all() and simpo_loss(x[0], x[1])[0].isfinite().all()

@pytest.mark.parametrize("eps", [-.1, .5, 1, float("nan")])
def test_epsilon_is_checked(eps):
    for f in (cdpo_loss, robust_loss):
        with pytest.raises(ValueError, match="epsilon"): f(*torch.zeros(4, 1), epsilon=eps)
    with pytest.raises(ValueError, match="epsilon"): RelativeArgs(epsilon=eps)

def test_arguments():
    assert RelativeArgs(loss="simpo").beta == 2 and RelativeArgs(loss="simpo", beta=3.).beta == 3 and RelativeArgs().loss == "ipo"
    with pytest.raises(ValueError, match="loss must be one of dpo"): RelativeArgs(loss="ppo")
    with pytest.raises(ValueError, match="beta"): RelativeArgs(beta=0)

@quick
@given(st.integers(0, 10_000), st.floats(.2, 2), st.floats(0, .4))
def test_robust_reaches_the_optimum_through_flipped_labels(seed, beta, eps):
    g = torch.Generator().manual_seed(seed)
    ref, r = torch.randn(2, 3, generator=g, dtype=torch.float64).log_softmax(-1), torch.randn(2, 3, generator=g, dtype=torch.float64)
    p = preference_prob(r); noisy = (1 - eps) * p + eps * (1 - p)
    found = fit_tabular(lambda lp: expected_pair_loss(lambda *a: robust_loss(*a, beta, eps), lp, ref, noisy), ref)
    torch.testing.assert_close(found.exp(), optimal_policy(ref, r, beta).exp(), atol=1e-3, rtol=0)

@pytest.mark.parametrize("beta", [.1, .5, 2.])
def test_certain_preferences(beta):
    "DPO runs to certainty at every beta; IPO stops at sigmoid(1 / 2 beta), cDPO at its own odds."
    ref, always = torch.zeros(1, 2, dtype=torch.float64).log_softmax(-1), torch.tensor([[[.5, 1.], [0., .5]]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        end = {f: fit_tabular(lambda lp: expected_pair_loss(lambda *a: f(*a, beta=beta), lp, ref, always), ref, steps=80)[0] for f in (dpo_loss, ipo_loss, cdpo_loss)}
    assert end[dpo_loss].exp()[0] > .999
    assert end[ipo_loss].exp()[0].item() == pytest.approx(torch.sigmoid(torch.tensor(.5 / beta)).item(), abs=1e-4)
    assert (end[cdpo_loss][0] - end[cdpo_loss][1]).item() * beta == pytest.approx(math.log(9), abs=1e-3)

def ours(name, tok, model, ref, rows=ROWS, **args):
    "(loss, gradients) of a batch under our objective, and the batch's log-probs"
    policy, objective = Policy(copy.deepcopy(model), tok), RelativeObjective(RelativeArgs(loss=name, **args), reference=Policy(ref, tok))
    [data] = objective.batches(policy, objective.prepare(policy, [dict(zip(rows, r)) for r in zip(*rows.values())]))
    losses, metrics = objective.loss(policy, objective.collate(data)); losses.mean().backward()
    return losses.mean(), [p.grad for p in policy.model.parameters()], metrics

def compare(model, theirs, mine, grads, atol=2e-5):
    torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=2e-6)
    for (name, p), g in zip(model.named_parameters(), grads): torch.testing.assert_close(g, p.grad, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")

COMMON = dict(use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", per_device_train_batch_size=4, max_length=None, logging_steps=1)

@pytest.mark.parametrize("name, trl, args, more", [("hinge", "hinge", dict(beta=.3), {}), ("ipo", "ipo", dict(beta=.2), {}), ("robust", "robust", dict(beta=.3, epsilon=.2), dict(label_smoothing=.2)),
    ("dpo_mean", "sigmoid_norm", dict(beta=5.), {}), ("dpo_nll", ["sigmoid", "sft"], dict(beta=.3, alpha=.7), dict(loss_weights=[1., .7]))])
def test_trl_parity(tmp_path, name, trl, args, more):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    tok = char_tokenizer(); model, ref = random_llama(0, len(tok)), random_llama(1, len(tok))
    config = DPOConfig(output_dir=str(tmp_path), beta=args["beta"], loss_type=trl if isinstance(trl, list) else [trl], **more, **COMMON)
    trainer = DPOTrainer(model=copy.deepcopy(model), ref_model=copy.deepcopy(ref), args=config, train_dataset=Dataset.from_dict(ROWS), processing_class=tok)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)]); trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, dict(batch)); theirs.backward()
    mine, grads, _ = ours(name, tok, model, ref, **args)
    compare(trainer.model, theirs, mine, grads, atol=2e-4 if name == "ipo" else 2e-5)

def test_simpo_and_orpo_against_trl(tmp_path):
    "TRL's ORPO takes the likelihood of prompt and completion together; ours of the completion: the odds ratio is compared alone."
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    tok = char_tokenizer(); model = random_llama(0, len(tok))
    for name, trainer, config, args in (("simpo", CPOTrainer, CPOConfig(output_dir=str(tmp_path), loss_type="simpo", cpo_alpha=0, simpo_gamma=.7, beta=2., **COMMON), dict(beta=2., gamma=.7)),
                                        ("orpo", ORPOTrainer, ORPOConfig(output_dir=str(tmp_path), beta=.4, **COMMON), dict(beta=.4))):
        t = trainer(model=copy.deepcopy(model), args=config, train_dataset=Dataset.from_dict(ROWS), processing_class=tok)
        batch = t.data_collator([t.train_dataset[i] for i in range(4)]); t.model.train()
        theirs, found = t.get_batch_loss_metrics(t.model, dict(batch), "train")
        mine, grads, metrics = ours(name, tok, model, model, **args)
        if name == "simpo":
            theirs.backward(); compare(t.model, theirs, mine, grads)
        else:
            ratio = (ours(name, tok, model, model, beta=.8)[0] - mine).item() / .4        # ours is nll + beta * ratio
            assert ratio == pytest.approx(-found["log_odds_ratio"], abs=1e-4)

def test_nll_is_the_mean_over_tokens_of_the_batch():
    tok = char_tokenizer(); model = random_llama(0, len(tok)); policy = Policy(model, tok)
    with torch.no_grad(): lp, mask = policy.logps(ROWS["prompt"], ROWS["chosen"], per_token=True)
    extra = ours("dpo_nll", tok, model, model, alpha=1.)[0] - ours("dpo", tok, model, model)[0]
    torch.testing.assert_close(extra.detach(), -lp.sum() / mask.sum(), atol=1e-5, rtol=1e-5)

@pytest.fixture(scope="module")
def lab():
    from alignlab.labs import open_lab
    return open_lab("helpdesk")

@pytest.mark.parametrize("name", RELATIVES)
def test_every_relative_trains(lab, name):
    "Two steps move the policy towards the chosen answers, and micro-batches change nothing."
    pairs = list(lab.preferences(16, seed=0))
    runs = [train_relative(lab.start, pairs, RelativeArgs(loss=name, steps=2, batch_size=16, micro_batch=m, lr=1e-3, warmup=0)) for m in (None, 5)]
    assert runs[0].history[1]["rewards/margins"] > runs[0].history[0]["rewards/margins"] and runs[0].labels == 16
    for k in ("loss", "grad_norm"): assert runs[0].history[0][k] == pytest.approx(runs[1].history[0][k], rel=1e-3)

def test_online_dpo(lab, tmp_path):
    "Rounds sample from the current policy, keep the start as reference, resume to the same weights, and count what they cost."
    prompts, args = lab.prompts("train", 24), DPOArgs(steps=4, batch_size=6, lr=1e-3)
    whole = train_online_dpo(lab.start, prompts, lab.annotator, args, rounds=2, out=tmp_path/"whole")
    assert [h["step"] for h in whole.history] == [1, 2, 3, 4] and whole.labels == 24 and whole.tokens_generated > 200 and (tmp_path/"whole"/"round1"/"policy").is_dir()
    assert whole.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(whole.history[2]["rewards/margins"]) > 1e-4      # round 2 is measured from the start
    train_online_dpo(lab.start, prompts, lab.annotator, args, rounds=2, out=tmp_path/"part")
    import shutil; shutil.rmtree(tmp_path/"part"/"round1")                                                                        # as if it had been stopped between the rounds
    again = train_online_dpo(lab.start, prompts, lab.annotator, args, rounds=2, out=tmp_path/"part", resume=True)
    for a, b in zip(whole.policy.model.parameters(), again.policy.model.parameters()): torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(ValueError, match="rounds"): train_online_dpo(lab.start, prompts, lab.annotator, args, rounds=5)
