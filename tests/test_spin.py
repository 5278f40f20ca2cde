"SPIN: the game's optimum, its gradient and its fixed point on the table; the pairs; the rounds, their resumption, and the bugs they must not have."
import json, math
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
import alignlab.spin as module
from alignlab import helpdesk, tabular
from alignlab.dpo import DPOArgs, train_dpo
from alignlab.evaluation import Estimate
from alignlab.helpdesk import demonstrations
from alignlab.models import add_lora
from alignlab.sft import SFTArgs, new_model, train_sft
from alignlab.spin import SPINArgs, nats_from_data, self_play_pairs, spin_optimum, spin_training, told_apart, train_spin

close = torch.testing.assert_close
quick = settings(derandomize=True, deadline=None, max_examples=40)
DEMOS = demonstrations(40, 3)
SMALL = dict(steps=3, batch_size=4, max_new_tokens=12)
seeds, lams = st.integers(0, 10_000), st.floats(.6, 8.)

@pytest.fixture(scope="module")
def micro(): return new_model("micro")

def same(a, b): return all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
def table(seed, prompts=2, answers=4):
    g = torch.Generator().manual_seed(seed)
    return [torch.log_softmax(torch.randn(prompts, answers, generator=g, dtype=torch.float64), -1) for _ in range(2)]

def game(logps, opponent, data, lam, reference=None):
    "Expected loss of a round (equation 4.7), mean over prompts"
    f = lam * (logps - (opponent if reference is None else reference))
    w = data.exp()[:, :, None] * opponent.exp()[:, None, :]
    return (w * F.softplus(-(f[:, :, None] - f[:, None, :]))).sum((1, 2)).mean()

# --- the table
@quick
@given(seeds, lams)
def test_a_round_played_out_is_theorem_5_4(seed, lam):
    p, data = table(seed)
    close(tabular.fit_tabular(lambda lp: game(lp, p, data, lam), p), spin_optimum(p, data, lam), atol=1e-4, rtol=0)

@quick
@given(seeds, lams)
def test_the_data_is_the_fixed_point_and_the_gap_shrinks_by_one_minus_one_over_lambda(seed, lam):
    p, data = table(seed)
    close(spin_optimum(data, data, lam), data)
    gap = lambda q: (q - data) - (q - data).mean(-1, keepdim=True)
    close(gap(spin_optimum(p, data, lam)), (1 - 1 / lam) * gap(p))
    for _ in range(60): p = spin_optimum(p, data, lam)
    assert tabular.kl(data, p).max() < 1e-3

def test_below_one_half_the_rounds_diverge_and_at_one_one_round_is_enough():
    p, data = table(1)
    close(spin_optimum(p, data, 1.), data)
    gaps = []
    for _ in range(4): p = spin_optimum(p, data, .4); gaps.append((p - data - (p - data).mean(-1, keepdim=True)).norm().item())
    assert gaps == sorted(gaps)
    with pytest.raises(ValueError, match="lam must be > 0"): spin_optimum(p, data, 0.)

@quick
@given(seeds, lams)
def test_a_round_sets_out_as_fine_tuning_does(seed, lam):
    p, data = table(seed); theta = p.clone().requires_grad_(); lp = torch.log_softmax(theta, -1)
    spin, = torch.autograd.grad(game(lp, p, data, lam), theta, retain_graph=True)
    sft, = torch.autograd.grad(-(data.exp() * lp).sum(-1).mean(), theta)
    close(spin, lam / 2 * sft)

def test_the_old_reference_undoes_the_round_and_swapped_roles_move_away():
    p, data = table(2); p1 = spin_optimum(p, data, 1.)
    close(tabular.fit_tabular(lambda lp: game(lp, p1, data, 1., reference=p), p1), p, atol=1e-4, rtol=0)
    away = tabular.fit_tabular(lambda lp: game(lp, data, p, 2., reference=p), p)           # chosen from the policy, rejected from the data
    close(away, torch.log_softmax(p + (p - data) / 2, -1), atol=1e-4, rtol=0)
    assert (tabular.kl(data, away) > tabular.kl(data, p)).all()

