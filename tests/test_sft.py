"SFT: the loss and its mask, TRL's value, and the recipe that builds the checkpoints."
import pytest
import torch

from alignlab import helpdesk
from alignlab.labs import helpdesk_skills
from alignlab.models import Policy, load_policy
from alignlab.sft import SFTArgs, SFTObjective, build_checkpoints, new_model, train_sft

@pytest.fixture(scope="module")
def base(): return load_policy("helpdesk-base")

def test_loss_is_the_token_mean_of_the_whole_batch(base):
    rows = helpdesk.demonstrations(12, style="decent")
    objective = SFTObjective(); data = objective.prepare(base, rows); [batch] = objective.batches(base, data)
    whole = objective.loss(base, objective.collate(batch))[0].mean()
    parts = sum(objective.loss(base, objective.collate(batch[i:i+5]))[0].sum() for i in (0, 5, 10)) / 12
    lp, mask = base.logps([r["prompt"] for r in rows], [r["completion"] for r in rows], per_token=True)
    torch.testing.assert_close(whole, -lp.sum() / mask.sum(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)

def test_trl_parity(tmp_path):
    "Loss and gradient equal those of TRL's SFTTrainer on prompt-completion data."
    import copy
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from test_dpo import char_tokenizer, random_llama
    tok = char_tokenizer(); model = random_llama(0, len(tok))
    rows = dict(prompt=["hi ", "what is it? ", "abc "], completion=["yes", "a big cat", "def"])
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", per_device_train_batch_size=3, max_length=None)
    trainer = SFTTrainer(model=copy.deepcopy(model), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tok)
    theirs = trainer.compute_loss(trainer.model, dict(trainer.data_collator([trainer.train_dataset[i] for i in range(3)]))); theirs.backward()
    policy, objective = Policy(model, tok), SFTObjective()
    [batch] = objective.batches(policy, objective.prepare(policy, [dict(zip(rows, r)) for r in zip(*rows.values())]))
    ours = objective.loss(policy, objective.collate(batch))[0].mean(); ours.backward()
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)
    for p, q in zip(policy.model.parameters(), trainer.model.parameters()): torch.testing.assert_close(p.grad, q.grad, atol=2e-5, rtol=1e-4)

def test_mask_decodes_back_to_the_completion(base):
    rows = helpdesk.demonstrations(6)
    for r, d in zip(rows, SFTObjective().prepare(base, rows)):
        assert base.tokenizer.decode(d["completion_ids"]) == r["completion"] + " <end>"
    whole = SFTObjective("all").prepare(base, rows)[0]
    assert base.tokenizer.decode(whole["prompt_ids"] + whole["completion_ids"]) == f"<user> {rows[0]['prompt']} <desk> {rows[0]['completion']} <end>"

def test_training_learns_and_leaves_the_start_alone(base):
    before = [p.clone() for p in base.model.parameters()]
    run = train_sft(base, helpdesk.demonstrations(32), SFTArgs(steps=6, batch_size=16))
    assert run.history[-1]["nll"] < run.history[0]["nll"]
    for p, q in zip(before, base.model.parameters()): torch.testing.assert_close(p, q, rtol=0, atol=0)
    with pytest.raises(ValueError, match="loss_on"): SFTArgs(loss_on="prompt")

def test_recipe_goes_on_where_it_was(tmp_path):
    one = build_checkpoints(tmp_path / "a", stages=("base", "roles", "sft"), size="micro", steps=3)
    build_checkpoints(tmp_path / "b", stages=("base",), size="micro", steps=3)
    two = build_checkpoints(tmp_path / "b", stages=("base", "roles", "sft"), size="micro", steps=3)
    for p, q in zip(one["sft"].model.parameters(), two["sft"].model.parameters()): torch.testing.assert_close(p, q, rtol=0, atol=0)
    assert (tmp_path / "a/sft/policy/model.safetensors").exists()

def test_shipped_checkpoints_are_of_the_recipe_s_shape():
    shape = {n: p.shape for n, p in new_model().model.named_parameters()}
    for name in ("helpdesk-base", "helpdesk-sft"):
        assert {n: p.shape for n, p in load_policy(name).model.named_parameters()} == shape

@pytest.mark.slow
def test_rebuilding_gives_the_same_behaviour(tmp_path):
    "Half an hour: the recipe with another seed lands within bands of the shipped checkpoint."
    both = load_policy("helpdesk-sft"), build_checkpoints(tmp_path, stages=("base", "roles", "sft"), seed=1)["sft"]
    prompts = helpdesk.make_prompts("test", 600)
    share = [(helpdesk.gold(prompts, p.generate(prompts, max_new_tokens=96)).mean().item() + 1) / 2 for p in both]
    assert abs(share[0] - share[1]) < .03, share
    for name, skill in helpdesk_skills(500).items():                            # fewer, and the standard error fills the band
        shipped, made = (skill(p, 0).mean().item() for p in both)
        assert abs(shipped - made) < .1, (name, shipped, made)
