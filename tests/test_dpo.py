"DPO: value and gradient against TRL, the closed form on a table, invariances, and a run on the world."
import copy
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from alignlab.dpo import DPOArgs, DPOObjective, dpo_loss, dpo_train, pair_ids, train_dpo
from alignlab.helpdesk import make_prompts, respond
from alignlab.models import Policy
from alignlab.sft import new_model
from alignlab.tabular import expected_pair_loss, fit_tabular, optimal_policy, preference_prob

quick = settings(derandomize=True, deadline=None, max_examples=40)
numbers = st.lists(st.floats(-50, 0), min_size=4, max_size=4)

@quick
@given(st.integers(0, 10_000), st.floats(.05, 5))
def test_closed_form(seed, beta):
    g = torch.Generator().manual_seed(seed)
    ref, r = torch.randn(2, 4, generator=g, dtype=torch.float64).log_softmax(-1), torch.randn(2, 4, generator=g, dtype=torch.float64)
    found = fit_tabular(lambda lp: expected_pair_loss(lambda *a: dpo_loss(*a, beta=beta), lp, ref, preference_prob(r)), ref)
    torch.testing.assert_close(found.exp(), optimal_policy(ref, r, beta).exp(), atol=1e-4, rtol=0)

@quick
@given(numbers, st.floats(-20, 20), st.floats(.01, 10))
def test_invariances(x, shift, beta):
    w, l, rw, rl = torch.tensor(x, dtype=torch.float64)[:, None]
    loss = dpo_loss(w, l, rw, rl, beta)[0]
    torch.testing.assert_close(dpo_loss(w + shift, l + shift, rw, rl, beta)[0], loss)
    torch.testing.assert_close(dpo_loss(w, l, w, l, beta)[0], torch.full((1,), math.log(2), dtype=torch.float64))
    torch.testing.assert_close(dpo_loss(l, w, rl, rw, beta)[0].exp().reciprocal() + loss.neg().exp(), torch.ones(1, dtype=torch.float64))
    assert (loss >= 0).all() and loss.shape == (1,)

def test_no_overflow_and_no_gradient_to_the_reference():
    w = torch.tensor([-1e4], requires_grad=True); ref = torch.tensor([-5.], requires_grad=True)
    losses, metrics = dpo_loss(w, torch.tensor([-5.]), ref.detach(), torch.tensor([-5.]), beta=1.)
    losses.sum().backward()
    assert losses.isfinite().all() and w.grad.item() == -1 and ref.grad is None and not any(m.requires_grad for m in metrics.values())

@pytest.mark.parametrize("beta", [0, -1, float("nan")])
def test_beta_is_checked(beta):
    with pytest.raises(ValueError, match="beta"): dpo_loss(*torch.zeros(4, 1), beta=beta)
    with pytest.raises(ValueError, match="beta"): DPOArgs(beta=beta)

def char_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz .?"])}, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Split("", "isolated"); t.add_special_tokens(["<pad>", "<eos>", "<unk>"])
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left")

def random_llama(seed, vocab):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=1, initializer_range=.5)).eval()

