"Reward model, PPO and groups: formulas against float64 and TRL, invariances, the closed-form optimum, and runs on the world."
import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from alignlab.group_rl import LOSSES, GroupArgs, GroupObjective, group_advantages, group_loss, k3, train_grpo
from alignlab.helpdesk import gold, make_prompts, respond
from alignlab.models import Policy, add_lora, group_logps, load_policy
from alignlab.reward_model import RewardArgs, RewardObjective, load_reward_model, reward_loss, reward_model, train_reward, worst_of
from alignlab.rlhf import PPOArgs, PPOObjective, adapt_beta, gae, new_critic, ppo_loss, sample_logps, score_samples, token_rewards, token_values, train_rlhf, value_loss, whiten
from alignlab.sft import new_model
from alignlab.tabular import optimal_policy
from test_dpo import char_tokenizer, random_llama

quick = settings(derandomize=True, deadline=None, max_examples=40)
seeds = st.integers(0, 10_000)

def ragged(seed, N=5, T=7, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (N,), generator=g); mask = torch.arange(T) < lengths[:, None]
    return lambda scale=1.: torch.randn(N, T, generator=g, dtype=dtype) * scale * mask, mask, lengths

def small(seed=0): return new_model("micro", seed)

# ---- formulas

@quick
@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_double_sum(seed, gamma, lam):
    draw, mask, lengths = ragged(seed); r, v = draw(), draw()
    want = torch.zeros_like(r)
    for i, n in enumerate(lengths):
        delta = [r[i, t] + gamma * (v[i, t + 1] if t + 1 < n else 0.) - v[i, t] for t in range(n)]
        for t in range(n): want[i, t] = sum((gamma * lam)**(k - t) * delta[k] for k in range(t, n))
    torch.testing.assert_close(gae(r, v, gamma, lam), want)

@quick
@given(seeds)
def test_gae_at_its_ends(seed):
    draw, mask, _ = ragged(seed); r, v = draw(), draw()
    returns = r.flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(gae(r, v, 1., 1.), returns - v)
    torch.testing.assert_close(gae(r, returns, 1., .3), torch.zeros_like(r))      # a critic that is right leaves no advantage

@quick
@given(seeds)
def test_whiten(seed):
    draw, mask, _ = ragged(seed, dtype=torch.float32); x = draw(3.) + 5 * mask
    some = x.double()[mask]
    want = torch.zeros(mask.shape, dtype=torch.float64); want[mask] = (some - some.mean()) / (some.var(unbiased=False) + 1e-8).sqrt()
    torch.testing.assert_close(whiten(x, mask).double(), want, atol=1e-5, rtol=1e-4)
    assert (whiten(torch.full((1, 1), 3.), torch.ones(1, 1, dtype=torch.bool)) == 0).all()

@quick
@given(seeds, st.floats(0, 2))
def test_token_rewards_sum_to_the_priced_score(seed, beta):
    draw, mask, lengths = ragged(seed); logps, ref, score = draw(), draw(), torch.randn(5, dtype=torch.float64)
    r = token_rewards(score, logps, ref, mask, beta)
    torch.testing.assert_close(r.sum(1), score - beta * (logps - ref).sum(1))
    assert (r[~mask] == 0).all()
    torch.testing.assert_close(token_rewards(score, logps, logps, mask, beta).gather(1, lengths[:, None] - 1)[:, 0], score)

@quick
@given(seeds, st.floats(.05, .5))
def test_clip(seed, clip):
    draw, *_ = ragged(seed); old, new, A = draw(), draw(), draw()
    losses, ratio = ppo_loss(new, old, A, clip)
    rho = (new - old).exp()
    torch.testing.assert_close(losses, torch.max(-A * rho, -A * rho.clamp(1 - clip, 1 + clip))); torch.testing.assert_close(ratio, rho)
    torch.testing.assert_close(ppo_loss(new, old, A, clip, clip_high=2.)[0], torch.max(-A * rho, -A * rho.clamp(1 - clip, 3.)))
    v, old_v, G = draw(), draw(), draw()
    near = torch.minimum(torch.maximum(v, old_v - clip), old_v + clip)
    torch.testing.assert_close(value_loss(v, old_v, G, clip), torch.max((v - G)**2, (near - G)**2) / 2)