# --- the pairs
def test_pairs_hold_the_data_and_a_fresh_answer(micro):
    one, two = (self_play_pairs(micro, DEMOS[:6], seed, 8) for seed in (1, 2))
    assert [(p["prompt"], p["chosen"]) for p in one] == [(d["prompt"], micro.completion_ids(d["completion"])[:8]) for d in DEMOS[:6]]
    assert one == self_play_pairs(micro, DEMOS[:6], 1, 8) and [p["rejected"] for p in one] != [p["rejected"] for p in two]

def test_an_answer_that_was_cut_off_gets_no_end_token(micro):
    s = micro.sample([d["prompt"] for d in DEMOS], 1, 1., 6, 4)
    for p, ended, ids, text in zip(self_play_pairs(micro, DEMOS, 4, 6), s.ended.tolist(), s.completions, s.text): assert p["rejected"] == (text if ended else ids)
    assert not s.ended.all() and json.loads(json.dumps(self_play_pairs(micro, DEMOS, 4, 6))) == self_play_pairs(micro, DEMOS, 4, 6)

def test_answers_that_are_the_data_are_left_out(micro):
    said = micro.generate([d["prompt"] for d in DEMOS[:4]], temperature=0., max_new_tokens=4)
    own = [dict(prompt=d["prompt"], completion=micro.completion_ids(a, ended=False)[:4]) for d, a in zip(DEMOS, said)]
    own = [dict(o, completion=ids) for o, ids in zip(own, micro.sample([o["prompt"] for o in own], 1, 0., 4).completions)]
    assert len(self_play_pairs(micro, [*own[:3], DEMOS[3]], 0, 4, temperature=0.)) == 1
    assert self_play_pairs(micro, own[:3], 0, 4, temperature=0.) == [] and len(self_play_pairs(micro, own[:3], 0, 4, temperature=0., drop=False)) == 3

def test_both_sides_have_the_same_limit(micro):
    for p in self_play_pairs(micro, DEMOS[:4], 0, 7): assert p["chosen"] == micro.completion_ids(next(d["completion"] for d in DEMOS if d["prompt"] == p["prompt"]))[:7] and micro.end not in p["chosen"]
    assert [p["chosen"] for p in self_play_pairs(micro, DEMOS[:4], 0, 90)] == [d["completion"] for d in DEMOS[:4]]

def test_told_apart_and_distance_from_the_author(micro):
    pairs = self_play_pairs(micro, DEMOS[:24], 0, 12)
    assert told_apart(micro, micro, pairs).mean == .5
    trained = train_dpo(micro, pairs, DPOArgs(steps=8, batch_size=8, lr=3e-3)).policy
    assert told_apart(trained, micro, pairs).low > .5 and told_apart(trained, micro, [dict(p, chosen=p["rejected"], rejected=p["chosen"]) for p in pairs]).high < .5
    nats = nats_from_data(micro, DEMOS[:3])
    close(nats, torch.tensor([helpdesk.respond_logp(d["prompt"], d["completion"]) - micro.logps([d["prompt"]], [d["completion"]]).item() for d in DEMOS[:3]]), atol=1e-3, rtol=1e-5)