@pytest.mark.parametrize("beta", [.1, .5])
def test_trl_parity(tmp_path, beta):
    "Loss, gradient and metrics of a whole batch equal those of TRL 1.16's DPOTrainer."
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    tok = char_tokenizer(); model, ref = random_llama(0, len(tok)), random_llama(1, len(tok))
    rows = dict(prompt=["hi ", "what is it? ", "abc ", "z "], chosen=["yes", "a cat", "def", "ok then"], rejected=["no way man", "dog", "xyzzy", "q"])
    args = DPOConfig(output_dir=str(tmp_path), beta=beta, loss_type=["sigmoid"], use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
                     per_device_train_batch_size=4, max_length=None, logging_steps=1)
    trainer = DPOTrainer(model=copy.deepcopy(model), ref_model=copy.deepcopy(ref), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tok)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)]); trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, dict(batch)); theirs.backward()
    policy, objective = Policy(model, tok), DPOObjective(beta, reference=Policy(ref, tok))
    data = objective.prepare(policy, [dict(zip(rows, r)) for r in zip(*rows.values())])
    ours, metrics = objective.loss(policy, objective.collate(data)); ours.mean().backward()
    torch.testing.assert_close(ours.mean(), theirs, atol=2e-6, rtol=2e-6)
    for (name, p), q in zip(policy.model.named_parameters(), trainer.model.parameters()):
        torch.testing.assert_close(p.grad, q.grad, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for k in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert metrics[k].mean().item() == pytest.approx(trainer._metrics["train"][k][-1], abs=1e-4)

@pytest.fixture(scope="module")
def lab():
    from alignlab.labs import open_lab
    return open_lab("helpdesk")

def test_pairs_decode_back_to_text(lab):
    policy = lab.start
    for row in lab.preferences(32, seed=1):
        ids = pair_ids(policy, row)
        assert policy.tokenizer.decode(ids["chosen_ids"][:-1]) == row["chosen"] and ids["chosen_ids"][-1] == ids["rejected_ids"][-1] == policy.end
        assert policy.tokenizer.decode(ids["prompt_ids"]) == f"<user> {row['prompt']} <desk>"
        short = pair_ids(policy, row, max_length=24)
        assert all(len(short["prompt_ids"]) + len(short[k]) <= 24 and short[k] and short["prompt_ids"] for k in ("chosen_ids", "rejected_ids"))
        assert short["chosen_ids"] == ids["chosen_ids"][:len(short["chosen_ids"])] and short["prompt_ids"] == ids["prompt_ids"][-len(short["prompt_ids"]):]

def test_a_run(lab):
    "Starts at ln 2, leaves the start alone, repeats by seed, and the swapped control mirrors it."
    pairs, args = lab.preferences(48, seed=0), DPOArgs(steps=4, batch_size=12, lr=1e-3, warmup=0)
    before = copy.deepcopy(lab.start.model.state_dict())
    one, two = train_dpo(lab.start, pairs, args), train_dpo(lab.start, pairs, args)
    assert one.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and one.history[-1]["rewards/margins"] > 0
    for k, v in lab.start.model.state_dict().items(): torch.testing.assert_close(v, before[k], rtol=0, atol=0)
    for a, b in zip(one.policy.model.parameters(), two.policy.model.parameters()): torch.testing.assert_close(a, b, rtol=0, atol=0)
    swapped = train_dpo(lab.start, [dict(prompt=r["prompt"], chosen=r["rejected"], rejected=r["chosen"]) for r in pairs], args)
    objective = DPOObjective(); rows = objective.collate(objective.prepare(lab.start, list(pairs)))
    margins = [objective.loss(r.policy, rows)[1]["rewards/margins"].mean().item() for r in (one, swapped)]
    assert margins[0] > 0 > margins[1]          # each has moved towards its own labels
    assert one.labels == 48 and one.models_in_memory == 1 and one.tokens_trained > 0

def test_micro_batches_do_not_matter(lab):
    pairs = lab.preferences(16, seed=0)
    runs = [train_dpo(lab.start, pairs, DPOArgs(steps=2, batch_size=8, micro_batch=m)) for m in (None, 3)]
    for a, b in zip(*(r.policy.model.parameters() for r in runs)): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

def test_the_card_s_name(lab):
    pairs = list(lab.preferences(16, seed=0))
    assert isinstance(dpo_train(lab.policy(), pairs, steps=1), Policy)

def test_in_bfloat16_reference_and_policy_round_alike():
    "Batches of the same shape give the same log-probs, and so the first loss is ln 2; a reference in full precision would not"
    start, prompts = new_model("micro"), make_prompts("train", 4)
    rows = [dict(prompt=p, chosen=respond(p, "good"), rejected=respond(p, "web")) for p in prompts]
    first = lambda bf16: train_dpo(start, rows, DPOArgs(steps=1, batch_size=4, beta=50., bf16=bf16)).history[0]["loss"]
    assert abs(first(True) - math.log(2)) < 1e-6 and abs(first(False) - math.log(2)) < 1e-6
    with torch.no_grad():
        full = start.logps(prompts, [r["chosen"] for r in rows])
        with torch.autocast("cpu", torch.bfloat16): assert (start.logps(prompts, [r["chosen"] for r in rows]) - full).abs().max() > 1e-3