def test_clipped_tokens_give_no_gradient():
    new = torch.log(torch.tensor([[1.5, 1.5, .5, .5, 1.1]])).requires_grad_()
    ppo_loss(new, torch.zeros(1, 5), torch.tensor([[1., -1., 1., -1., 1.]]))[0].sum().backward()
    assert (new.grad != 0).tolist() == [[False, True, True, False, True]]     # out of bounds and still wanted there: nothing

@quick
@given(seeds, st.integers(2, 6))
def test_group_advantages(seed, n):
    r = torch.randn(3 * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64); g = r.view(3, n)
    torch.testing.assert_close(group_advantages(r, n, "grpo").view(3, n), (g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + 1e-4))
    torch.testing.assert_close(group_advantages(r, n, "rloo").view(3, n), torch.stack([g[:, i] - g[:, [j for j in range(n) if j != i]].mean(1) for i in range(n)], 1))
    torch.testing.assert_close(group_advantages(r + 7, n, "dr_grpo"), group_advantages(r, n, "dr_grpo"))
    for kind in ("grpo", "dr_grpo", "rloo"):
        torch.testing.assert_close(group_advantages(r, n, kind).view(3, n).sum(1), torch.zeros(3, dtype=torch.float64))
        assert (group_advantages(torch.full((2 * n,), .3), n, kind).abs() < 1e-2).all()
    with pytest.raises(ValueError, match="at least one other"): group_advantages(r, 1)
    with pytest.raises(ValueError, match="kind"): group_advantages(r, n, "ppo")

@quick
@given(seeds)
def test_k3_is_unbiased_and_never_negative(seed):
    g = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 6, generator=g, dtype=torch.float64).log_softmax(-1)
    each = k3(p, q)
    assert (each >= 0).all()
    torch.testing.assert_close((p.exp() * each).sum(), (p.exp() * (p - q)).sum())     # over all outcomes of p

def test_adaptive_price():
    assert adapt_beta(.1, 6., 6.) == .1 and adapt_beta(.1, 60., 6.) == pytest.approx(.11) and adapt_beta(.1, 0., 6.) == pytest.approx(.09)

# ---- the reward model

@quick
@given(seeds, st.floats(0, 1), st.floats(0, .1))
def test_reward_loss(seed, p, center):
    c, r = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    losses, m = reward_loss(c, r, p, center)
    torch.testing.assert_close(losses, -p * torch.log(torch.sigmoid(c - r)) - (1 - p) * torch.log(torch.sigmoid(r - c)) + center * (c + r)**2)
    torch.testing.assert_close(reward_loss(c + 3, r + 3, p)[0], reward_loss(c, r, p)[0])
    torch.testing.assert_close(reward_loss(c, c)[0], torch.full((6,), math.log(2), dtype=torch.float64))
    assert not any(v.requires_grad for v in m.values()) and reward_loss(torch.tensor([1e4]), torch.tensor([-1e4]), 0.)[0].isfinite().all()

def architectures(vocab):
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(0)
    yield random_llama(0, vocab)
    yield GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1)).eval()
    yield Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, eos_token_id=1)).eval()

def test_the_score_is_read_at_the_last_real_token():
    "As plain transformers reads it where the padding token is another than the end, on three architectures; alone or in company, trunk untouched."
    tok, rows = char_tokenizer(), [[5, 6, 7, 1], [8, 9, 1], [10, 11, 12, 13, 14, 15, 1]]
    for model in architectures(len(tok)):
        rm = reward_model(Policy(model, tok)); found = rm.score(rows)
        padded = torch.tensor([r + [0] * (7 - len(r)) for r in rows])
        with torch.no_grad(): plain = rm.model(input_ids=padded, attention_mask=(padded != 0).long()).logits[:, 0]
        torch.testing.assert_close(found.detach(), plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat([rm.score([r]) for r in rows]), found, atol=1e-5, rtol=1e-5)
        for k, v in model.base_model.state_dict().items(): assert torch.equal(v, rm.model.base_model.state_dict()[k])
        assert rm.model.score.weight.std().item() == pytest.approx(33**-.5, rel=.5) and found.requires_grad

