"KTO: loss and gradient against TRL in both branches of the clamp, the reference point, the weights, the batches, and a run on the world."
import copy, json, math
import pytest, torch
from hypothesis import given, settings, strategies as st
from alignlab import tabular
from alignlab.dpo import dpo_loss
from alignlab.helpdesk import Annotator, make_prompts, respond
from alignlab.kto import KTOArgs, KTOObjective, balanced_weights, kto_loss, reference_point, train_kto
from alignlab.kto import _log_probs
from alignlab.models import Policy, add_lora
from alignlab.preferences import collect_binary
from alignlab.sft import new_model
from test_dpo import char_tokenizer, random_llama

close = torch.testing.assert_close
quick = settings(derandomize=True, deadline=None, max_examples=40)
ROWS = [dict(prompt=p, completion=respond(p, "good" if i % 3 else "web"), label=bool(i % 3)) for i, p in enumerate(make_prompts("train", 21))]

@pytest.fixture(scope="module")
def micro(): return new_model("micro")
def same(a, b): return all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())

# --- the loss
@quick
@given(st.lists(st.floats(-30, 30), min_size=4, max_size=4), st.floats(0, 10), st.floats(.02, 2), st.floats(.1, 5), st.floats(.1, 5))
def test_value_gradient_and_symmetry(rewards, z, beta, up, down):
    x, zero, label = torch.tensor(rewards, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), torch.tensor([True, False, True, False])
    losses, metrics = kto_loss(x, zero, label, z, beta, up, down)
    by_hand = [(up if l else down) * (1 - 1 / (1 + math.exp(-max(-700, beta * (r - z if l else z - r))))) for r, l in zip(rewards, label.tolist())]
    close(losses, torch.tensor(by_hand, dtype=torch.float64))
    tabular.check_gradient(lambda v: kto_loss(v, zero, label, z, beta, up, down)[0], x, tol=1e-5)
    mirrored, _ = kto_loss(2 * z - x, zero, ~label, z, beta, down, up)                    # a gain is a loss seen from the other side
    close(losses, mirrored)
    assert metrics["rewards/chosen"].isnan().tolist() == [False, True, False, True]

def test_the_reference_point_is_clamped_after_the_mean_and_has_no_gradient():
    x = torch.tensor([3., -9., 1., 1.], requires_grad=True)
    assert reference_point(x).item() == 0. and reference_point(x + 2).item() == 1. and not reference_point(x).requires_grad
    assert torch.stack([reference_point(x[:1]), reference_point(x[1:])]).mean() > reference_point(x)

def test_contradictory_labels_dpo_says_the_minority_kto_the_majority():
    prefer, good, ref = torch.tensor([[[0., .6], [.4, 0.]]]).double(), torch.tensor([[.6, .4]]).double(), torch.tensor([[.05, .95]]).double().log()
    dpo = tabular.fit_tabular(lambda lp: tabular.expected_pair_loss(lambda *x: dpo_loss(*x, beta=.5), lp, ref, prefer), ref)
    close(dpo[0, 0].exp().item(), 1 / (1 + math.exp(-(math.log(.05 / .95) + math.log(1.5) / .5))), atol=1e-6, rtol=0)
    theta = ref.clone().requires_grad_()
    for _ in range(3000):
        g, = torch.autograd.grad(tabular.expected_label_loss(lambda *x: kto_loss(*x, z=0., beta=.5)[0], torch.log_softmax(theta, -1), ref, good), theta)
        theta = (theta - 5 * g).detach().requires_grad_()
    assert dpo[0, 0].exp() < .2 and torch.log_softmax(theta, -1)[0, 0].exp() > .95

@quick
@given(st.lists(st.booleans(), min_size=2, max_size=60), st.floats(.5, 2))
def test_balanced_weights(labels, ratio):
    up, down = sum(labels), len(labels) - sum(labels)
    if not up or not down:
        with pytest.raises(ValueError, match="no weight balances"): balanced_weights(labels, ratio)
        return
    d, u = balanced_weights(labels, ratio)
    assert min(d, u) == 1. and d * up / (u * down) == pytest.approx(ratio)