# --- the rounds
def test_each_round_starts_from_ln_2_with_fresh_answers_and_the_last_ones_mixed_in(micro, monkeypatch):
    calls, real = [], module.train_dpo
    def watched(start, pairs, args, **more): calls.append((start, pairs, args)); return real(start, pairs, args, **more)
    monkeypatch.setattr(module, "train_dpo", watched)
    seen = []
    run = train_spin(micro, DEMOS, SPINArgs(**SMALL, rounds=3, betas=(1., 2., 3.), lrs=(1e-3, 1e-3, 5e-4), held_out=0.), on_round=lambda k, r, told: seen.append((k, r, told)))
    assert [k for k, *_ in seen] == [1, 2, 3] and all(abs(r.history[0]["loss"] - math.log(2)) < 1e-5 and told is None for _, r, told in seen)
    assert [a.beta for *_, a in calls] == [1., 2., 3.] and [a.lr for *_, a in calls] == [1e-3, 1e-3, 5e-4] and len({a.seed for *_, a in calls}) == 3
    assert calls[0][0] is micro and calls[1][0] is seen[0][1].policy and run.policy is seen[2][1].policy
    new = [[p["rejected"] for p in pairs[:len(DEMOS)]] for _, pairs, _ in calls]
    assert [len(p) for _, p, _ in calls] == [40, 80, 80] and calls[2][1][40:] == calls[1][1][:40] and new[0] != new[1] != new[2]
    assert [h["round"] for h in run.history] == [1] * 3 + [2] * 3 + [3] * 3 and [h["step"] for h in run.history] == list(range(1, 10))
    assert run.labels == 0 and run.tokens_generated == sum(len(micro.completion_ids(r)) for part in new for r in part) and run.tokens_trained == sum(r.tokens_trained for _, r, _ in seen)

def test_without_mixing_only_the_rounds_own_pairs(micro, monkeypatch):
    sizes, real = [], module.train_dpo
    monkeypatch.setattr(module, "train_dpo", lambda start, pairs, args, **more: (sizes.append(len(pairs)), real(start, pairs, args, **more))[1])
    train_spin(micro, DEMOS, SPINArgs(**SMALL, rounds=2, mix=False, held_out=0.)); assert sizes == [40, 40]

def test_the_game_ends_when_the_data_cannot_be_told(micro, monkeypatch):
    says, rows = iter([.7, .5]), demonstrations(260, 4)
    trained, real = [], module.train_dpo
    monkeypatch.setattr(module, "train_dpo", lambda start, pairs, args, **more: (trained.append({p["prompt"] for p in pairs}), real(start, pairs, args, **more))[1])
    asked = []
    def told(player, opponent, pairs): asked.append({p["prompt"] for p in pairs}); return Estimate(.8, next(says), .9, 26)
    monkeypatch.setattr(module, "told_apart", told)
    run = train_spin(micro, rows, SPINArgs(**SMALL, rounds=5)); assert run.history[-1]["round"] == 2
    assert all(len(a) >= 20 and not a & t for a, t in zip(asked, trained)) and asked[0] == asked[1]      # held out by prompt, the same in every round

def test_a_game_that_is_won_ends(micro, monkeypatch):
    played, real = [], module.self_play_pairs
    def echo(policy, rows, *rest, **more): return [dict(p, rejected=p["chosen"]) if played else p for p in real(policy, rows, *rest, **more)]
    monkeypatch.setattr(module, "self_play_pairs", echo)
    run = train_spin(micro, DEMOS, SPINArgs(**SMALL, rounds=3, held_out=0.), on_round=lambda k, r, t: played.append(k)); assert played == [1] and run.history[-1]["round"] == 1
    with pytest.raises(ValueError, match="all 40 answers"): train_spin(micro, DEMOS, SPINArgs(**SMALL, rounds=3, held_out=0.))

def test_too_few_demonstrations_are_not_held_out(micro):
    told = []
    train_spin(micro, DEMOS[:12], SPINArgs(**SMALL, rounds=2), on_round=lambda k, r, t: told.append(t)); assert told == [None, None]

def test_inverted_roles_move_away_from_the_data_and_the_right_ones_towards_it():
    start = train_sft(new_model("micro"), demonstrations(64, 0, "decent"), SFTArgs(steps=40, batch_size=16, lr=3e-3)).policy
    rows, unseen = demonstrations(64, 0), demonstrations(48, 7, split="test")
    pairs = self_play_pairs(start, rows, 0, 64)
    args, far = DPOArgs(steps=12, batch_size=16, lr=1e-3, beta=1.), lambda p: nats_from_data(p, unseen).mean().item()
    right = train_dpo(start, pairs, args).policy
    card = train_dpo(start, [dict(p, chosen=p["rejected"], rejected=p["chosen"]) for p in pairs], args).policy
    assert far(right) < far(start) < far(card)