def test_the_end_is_read_even_where_it_is_also_the_padding():
    tok = char_tokenizer(); tok.pad_token = tok.eos_token
    rm = reward_model(Policy(random_llama(0, len(tok)), tok))
    assert rm(["ab"], ["cd"], True) != rm(["ab"], ["cd"], False)

@pytest.mark.parametrize("center", [0., .01])
def test_reward_parity_with_trl(tmp_path, center):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer
    tok = char_tokenizer(); rm = reward_model(Policy(random_llama(0, len(tok)), tok))
    rows = dict(prompt=["hi ", "what is it? ", "abc ", "z "], chosen=["yes", "a cat", "def", "ok then"], rejected=["no way man", "dog", "xyzzy", "q"])
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", per_device_train_batch_size=4, max_length=None, center_rewards_coefficient=center or None)
    trainer = RewardTrainer(model=copy.deepcopy(rm.model), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tok)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)]); trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, dict(batch)); theirs.backward()
    objective = RewardObjective(center)
    losses, _ = objective.loss(rm, objective.collate(objective.prepare(rm, [dict(zip(rows, v)) for v in zip(*rows.values())])))
    losses.mean().backward()
    torch.testing.assert_close(losses.mean(), theirs, atol=1e-5, rtol=1e-5)
    grads = {n: p.grad for n, p in trainer.model.named_parameters()}
    for n, p in rm.model.named_parameters(): torch.testing.assert_close(p.grad, grads[n], atol=1e-5, rtol=1e-4)

def test_training_saving_loading_and_normalising(tmp_path):
    start = small(); prompts = make_prompts("train", 48)
    rows = [dict(prompt=p, chosen=respond(p, "good"), rejected=respond(p, "web")) for p in prompts]
    before = {k: v.clone() for k, v in start.model.state_dict().items()}
    run = train_reward(start, rows, RewardArgs(steps=12, batch_size=16, lr=3e-3, normalise=64, max_new_tokens=8), out=tmp_path / "rm")
    assert all(torch.equal(v, before[k]) for k, v in start.model.state_dict().items())
    assert run.labels == 48 and run.tokens_trained > 0 and run.tokens_generated > 0 and run.history[-1]["accuracy"] > .9 > .75 > run.history[0]["accuracy"]
    sample = start.sample([rows[i % 48]["prompt"] for i in range(64)], max_new_tokens=8, seed=0)
    r = run.policy.score_ids([p + c for p, c in zip(sample.prompt_ids, sample.completions)])
    assert abs(r.mean()) < 1e-4 and abs(r.std() - 1) < 1e-3
    for where in (tmp_path / "rm", tmp_path / "rm" / "policy"):
        again = load_reward_model(where)
        torch.testing.assert_close(again(prompts[:4], [respond(p) for p in prompts[:4]]), run.policy(prompts[:4], [respond(p) for p in prompts[:4]]))
    p = run.policy.prefer(prompts[:4], [r["chosen"] for r in rows[:4]], [r["rejected"] for r in rows[:4]])
    torch.testing.assert_close(p + run.policy.prefer(prompts[:4], [r["rejected"] for r in rows[:4]], [r["chosen"] for r in rows[:4]]), torch.ones(4))
    with pytest.raises(ValueError, match="no reward model"): load_reward_model(tmp_path)

def test_soft_labels_reach_the_objective():
    rows = [dict(prompt=make_prompts("train", 1)[0], chosen="yes", rejected="no", p_chosen=.3)]
    objective = RewardObjective(); batch = objective.collate(objective.prepare(small(), rows))
    torch.testing.assert_close(batch["p_chosen"], torch.tensor([.3]))
    rm = reward_model(small()); c, r = rm.score(batch["rows"])
    torch.testing.assert_close(objective.loss(rm, batch)[0][0], -.3 * F.logsigmoid(c - r) - .7 * F.logsigmoid(r - c))

def test_worst_of():
    a, b = (lambda p, c, e=True: torch.tensor([1., 5.])), (lambda p, c, e=True: torch.tensor([2., 3.]))
    assert worst_of([a, b])(["", ""], ["", ""]).tolist() == [1., 3.]