# --- parity
@pytest.mark.parametrize("swap", [False, True], ids=["clamped", "unclamped"])
@pytest.mark.parametrize("kind, down", [("kto", 1.), ("kto", 4.), ("apo_zero", 1.)])
def test_trl_parity(tmp_path, swap, kind, down):
    "Loss, gradient and reference point of a batch equal those of TRL 1.16's KTOTrainer, which pairs in the other direction: its rows are given in reverse."
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer
    tok = char_tokenizer(); model, ref = (random_llama(i, len(tok)) for i in ((1, 0) if swap else (0, 1)))
    rows = dict(prompt=["hi ", "what is it? ", "abc ", "z "], completion=["yes", "a cat", "xyzzy", "q"], label=[True, True, True, False])
    args = KTOConfig(output_dir=str(tmp_path), beta=.1, desirable_weight=1., undesirable_weight=down, loss_type=dict(kto="kto", apo_zero="apo_zero_unpaired")[kind], use_cpu=True, bf16=False, gradient_checkpointing=False,
                     report_to="none", save_strategy="no", per_device_train_batch_size=4, max_length=None, logging_steps=1)
    trainer = KTOTrainer(model=copy.deepcopy(model), ref_model=copy.deepcopy(ref), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tok)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)]); trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, dict(batch)); theirs.backward()
    policy, a = Policy(model, tok), KTOArgs(loss=kind, undesirable_weight=down)
    objective = KTOObjective(a, Policy(ref, tok))
    data = objective.prepare(policy, [dict(zip(rows, r)) for r in zip(*rows.values())])
    (mine,) = objective.batches(policy, data[::-1])
    ours, metrics = objective.loss(policy, objective.collate(mine)); ours.mean().backward()
    close(ours.mean(), theirs, atol=2e-6, rtol=2e-6)
    for (name, p), q in zip(policy.model.named_parameters(), trainer.model.parameters()): close(p.grad, q.grad, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    if kind == "kto": assert metrics["z"].item() == pytest.approx(trainer._metrics["train"]["kl"][-1], abs=1e-4) and (metrics["kl"][0] < 0) == (metrics["z"] == 0)

# --- the batches
@quick
@given(st.integers(2, 60), st.integers(2, 20), st.integers(0, 1000))
def test_no_row_twice_and_no_short_batch(n, size, seed):
    o, a = KTOObjective(KTOArgs()), KTOArgs(batch_size=size, seed=seed)
    drawn = [o.indices(n, step, a) for step in range(3 * max(1, n // size))]
    assert all(len(b) == len(set(b)) == min(size, n) for b in drawn)
    epoch = [i for b in drawn[:n // min(size, n)] for i in b]; assert len(epoch) == len(set(epoch)) > n - min(size, n)

def test_the_reference_point_pairs_each_prompt_with_the_next_completion(micro):
    o = KTOObjective(KTOArgs(), new_model("micro", 1)); data = o.prepare(micro, ROWS[:6])
    other = [dict(prompt_ids=a["prompt_ids"], completion_ids=b["completion_ids"]) for a, b in zip(data, data[1:] + data[:1])]
    want = (_log_probs(micro, other) - _log_probs(o.reference, other)).mean().item()
    (rows,) = o.batches(micro, data); assert {r["kl"] for r in rows} == {rows[0]["kl"]} and rows[0]["kl"] == pytest.approx(want, abs=1e-3)
    (again,) = o.batches(micro, [data[i] for i in (3, 0, 4, 1, 5, 2)]); assert again[0]["kl"] != pytest.approx(want, abs=1e-3)      # paired anew, another value
    (turned,) = o.batches(micro, data[2:] + data[:2]); assert turned[0]["kl"] == pytest.approx(want, abs=1e-3)
    matched = (_log_probs(micro, data) - _log_probs(o.reference, data)).mean().item(); assert abs(matched - want) > 1e-2

def test_micro_batches_do_not_matter(micro):
    runs = [train_kto(micro, ROWS, KTOArgs(steps=3, batch_size=7, lr=1e-3, micro_batch=m)) for m in (None, 2)]
    for a, b in zip(*(r.history for r in runs)): assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["kl"] == pytest.approx(b["kl"], rel=1e-3, abs=1e-3)

# --- runs
def test_a_run(micro):
    args = KTOArgs(steps=6, batch_size=7, lr=3e-3, warmup=0.)
    one, two = train_kto(micro, ROWS, args), train_kto(micro, ROWS, args)
    assert one.history[0]["loss"] == pytest.approx(.5, abs=1e-5) and one.history[0]["kl"] == pytest.approx(0, abs=1e-3) and same(one.policy, two.policy) and not same(one.policy, micro)
    assert one.history[-1]["rewards/chosen"] > one.history[-1]["rewards/rejected"] and one.labels == 21 and one.models_in_memory == 2 and one.history[-1]["z"] == pytest.approx(max(0., one.history[-1]["kl"]))
    flipped = train_kto(micro, [dict(r, label=not r["label"]) for r in ROWS], args)
    held = [dict(r) for r in ROWS[:6] if r["label"]]; up = lambda p: p.logps([r["prompt"] for r in held], [r["completion"] for r in held]).sum()
    assert up(one.policy) > up(flipped.policy)

@pytest.mark.parametrize("label", [True, False])
def test_one_side_alone_trains(micro, label):
    rows = [dict(r, label=label) for r in ROWS]; run = train_kto(micro, rows, KTOArgs(steps=6, batch_size=7, lr=3e-3, warmup=0., loss="apo_zero"))
    before, after = (p.logps([r["prompt"] for r in rows], [r["completion"] for r in rows]).mean() for p in (micro, run.policy))
    assert (after > before) == label and run.history[-1]["kl"] == 0.

def test_the_scale_of_both_weights_is_inert_under_adam(micro):
    runs = [train_kto(micro, ROWS, KTOArgs(steps=5, batch_size=7, lr=1e-3, max_grad_norm=math.inf, desirable_weight=w, undesirable_weight=2 * w)) for w in (1., 10.)]
    one, ten = (run.policy.logps([r["prompt"] for r in ROWS], [r["completion"] for r in ROWS]) for run in runs)
    close(one, ten, atol=.5, rtol=0); assert (one - micro.logps([r["prompt"] for r in ROWS], [r["completion"] for r in ROWS])).abs().mean() > 5

def test_thumbs_of_annotators_resume_and_adapters(micro, tmp_path):
    rows = list(collect_binary(micro, make_prompts("train", 12), Annotator(), 0, max_new_tokens=8)); args = KTOArgs(steps=4, batch_size=4, lr=1e-3, save_every=1)
    whole = train_kto(micro, rows, args, out=tmp_path / "run"); again = train_kto(micro, rows, args, out=tmp_path / "run", resume=True)
    assert same(whole.policy, again.policy) and [h["loss"] for h in again.history] == [h["loss"] for h in whole.history]
    lora = train_kto(add_lora(micro.copy(), r=2), rows, args); assert lora.history[0]["loss"] == pytest.approx(.5, abs=1e-5)

@pytest.mark.parametrize("bad, says", [(dict(batch_size=1), "another row's completion"), (dict(loss="dpo"), "apo_zero"), (dict(desirable_weight=-1.), "desirable_weight"), (dict(undesirable_weight=math.inf), "undesirable_weight"), (dict(beta=0.), "beta")])
def test_bad_arguments(bad, says):
    with pytest.raises(ValueError, match=says): KTOArgs(**bad)

def test_one_row_is_too_few(micro):
    with pytest.raises(ValueError, match="at least 2 rows"): train_kto(micro, ROWS[:1])
    with pytest.raises(ValueError, match="beta must be"): kto_loss(torch.zeros(1), torch.zeros(1), torch.tensor([True]), 0., beta=0.)

def test_labels_and_shapes_that_would_be_taken_for_something_else():
    x, y, z = torch.tensor([1., 2.]), torch.tensor([0., 1.]), torch.tensor(.1)
    for label in ([True, False], [1, 0], torch.tensor([1., 0.])): close(kto_loss(x, y, label, z)[0], kto_loss(x, y, torch.tensor([True, False]), z)[0])
    for bad in ((x, y[:, None], [1, 0], z), (x, y, [[1], [0]], z), (x, y, [1, 0], z[None]), (x, y, [1], z)):
        with pytest.raises(ValueError, match="one number a row"): kto_loss(*bad)

@pytest.mark.parametrize("change, said", [(dict(label="false"), "'false'"), (dict(label=-1), "-1"), (dict(label=float("nan")), "nan"), (dict(label=None), "no 'label'"), (dict(completion=None), "row 1 of the data has no 'completion'")])
def test_rows_that_would_train_as_something_else_are_refused(micro, change, said):
    with pytest.raises(ValueError, match=said): train_kto(micro, [ROWS[0], dict(ROWS[1], **change), ROWS[2]], KTOArgs(steps=1, batch_size=2))

def test_what_the_labels_cost_is_in_the_run_and_in_its_folder(micro, tmp_path):
    run = train_kto(micro, ROWS[:6], KTOArgs(steps=2, batch_size=2), out=tmp_path / "run")
    assert run.labels == json.loads((tmp_path / "run" / "run.json").read_text())["costs"]["labels"] == 4