def test_an_interrupted_game_ends_as_an_uninterrupted_one(micro, tmp_path, monkeypatch):
    args = SPINArgs(**SMALL, rounds=3, save_every=1, held_out=0.)
    whole = train_spin(micro, DEMOS, args)
    for name, stop_at in (("inside", (2, 2)), ("between", (2, 0))):                       # in the second round, or before its first step
        real, out = module.train_dpo, tmp_path / name
        def broken(start, pairs, a, out=None, **more):
            if out and out.name == f"round{stop_at[0]}":
                if not stop_at[1]: raise KeyboardInterrupt
                from alignlab.dpo import DPOObjective
                from alignlab.training import fit
                def stop(row):
                    if row["step"] == stop_at[1]: raise KeyboardInterrupt
                return fit(start.copy(), pairs, DPOObjective(a.beta, a.max_length), a, out, more["resume"], on_step=stop, meta=more["meta"])
            return real(start, pairs, a, out=out, **more)
        monkeypatch.setattr(module, "train_dpo", broken)
        with pytest.raises(KeyboardInterrupt): train_spin(micro, DEMOS, args, out=out)
        monkeypatch.setattr(module, "train_dpo", real)
        assert json.loads((out / "run.json").read_text())["status"] == "running" and not (out / "policy").exists()
        again = train_spin(micro, DEMOS, args, out=out, resume=True)
        assert same(again.policy, whole.policy) and [h["loss"] for h in again.history] == [h["loss"] for h in whole.history]
    info = json.loads((out / "run.json").read_text()); assert info["status"] == "done" and info["costs"]["tokens_generated"] == whole.tokens_generated
    assert [json.loads(line)["loss"] for line in (out / "history.jsonl").read_text().splitlines()] == [h["loss"] for h in whole.history] and (out / "policy" / "model.safetensors").exists()
    before = (out / "history.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds a run already"): train_spin(micro, DEMOS, args, out=out)
    assert json.loads((out / "run.json").read_text()) == info and (out / "history.jsonl").read_bytes() == before
    third = train_spin(micro, DEMOS, args, out=out, resume=True); assert same(third.policy, whole.policy) and third.costs() == again.costs()
    with pytest.raises(ValueError, match="beta was 1.0, now 2.0"): train_spin(micro, DEMOS, SPINArgs(**SMALL, rounds=3, save_every=1, held_out=0., beta=2.), out=out, resume=True)
    with pytest.raises(ValueError, match="another run"): train_spin(micro, DEMOS[:39], args, out=out, resume=True)

def test_adapters_play_against_their_round_start(micro):
    start, firsts = add_lora(micro.copy(), r=2), []
    run = train_spin(start, DEMOS, SPINArgs(**SMALL | dict(lr=1e-2), rounds=2, held_out=0.), on_round=lambda k, r, t: firsts.append((r.history[0]["loss"], r.history[-1]["loss"])))
    assert all(abs(a - math.log(2)) < 1e-5 and b != a for a, b in firsts) and not same(run.policy, start)

@pytest.mark.parametrize("bad, says", [(dict(rounds=0), "rounds"), (dict(betas=(.1, .2)), "betas must be None or 3 numbers"), (dict(lrs=(1e-4, 0., 1e-4)), "lrs"), (dict(held_out=.9), "held_out"), (dict(mix=1), "mix"), (dict(beta=-1.), "beta")])
def test_bad_arguments(bad, says):
    with pytest.raises(ValueError, match=says): SPINArgs(**bad)

def test_no_data(micro):
    with pytest.raises(ValueError, match="no rows"): train_spin(micro, [])

def test_the_cards_name(micro):
    before = {k: v.clone() for k, v in micro.model.state_dict().items()}
    out = spin_training(micro, DEMOS[:6], num_rounds=1)
    assert not same(out, micro) and all(torch.equal(v, before[k]) for k, v in micro.model.state_dict().items())