def test_arguments():
    for bad in (dict(center=-1), dict(normalise=1), dict(max_length=3)):
        with pytest.raises(ValueError, match=next(iter(bad))): RewardArgs(**bad)
    for bad in (dict(beta=-1), dict(clip=0), dict(lam=2), dict(epochs=0), dict(target_kl=0), dict(minibatches=9, batch_size=8), dict(temperature=0)):
        with pytest.raises(ValueError, match=next(iter(bad))): PPOArgs(**bad)
    for bad in (dict(loss="ppo"), dict(group=1), dict(beta=-1), dict(clip_high=0), dict(minibatches=9, batch_size=8)):
        with pytest.raises(ValueError, match=next(iter(bad))): GroupArgs(**bad)
    with pytest.raises(ValueError, match="must be preferences"): train_rlhf(small(), [dict(prompt="x")])
    with pytest.raises(ValueError, match="pretrain"): train_rlhf(small(), [dict(prompt="x")], PPOArgs(ptx_coef=1.), reward=gold)

# ---- PPO

def test_values_are_read_before_the_token():
    critic = reward_model(small()); p, c = [[5, 6, 7], [8, 9]], [[10, 11, 12], [13]]
    v = token_values(critic, p, c)
    assert v.shape == (2, 3) and v[1, 1:].abs().sum() == 0
    torch.testing.assert_close(v[0], torch.stack([critic.score([p[0] + c[0][:k]])[0] for k in range(3)]), atol=1e-5, rtol=1e-5)
    assert torch.equal(token_values(critic, p, [[10, 11, 99], [14]]), v)       # the last token cannot matter

def test_first_step_has_ratio_one_and_no_kl():
    start = load_policy("helpdesk-sft"); prompts = make_prompts("train", 16)
    args = PPOArgs(steps=1, batch_size=16, minibatches=2, max_new_tokens=40)
    objective = PPOObjective(args, gold, new_critic(start), start.frozen(), gold); objective.prepare(start, None)
    for rows in objective.batches(start, [dict(prompt=p) for p in prompts]):
        losses, m = objective.loss(start, objective.collate(rows))
        torch.testing.assert_close(m["ratio"].mean(), torch.tensor(1.), atol=1e-4, rtol=0)
        assert m["kl"].abs().max() < 1e-3 and m["clip_fraction"].sum() == 0 and losses.shape == (8,)
        share = torch.tensor([len(r["ids"]) for r in rows]).sum() / 8             # the mean over rows is the mean over tokens
        A = torch.cat([r["advantages"] for r in rows]); want = -A.sum() / (8 * share)
        torch.testing.assert_close(m["policy_loss"].mean(), want, atol=1e-4, rtol=1e-3)
    assert objective.state["tokens_generated"] > 0

def test_micro_batches_change_nothing():
    start, prompts = small(), [dict(prompt=p) for p in make_prompts("train", 8)]
    def end(micro): return train_rlhf(start, prompts, PPOArgs(steps=2, batch_size=8, minibatches=2, max_new_tokens=6, micro_batch=micro), reward=gold).policy.model.state_dict()
    a, b = end(None), end(2)
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-5, rtol=1e-4)

def test_missing_end_and_bad_rewards():
    s = small().sample(make_prompts("train", 4), max_new_tokens=3, seed=0)
    assert not s.ended.any() and (score_samples(lambda p, c, e: torch.ones(4), s, -2.) == -2).all() and (score_samples(lambda p, c, e: [1.] * 4, s) == 1).all()
    for bad in (torch.ones(3), torch.tensor([1., 2., math.nan, 0.])):
        with pytest.raises(ValueError, match="one finite number for each of 4"): score_samples(lambda p, c, e: bad, s)

def test_temperature_is_used_everywhere():
    policy = load_policy("helpdesk-sft"); s = policy.sample(make_prompts("train", 6), temperature=.7, max_new_tokens=20, seed=0)
    torch.testing.assert_close(sample_logps(policy, s, temperature=.7), s.logps, atol=1e-3, rtol=1e-3)
    assert (sample_logps(policy, s) - s.logps).abs().max() > .1

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_reaches_the_optimum_on_a_table(seed):
    "With rollouts, a learned value and all the formulas, the answer of maths: total variation below .03."
    g = torch.Generator().manual_seed(seed)
    ref, r, beta = torch.randn(3, 5, generator=g).log_softmax(-1), torch.randn(3, 5, generator=g), .7
    logits, value = ref.clone().requires_grad_(), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=.05); mask = torch.ones(1536, 1, dtype=torch.bool); x = torch.arange(3).repeat(512)
    for step in range(300):
        for group in optimizer.param_groups: group["lr"] = .05 * (1 - step / 300)
        with torch.no_grad():
            logp = logits.log_softmax(-1); y = torch.multinomial(logp.exp()[x], 1, generator=g)[:, 0]; old, v = logp[x, y][:, None], value[x][:, None]
            A = gae(token_rewards(r[x, y], old, ref[x, y][:, None], mask, beta), v); G, A = A + v, whiten(A, mask)
        for _ in range(2):
            loss = ppo_loss(logits.log_softmax(-1)[x, y][:, None], old, A)[0].mean() + value_loss(value[x][:, None], v, G).mean()
            optimizer.zero_grad(); loss.backward(); optimizer.step()
    best = optimal_policy(ref.double(), r.double(), beta).exp()
    distance = (logits.detach().softmax(-1).double() - best).abs().sum(-1).max() / 2
    assert distance < .03 < (ref.exp().double() - best).abs().sum(-1).max() / 2, distance

def test_ppo_repeats_itself_and_resumes(tmp_path):
    from alignlab.training import fit
    start, prompts = small(), [dict(prompt=p) for p in make_prompts("train", 12)]
    args = PPOArgs(steps=4, batch_size=6, minibatches=2, max_new_tokens=5, target_kl=.01, save_every=1)
    whole = train_rlhf(start, prompts, args, reward=gold)
    def stop(row):
        if row["step"] == 2: raise KeyboardInterrupt
    policy = start.copy()
    with pytest.raises(KeyboardInterrupt): fit(policy, prompts, PPOObjective(args, gold, new_critic(policy, gold, 0), start.frozen()), args, tmp_path / "r", on_step=stop)
    again = train_rlhf(start, prompts, args, reward=gold, out=tmp_path / "r", resume=True)
    for k, v in whole.policy.model.state_dict().items(): assert torch.equal(v, again.policy.model.state_dict()[k])
    assert [h["beta"] for h in again.history] == [h["beta"] for h in whole.history] and whole.history[-1]["beta"] != args.beta and again.tokens_generated == whole.tokens_generated

def test_lora_needs_no_second_model():
    start = add_lora(small()); prompts = [dict(prompt=p) for p in make_prompts("train", 8)]
    rows = [dict(r, chosen=respond(r["prompt"], "good"), rejected=respond(r["prompt"], "web")) for r in prompts]
    run = train_rlhf(start, rows, PPOArgs(steps=2, batch_size=4, minibatches=2, max_new_tokens=6), reward_args=RewardArgs(steps=2, batch_size=4, normalise=4, max_new_tokens=6))
    assert run.labels == 8 and [h["kl"] for h in run.history][0] == pytest.approx(0, abs=1e-4)
    trained = [n for n, p in run.policy.model.named_parameters() if p.requires_grad]
    assert trained and all("lora" in n for n in trained)

def test_pretraining_text_stays_likely():
    start = load_policy("helpdesk-sft"); prompts = [dict(prompt=p) for p in make_prompts("train", 16)]
    texts = [f"{p} {respond(p)}" for p in make_prompts("train", 16, seed=3)]
    def loss(policy): return -group_logps(policy.model, [(i[:1], [i[1:]]) for i in policy.tokenizer(texts).input_ids])[0].sum(1).mean().item()
    run = train_rlhf(start, prompts, PPOArgs(steps=4, batch_size=16, minibatches=2, max_new_tokens=24, ptx_coef=1.), reward=gold, pretrain=texts)
    assert loss(run.policy) < loss(start) and run.history[-1]["ptx"] < run.history[0]["ptx"]

# ---- groups

@pytest.fixture(scope="module")
def trl_groups(tmp_path_factory):
    "TRL's trainers on hand-made rollouts, as (loss name, options) -> loss and gradients; and what ours needs"
    from datasets import Dataset
    from transformers import LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    tok, folder, G = char_tokenizer(), tmp_path_factory.mktemp("groups"), 4
    model, other = random_llama(0, len(tok)), random_llama(1, len(tok)); model.save_pretrained(folder)
    old = copy.deepcopy(model); torch.manual_seed(3)
    with torch.no_grad():
        for p in old.parameters(): p.add_(.02 * torch.randn_like(p))
    prompt, completion = torch.randint(3, len(tok), (G, 3)), torch.randint(3, len(tok), (G, 6)); lengths = [6, 4, 6, 2]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    groups = [(p.tolist(), [c[:n].tolist()]) for p, c, n in zip(prompt, completion, lengths)]
    with torch.no_grad(): old_logps, ref_logps = (group_logps(m, groups)[0] for m in (old, other))
    A = group_advantages(torch.tensor([1., 0., .5, .2]), 4)
    inputs = dict(prompt_ids=prompt, prompt_mask=torch.ones_like(prompt), completion_ids=completion, completion_mask=mask.long(), advantages=A, old_per_token_logps=old_logps, ref_per_token_logps=ref_logps, num_items_in_batch=mask.sum())
    def theirs(name, **options):
        cls, config = (RLOOTrainer, RLOOConfig) if name == "rloo" else (GRPOTrainer, GRPOConfig)
        if name != "rloo": options = dict(loss_type=name, use_bias_correction_kl=False, **options)
        args = config(output_dir=str(folder / "out"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", per_device_train_batch_size=G, num_generations=G, max_completion_length=6, **options)
        t = cls(model=LlamaForCausalLM.from_pretrained(folder), reward_funcs=lambda completions, **k: [0.] * len(completions), args=args, train_dataset=Dataset.from_dict(dict(prompt=["hi "] * 8)), processing_class=tok)
        t.current_gradient_accumulation_steps = 1; t.model.train()
        given = dict(inputs)
        if name == "rloo": given = {k: v for k, v in given.items() if "per_token" not in k} | dict(old_logps=(old_logps * mask).sum(1))
        loss = t.compute_loss(t.model, given); loss.backward()
        return loss, {n: p.grad for n, p in t.model.named_parameters()}
    return theirs, model, groups, old_logps, ref_logps, A, mask

@pytest.mark.parametrize("name,beta", [("grpo", 0.), ("grpo", .04), ("dr_grpo", .04), ("dapo", .04), ("rloo", 0.)])
def test_group_parity_with_trl(trl_groups, name, beta):
    theirs, model, groups, old_logps, ref_logps, A, mask = trl_groups
    want, grads = theirs(name, beta=beta, epsilon=.2)
    model = copy.deepcopy(model); logps, found = group_logps(model, groups); assert torch.equal(found, mask)
    per = dict(length=mask.sum(1).float(), limit=torch.full((4,), 6.), tokens=torch.full((4,), mask.sum() / 4), sequence=torch.ones(4))[LOSSES[name][1]]
    loss = group_loss(logps, old_logps, A, mask, per, ref_logps, beta, whole=name == "rloo")[0].mean(); loss.backward()
    torch.testing.assert_close(loss, want, atol=1e-5, rtol=1e-5)
    for n, p in model.named_parameters(): torch.testing.assert_close(p.grad, grads[n], atol=2e-5, rtol=1e-3)

@pytest.mark.parametrize("name", list(LOSSES))
def test_groups_run_and_first_step_is_still(name):
    start, prompts = load_policy("helpdesk-sft"), [dict(prompt=p) for p in make_prompts("train", 8)]
    run = train_grpo(start, prompts, GroupArgs(steps=2, batch_size=4, group=4, minibatches=2, max_new_tokens=32, loss=name), reward=gold, watch=gold)
    first = run.history[0]
    assert abs(first["kl"]) < 1e-3 and first["score"] == pytest.approx(first["gold"]) and run.tokens_generated > 0 and run.models_in_memory == 2
    again = train_grpo(start, prompts, GroupArgs(steps=2, batch_size=4, group=4, minibatches=2, max_new_tokens=32, loss=name), reward=gold)
    for k, v in run.policy.model.state_dict().items(): assert torch.equal(v, again.policy.model.state_dict()[k])

def test_equal_groups_teach_nothing():
    start, prompts = small(), [dict(prompt=p) for p in make_prompts("train", 4)]
    same = lambda p, c, e: torch.full((len(p),), .5)
    for drop in (False, True):
        run = train_grpo(start, prompts, GroupArgs(steps=1, batch_size=4, group=3, minibatches=2, max_new_tokens=4, beta=0., missing_end=None, drop_equal=drop), reward=same)
        for k, v in run.policy.model.state_dict().items(): torch.testing.assert_close(v, start.model.state_dict()[k], atol=0, rtol=0)
    mixed = lambda p, c, e: torch.tensor([.5 if i < 6 else float(i % 2) for i in range(len(p))])
    objective = GroupObjective(GroupArgs(batch_size=4, group=3, drop_equal=True, missing_end=None, max_new_tokens=4), mixed, start.frozen()); objective.prepare(start, None)
    assert len(objective.rollout(start, prompts)) == 2

def test_costs_added_after_a_run_are_in_its_folder_and_so_is_what_the_reward_must_know(tmp_path):
    prompts = [dict(prompt=p, chosen=respond(p, "good"), rejected=respond(p, "web")) for p in make_prompts("train", 8)]
    run = train_reward(small(), prompts, RewardArgs(steps=1, batch_size=4, normalise=0, open_end=True), out=tmp_path / "reward")
    assert load_reward_model(tmp_path / "reward").model.config.reward_open_end is True
    run = train_rlhf(small(), prompts, PPOArgs(steps=1, batch_size=4, max_new_tokens=8), reward_args=RewardArgs(steps=2, batch_size=4, normalise=4, max_new_tokens=8), out=tmp_path / "ppo")
    kept = json.loads((tmp_path / "ppo" / "run.json").read_text())
    assert kept["costs"] == json.loads(json.dumps(run.costs())) and kept["costs"]["labels"] == 8 and kept["status"] == "done"

def test_the_reference_of_trained_adapters_is_where_they_stood():
    seen, prompts = [], [dict(prompt=p) for p in make_prompts("train", 4)]
    class Seen(Exception): pass
    def stop(start, data, objective, *rest, **more): seen.append(objective.reference); raise Seen
    import alignlab.group_rl as G, alignlab.rlhf as P
    fresh, trained = add_lora(small()), add_lora(small())
    for name, p in trained.model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p)
    for module, train, args in ((P, train_rlhf, PPOArgs(steps=1, batch_size=4)), (G, train_grpo, GroupArgs(steps=1, batch_size=4, group=2))):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(module, "fit", stop)
            for policy in (fresh, trained):
                with pytest.raises(Seen): train(policy, prompts, args, lambda *a: torch.zeros(4))
                with torch.no_grad(): torch.testing.assert_close(seen[-1].logps(["is my dog allowed ?"], ["no ."]), policy.logps(["is my dog allowed ?"], ["no ."]))

def test_a_finished_reward_run_is_read_and_not_written_again(tmp_path, monkeypatch):
    "Several processes of a comparison open it at once"
    rows = [dict(prompt=p, chosen=respond(p, "good"), rejected=respond(p, "web")) for p in make_prompts("train", 6)]
    fitted = lambda: train_reward(small(), rows, RewardArgs(steps=2, batch_size=3, normalise=8, max_new_tokens=8), out=tmp_path / "run", resume=True)
    once = fitted()
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "run").rglob("*")}
    def sampled(*a, **k): raise AssertionError("it samples again")
    monkeypatch.setattr(Policy, "sample", sampled)
    again = fitted()
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "run").rglob("*")} == before
    assert again.costs() == once.costs() and again.policy.model.config.reward_std == once.policy.model.config.reward_std == load_reward_model(tmp_path / "run").model.config.reward_std
