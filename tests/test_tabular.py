"""Properties of the enumerable oracle: what must hold for any table, reward and beta."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.tabular import (
    best_of_n, check_gradient, entropy, expected_label_loss, expected_pair_loss, expected_reward, fit_tabular,
    implicit_reward, kl, log_partition, optimal_policy, preference_prob, sample_labels, sample_pairs, tilted_optimum)

torch.set_num_threads(1)
F64 = torch.float64
close = torch.testing.assert_close
prop = settings(derandomize=True, deadline=None, max_examples=25)
fits = settings(derandomize=True, deadline=None, max_examples=6)
line = settings(derandomize=True, deadline=None, max_examples=10)

seeds = st.integers(0, 2**31)
prompts, responses = st.integers(1, 4), st.integers(2, 7)
betas = st.floats(.02, 20.)
scales = st.floats(.01, 10.)


def gen(seed): return torch.Generator().manual_seed(seed)
def table(seed, P, K, spread=1.5): return torch.log_softmax(spread * torch.randn(P, K, generator=gen(seed), dtype=F64), -1)
def rewards(seed, P, K, scale=1.): return scale * torch.randn(P, K, generator=gen(seed + 1), dtype=F64)
def tv(a, b): return .5 * (a.exp() - b.exp()).abs().sum(-1).max().item()
def J(p, ref, r, beta): return expected_reward(p, r) - beta * kl(p, ref)
def logistic(beta): return lambda c, r, rc, rr: -F.logsigmoid(beta * ((c - rc) - (r - rr)))


# ---- the optimum

@prop
@given(seeds, prompts, responses, betas, scales)
def test_optimum_normalises_and_has_the_value_beta_log_z(seed, P, K, beta, scale):
    ref, r = table(seed, P, K), rewards(seed, P, K, scale)
    star = optimal_policy(ref, r, beta)
    close(star.exp().sum(-1), torch.ones(P, dtype=F64))
    close(J(star, ref, r, beta), beta * log_partition(ref, r, beta))
    if (r / beta).abs().max() < 300:                                   # where the formula as printed does not overflow
        tilted = ref.exp() * (r / beta).exp()
        close(star.exp(), tilted / tilted.sum(-1, keepdim=True))
        close(log_partition(ref, r, beta), tilted.sum(-1).log())


@prop
@given(seeds, prompts, responses, betas, scales)
def test_no_policy_beats_the_optimum_and_the_gap_is_beta_times_kl(seed, P, K, beta, scale):
    ref, r = table(seed, P, K), rewards(seed, P, K, scale)
    star = optimal_policy(ref, r, beta)
    for i in range(5):
        p = table(seed + 10 + i, P, K, spread=3.)
        gap = J(star, ref, r, beta) - J(p, ref, r, beta)
        assert (gap >= -1e-9).all()
        close(gap, beta * kl(p, star), rtol=1e-6, atol=1e-9)


@prop
@given(seeds, prompts, responses, betas, scales)
def test_implicit_reward_lacks_one_constant_per_prompt(seed, P, K, beta, scale):
    ref, r = table(seed, P, K), rewards(seed, P, K, scale)
    missing = r - implicit_reward(optimal_policy(ref, r, beta), ref, beta)
    close(missing, (beta * log_partition(ref, r, beta))[:, None].expand(P, K), rtol=1e-6, atol=1e-9)


@prop
@given(seeds, prompts, responses, betas, st.floats(-50, 50), st.floats(.01, 100.))
def test_invariances(seed, P, K, beta, shift, unit):
    ref, r = table(seed, P, K), rewards(seed, P, K)
    star = optimal_policy(ref, r, beta)
    offset = shift * torch.arange(1., P + 1, dtype=F64)[:, None]
    close(optimal_policy(ref, r + offset, beta), star, rtol=1e-6, atol=1e-9)              # constant per prompt
    close(log_partition(ref, r + offset, beta), log_partition(ref, r, beta) + offset[:, 0] / beta)
    close(preference_prob(r + offset), preference_prob(r), rtol=1e-6, atol=1e-9)
    close(optimal_policy(ref, unit * r, unit * beta), star, rtol=1e-6, atol=1e-9)         # unit of the reward
    order = torch.randperm(K, generator=gen(seed))
    close(optimal_policy(ref[:, order], r[:, order], beta), star[:, order])               # names of the responses
    for i in range(P): close(optimal_policy(ref[i:i + 1], r[i:i + 1], beta), star[i:i + 1])   # prompts are strangers


@prop
@given(seeds, prompts, responses)
def test_larger_beta_is_closer_to_the_reference(seed, P, K):
    ref, r = table(seed, P, K), rewards(seed, P, K)
    path = [optimal_policy(ref, r, b) for b in (.01, .1, .5, 2., 20., 1e6)]
    distance, gain = torch.stack([kl(p, ref) for p in path]), torch.stack([expected_reward(p, r) for p in path])
    assert (distance.diff(dim=0) <= 1e-12).all() and (gain.diff(dim=0) <= 1e-12).all()
    close(path[-1], ref, rtol=0, atol=1e-4)


def test_extreme_betas_are_finite_and_keep_the_reference_among_ties():
    ref, r = table(0, 1, 4), torch.tensor([[1., 1., 0., -1.]], dtype=F64)
    star = optimal_policy(ref, r + 1e3, 1e-12)
    close(star[:, :2], torch.log_softmax(ref[:, :2], -1))
    assert kl(star, ref).isfinite().all() and not star.isnan().any()


def test_the_support_of_the_reference_is_the_support_of_the_optimum():
    ref = torch.tensor([[.5, .5, 0.]], dtype=F64).log()
    r = torch.tensor([[0., 1., 5.]], dtype=F64)
    for p in (optimal_policy(ref, r, .3), best_of_n(ref, r, 8), tilted_optimum(ref, r, .2)[0], tilted_optimum(ref, r, 9.)[0]):
        assert p[0, 2] == -math.inf and kl(p, ref).isfinite().all() and entropy(p).isfinite().all()
        close(p.exp().sum(-1), torch.ones(1, dtype=F64))
    close(kl(tilted_optimum(ref, r, .2)[0], ref).item(), .2)


# ---- KL, entropy, reward

@prop
@given(seeds, prompts, responses, st.floats(.01, 8.))
def test_kl_and_entropy_agree_with_torch_distributions(seed, P, K, spread):
    p, q, r = table(seed, P, K, spread), table(seed + 1, P, K, spread), rewards(seed, P, K)
    dp, dq = torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    close(kl(p, q), torch.distributions.kl_divergence(dp, dq), rtol=1e-9, atol=1e-12)
    close(entropy(p), dp.entropy(), rtol=1e-9, atol=1e-12)
    assert (kl(p, q) >= 0).all() and (kl(p, p) == 0).all()
    assert (entropy(p) >= 0).all() and (entropy(p) <= math.log(K) + 1e-12).all()
    close(expected_reward(p, r), torch.stack([dp.probs[i] @ r[i] for i in range(P)]))
    assert ((r.amin(-1) - 1e-12 <= expected_reward(p, r)) & (expected_reward(p, r) <= r.amax(-1) + 1e-12)).all()


def test_rounding_never_makes_a_kl_negative():
    p = table(0, 500, 6)
    assert (kl(p, torch.log_softmax(p + 1e-9 * rewards(0, 500, 6), -1)) >= 0).all()


def test_kl_with_zero_probabilities_has_the_right_limits_and_a_finite_gradient():
    half, sure = torch.tensor([[.5, .5]], dtype=F64).log(), torch.tensor([[1., 0.]], dtype=F64).log()
    assert kl(half, sure).item() == math.inf and kl(sure, sure).item() == 0
    close(kl(sure, half).item(), math.log(2))
    p = sure.clone().requires_grad_()
    grad, = torch.autograd.grad(kl(p, half).sum(), p)
    assert grad.isfinite().all()


# ---- preferences

@prop
@given(seeds, prompts, responses, scales)
def test_preferences_are_complementary_and_transitive_in_log_odds(seed, P, K, scale):
    r = rewards(seed, P, K, scale)
    p = preference_prob(r)
    close(p + p.mT, torch.ones(P, K, K, dtype=F64))
    close(p.diagonal(dim1=1, dim2=2), torch.full((P, K), .5, dtype=F64))
    assert ((p > .5) == (r[:, :, None] > r[:, None, :])).all()


@prop
@given(seeds, prompts, responses, betas)
def test_expected_losses_equal_plain_loops(seed, P, K, beta):
    p, ref, r = table(seed, P, K), table(seed + 1, P, K), rewards(seed, P, K)
    prefer, often = preference_prob(r), torch.rand(P, K, K, generator=gen(seed), dtype=F64)
    loss = logistic(beta)
    num = den = 0.
    for x, i, j in itertools.product(range(P), range(K), range(K)):
        if i != j:
            w = (prefer[x, i, j] * often[x, i, j]).item()
            num, den = num + w * loss(p[x, i], p[x, j], ref[x, i], ref[x, j]).item(), den + w
    close(expected_pair_loss(loss, p, ref, prefer, often).item(), num / den)
    close(expected_pair_loss(lambda *a: (loss(*a), {'m': 1}), p, ref, prefer, often).item(), num / den)
    close(expected_pair_loss(loss, ref, ref, prefer).item(), math.log(2))

    thumb = lambda lp, rp, good: torch.where(good, (lp - rp) ** 2, 3 * (lp - rp))
    good, shown = torch.sigmoid(r), ref.exp()
    num = sum(shown[x, y] * (good[x, y] * (p[x, y] - ref[x, y]) ** 2 + (1 - good[x, y]) * 3 * (p[x, y] - ref[x, y]))
              for x in range(P) for y in range(K))
    close(expected_label_loss(thumb, p, ref, good, shown), num / P)


def test_weights_of_zero_keep_infinite_losses_out():
    ref = torch.tensor([[.5, .5, 0.]], dtype=F64).log()
    pairs = torch.ones(1, 3, 3, dtype=F64); pairs[:, 2], pairs[:, :, 2] = 0, 0
    value = expected_pair_loss(logistic(1.), ref, ref, preference_prob(torch.zeros(1, 3, dtype=F64)), pairs)
    close(value.item(), math.log(2))


@fits
@given(seeds)
def test_samples_follow_the_population(seed):
    p, ref, r, n = table(seed, 3, 4), table(seed + 1, 3, 4), rewards(seed, 3, 4), 20_000
    prefer, good, state = preference_prob(r), torch.sigmoid(r), torch.random.get_rng_state()
    x, w, l = sample_pairs(prefer, n, seed)
    losses = logistic(.7)(p[x, w], p[x, l], ref[x, w], ref[x, l])
    expected = expected_pair_loss(logistic(.7), p, ref, prefer)
    assert (w != l).all() and abs(losses.mean() - expected) < 5 * losses.std() / n ** .5
    x, y, label = sample_labels(good, n, seed, shown=ref.exp())
    assert label.dtype == torch.bool and abs(label.double().mean() - (ref.exp() * good).sum(-1).mean()) < 5 * .5 / n ** .5
    close(torch.stack([(x == i).double().mean() for i in range(3)]), torch.full((3,), 1 / 3, dtype=F64), atol=.02, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(sample_pairs(prefer, 50, seed), sample_pairs(prefer, 50, seed)))
    assert not torch.equal(sample_pairs(prefer, 50, seed)[1], sample_pairs(prefer, 50, seed + 1)[1])
    assert torch.equal(state, torch.random.get_rng_state())                              # the global generator is not touched


# ---- fitting: losses whose answer is known

@fits
@given(seeds, st.integers(1, 3), st.integers(2, 6), st.floats(.05, 10.))
def test_pairwise_logistic_reaches_the_optimum(seed, P, K, beta):
    ref, r = table(seed, P, K), rewards(seed, P, K)
    loss = lambda lp: expected_pair_loss(logistic(beta), lp, ref, preference_prob(r))
    assert tv(fit_tabular(loss, ref), optimal_policy(ref, r, beta)) < 1e-6
    assert tv(fit_tabular(loss, table(seed + 5, P, K)), optimal_policy(ref, r, beta)) < 1e-6


@fits
@given(seeds, st.integers(1, 3), st.integers(2, 6), st.floats(.1, 5.))
def test_objective_and_likelihood_reach_their_optima(seed, P, K, beta):
    ref, r, start = table(seed, P, K), rewards(seed, P, K), torch.zeros(P, K)
    assert tv(fit_tabular(lambda lp: -J(lp, ref, r, beta).mean(), start), optimal_policy(ref, r, beta)) < 1e-6
    assert tv(fit_tabular(lambda lp: -(ref.exp() * lp).sum(-1).mean(), start), ref) < 1e-6         # SFT copies its data


@pytest.mark.parametrize('lam', [1., 2., 5.])
def test_self_play_moves_as_in_theorem_5_4_of_spin(lam):
    data, now = table(0, 2, 4), table(1, 2, 4)
    pairs = data.exp()[:, :, None] * now.exp()[:, None, :]
    fitted = fit_tabular(lambda lp: expected_pair_loss(logistic(lam), lp, now, torch.ones(2, 4, 4, dtype=F64), pairs), now)
    assert tv(fitted, torch.log_softmax(now + (data - now) / lam, -1)) < 1e-6
    swapped = fit_tabular(lambda lp: expected_pair_loss(logistic(lam), lp, now, torch.ones(2, 4, 4, dtype=F64), pairs.mT), now)
    assert (kl(data, swapped) > kl(data, now)).all()                                     # roles inverted: away from the data


@pytest.mark.parametrize('tau', [.1, .5, 2.])
def test_squared_loss_on_certain_preferences_stops_where_ipo_says(tau):
    ref = torch.full((1, 2), math.log(.5), dtype=F64)
    certain = torch.tensor([[[.5, 1.], [0., .5]]], dtype=F64)
    squared = lambda c, r, rc, rr: ((c - rc) - (r - rr) - .5 / tau) ** 2
    fitted = fit_tabular(lambda lp: expected_pair_loss(squared, lp, ref, certain), ref)
    close(fitted[0, 0].exp().item(), 1 / (1 + math.exp(-.5 / tau)), rtol=0, atol=1e-8)


@pytest.mark.parametrize(('majority', 'ref_a', 'beta'), [(.6, .05, .5), (.9, .3, .2), (.7, .5, 1.)])
def test_contradicting_labels_have_the_closed_form_of_dpo(majority, ref_a, beta):
    ref = torch.tensor([[ref_a, 1 - ref_a]], dtype=F64).log()
    p = torch.tensor([[[.5, majority], [1 - majority, .5]]], dtype=F64)
    a, b = fit_tabular(lambda lp: expected_pair_loss(logistic(beta), lp, ref, p), ref)[0].tolist()
    close(a - b, math.log(ref_a / (1 - ref_a)) + math.log(majority / (1 - majority)) / beta, rtol=0, atol=1e-5)


def test_fit_takes_float32_leaves_its_input_alone_and_warns_at_a_kink():
    start = torch.randn(2, 3, generator=gen(0), requires_grad=True)
    before = start.detach().clone()
    target = table(0, 2, 3)
    fitted = fit_tabular(lambda lp: kl(target, lp).sum(), start)
    assert fitted.dtype == F64 and not fitted.requires_grad and torch.equal(start, before) and start.grad is None
    assert tv(fitted, target) < 1e-6
    with pytest.warns(UserWarning, match='kink'):
        fit_tabular(lambda lp: (lp[:, 0] + 1).abs().sum() + (lp[:, 1] - lp[:, 2]).abs().sum(), start, steps=5)


# ---- gradients

def test_check_gradient_accepts_right_gradients_and_names_wrong_ones():
    x = table(3, 2, 3)
    assert check_gradient(lambda t: torch.log_softmax(t, -1), x) < 1e-8
    assert check_gradient(lambda t: torch.tensor(1., dtype=F64), x) == 0
    with pytest.raises(AssertionError, match='detach'): check_gradient(lambda t: t * t.detach(), x)
    with pytest.raises(AssertionError, match='detach'): check_gradient(lambda t: t.detach().exp(), x)
    leak = lambda t: torch.log_softmax(t, -1).exp() * torch.tensor([1., 1., 1.], dtype=F64).mul(t.detach().sum() * 0 + 1)
    assert check_gradient(leak, x) < 1e-8
    wrong = lambda t: (t - t.logsumexp(-1, keepdim=True).detach()).exp()          # its sum is right at x, its Jacobian is not
    with pytest.raises(AssertionError, match=r'd output\[\d+\]'): check_gradient(wrong, x)
    with pytest.raises(AssertionError): check_gradient(lambda t: t.sqrt(), -torch.ones(2))          # NaN is no agreement


@prop
@given(seeds, prompts, responses, st.floats(.1, 3.))
def test_every_exact_quantity_is_differentiable(seed, P, K, beta):
    x, q, r = table(seed, P, K), table(seed + 1, P, K), rewards(seed, P, K)
    lp = lambda t: torch.log_softmax(t, -1)
    check_gradient(lambda t: kl(lp(t), q), x)
    check_gradient(lambda t: kl(q, lp(t)), x)
    check_gradient(lambda t: entropy(lp(t)), x)
    check_gradient(lambda t: expected_reward(lp(t), r), x)
    check_gradient(lambda t: log_partition(q, t, beta), r)
    check_gradient(lambda t: expected_pair_loss(logistic(beta), lp(t), q, preference_prob(r)), x)


# ---- best-of-n and the frontier

@prop
@given(seeds, prompts, st.integers(2, 4), st.integers(1, 4), st.booleans())
def test_best_of_n_equals_enumeration_of_all_draws(seed, P, K, n, ties):
    ref, r = table(seed, P, K), rewards(seed, P, K)
    if ties: r = r.round()
    want = torch.zeros(P, K, dtype=F64)
    for x in range(P):
        for draw in itertools.product(range(K), repeat=n):
            top = max(r[x, y].item() for y in draw)
            best = [y for y in draw if r[x, y].item() == top]
            for y in best: want[x, y] += ref[x, list(draw)].sum().exp() / len(best)
    close(best_of_n(ref, r, n).exp(), want)


@prop
@given(seeds, prompts, responses, st.integers(1, 10**6), st.booleans())
def test_best_of_n_is_a_distribution_within_the_kl_bound_and_improves_with_n(seed, P, K, n, ties):
    ref, r = table(seed, P, K, spread=3.), rewards(seed, P, K)
    if ties: r = r.round()
    p, more = best_of_n(ref, r, n), best_of_n(ref, r, n + 1)
    close(p.exp().sum(-1), torch.ones(P, dtype=F64))
    assert (kl(p, ref) <= math.log(n) - (n - 1) / n + 1e-9).all()
    assert (expected_reward(more, r) >= expected_reward(p, r) - 1e-12).all()
    close(best_of_n(ref, r, 1), ref)
    close(best_of_n(ref, torch.zeros_like(r), n), ref)                                   # nothing to choose
    close(best_of_n(ref, r.exp(), n), p) if not ties else None                           # only the order counts


def test_best_of_n_of_very_many_draws_is_still_a_distribution():
    for seed in range(20):
        ref, r = table(seed, 2, 25, spread=10.), rewards(seed, 2, 25).round()
        p = best_of_n(ref, r, 10**9)
        close(p.exp().sum(-1), torch.ones(2, dtype=F64), rtol=0, atol=1e-12)
        close(best_of_n(ref + 5e-5, r, 10**6), best_of_n(ref, r, 10**6))                  # rows off by as much as is let through


def test_best_of_n_nears_its_bound_when_no_response_is_likely():
    K, n = 1500, 8
    ref, r = torch.full((1, K), -math.log(K), dtype=F64), torch.arange(K, dtype=F64)[None]
    close(kl(best_of_n(ref, r, n), ref).item(), math.log(n) - (n - 1) / n, rtol=0, atol=1e-3)
    beats = (best_of_n(ref, r, n).exp() * torch.arange(K, dtype=F64) / K).sum().item()
    close(beats, n / (n + 1), rtol=0, atol=1e-3)                                         # win rate against the reference


@line
@given(seeds, prompts, responses, st.floats(1e-6, .9))
def test_tilted_optimum_spends_its_budget_and_nobody_beats_it(seed, P, K, part):
    ref, r = table(seed, P, K), rewards(seed, P, K)
    most = kl(tilted_optimum(ref, r, 1e9)[0], ref).mean().item()
    p, beta = tilted_optimum(ref, r, part * most)
    close(kl(p, ref).mean().item(), part * most, rtol=1e-6, atol=1e-12)
    close(p, optimal_policy(ref, r, beta))
    rivals = [best_of_n(ref, r, n) for n in (2, 5, 30)] + [table(seed + i, P, K) for i in range(2, 6)]
    for rival in rivals:
        d = kl(rival, ref).mean().item()
        assert expected_reward(tilted_optimum(ref, r, d)[0], r).mean() >= expected_reward(rival, r).mean() - 1e-9


@line
@given(seeds, prompts, responses)
def test_the_frontier_rises_and_is_concave(seed, P, K):
    ref, r = table(seed, P, K), rewards(seed, P, K)
    most = kl(tilted_optimum(ref, r, 1e9)[0], ref).mean().item()
    top = torch.stack([expected_reward(tilted_optimum(ref, r, b)[0], r).mean() for b in torch.linspace(0, 1.2 * most, 9).tolist()])
    assert (top.diff() >= -1e-9).all() and (top.diff().diff() <= 1e-8).all()
    close(top[0], expected_reward(ref, r).mean())
    close(top[-1], r.amax(-1).mean())


def test_ends_of_the_frontier():
    ref, r = table(0, 2, 5), rewards(0, 2, 5)
    p, beta = tilted_optimum(ref, r, 0.)
    assert beta == math.inf and torch.equal(p, ref)
    p, beta = tilted_optimum(ref, r, 100.)
    assert beta == 0. and torch.equal(p.argmax(-1), r.argmax(-1)) and (entropy(p) == 0).all()
    p, beta = tilted_optimum(ref, torch.zeros_like(r), .3)                               # no reward to gain: stay
    close(p, ref)
    p, _ = tilted_optimum(ref, r, kl(ref, ref).mean().item())                            # a measured KL is a legal budget
    close(p, ref)


# ---- refusals: one clear error that names the argument and the remedy

REF, R = table(0, 2, 3), rewards(0, 2, 3)
PREF = preference_prob(R)
NAN, INF = R.clone(), R.clone()
NAN[1, 2], INF[0, 1] = math.nan, math.inf
LOSS = logistic(1.)
FAULTS = {
    'beta zero': (lambda: optimal_policy(REF, R, 0), 'beta is 0: it must be positive'),
    'beta negative': (lambda: log_partition(REF, R, -.1), 'beta is -0.1'),
    'beta nan': (lambda: implicit_reward(REF, REF, math.nan), 'beta is nan'),
    'beta infinite': (lambda: optimal_policy(REF, R, math.inf), 'beta is inf'),
    'reward nan': (lambda: optimal_policy(REF, NAN, 1.), r'reward\[1, 2\] is nan: replace it'),
    'reward inf': (lambda: best_of_n(REF, INF, 2), r'reward\[0, 1\] is inf'),
    'reward nan in preferences': (lambda: preference_prob(NAN), r'reward\[1, 2\] is nan'),
    'reward one-dimensional': (lambda: preference_prob(R[0]), r'reward has shape \(3,\)'),
    'reward too narrow': (lambda: expected_reward(REF, R[:, :2]), 'one reward per prompt and response'),
    'reward that would broadcast': (lambda: tilted_optimum(REF, R[:1], .1), 'one reward per prompt and response'),
    'logits for log-probs': (lambda: kl(R, REF), r'logp: probabilities of prompt 0 sum to .*log_softmax'),
    'wrong axis': (lambda: entropy(torch.log_softmax(R, 0)), 'not 1: use torch.log_softmax'),
    'nan log-probs': (lambda: entropy(NAN), 'probabilities of prompt 0'),
    'tables that differ': (lambda: kl(REF, REF[:1]), r'logq has shape \(1, 3\) but logp has \(2, 3\)'),
    'one-dimensional table': (lambda: entropy(REF[0]), r'\[None\] adds a prompt axis'),
    'implicit reward shapes': (lambda: implicit_reward(REF, REF[0], 1.), 'ref_logps has'),
    'budget negative': (lambda: tilted_optimum(REF, R, -.1), 'budget is -0.1'),
    'budget nan': (lambda: tilted_optimum(REF, R, math.nan), 'budget is nan'),
    'n zero': (lambda: best_of_n(REF, R, 0), 'n is 0'),
    'n half': (lambda: best_of_n(REF, R, 1.5), 'n is 1.5'),
    'no samples': (lambda: sample_pairs(PREF, 0, 0), 'n is 0'),
    'preferences of a wrong shape': (lambda: expected_pair_loss(LOSS, REF, REF, PREF[:1]), 'do not agree'),
    'rewards for preferences': (lambda: expected_pair_loss(LOSS, REF, REF, 5 * PREF), 'preference_prob'),
    'preferences not square': (lambda: sample_pairs(PREF[:, :2], 5, 0), 'p_chosen has shape'),
    'pairs negative': (lambda: sample_pairs(PREF, 5, 0, -PREF), 'pairs must be finite, not negative'),
    'no pairs': (lambda: sample_pairs(PREF, 5, 0, 0 * PREF), 'no two different responses'),
    'one response only': (lambda: sample_pairs(torch.ones(2, 1, 1, dtype=F64), 5, 0), 'no two different responses'),
    'loss reduced': (lambda: expected_pair_loss(lambda *a: LOSS(*a).mean(), REF, REF, PREF), r'without \.mean\(\)'),
    'label loss reduced': (lambda: expected_label_loss(lambda a, b, c: a.mean(), REF, REF, PREF[:, 0]), r'without \.mean\(\)'),
    'labels outside': (lambda: expected_label_loss(lambda a, b, c: a, REF, REF, REF), r'\[0, 1\]'),
    'labels of a wrong shape': (lambda: expected_label_loss(lambda a, b, c: a, REF, REF, PREF), 'do not agree'),
    'nothing shown': (lambda: sample_labels(PREF[:, 0], 5, 0, 0 * REF), 'shown must be finite'),
    'shown of a wrong shape': (lambda: sample_labels(PREF[:, 0], 5, 0, REF[:1].exp()), 'shown must be finite'),
    'pairs of a wrong shape': (lambda: sample_pairs(PREF, 5, 0, PREF[:1]), r'pairs must be .* shape \(2, 3, 3\)'),
    'fit of a vector': (lambda: fit_tabular(lambda lp: lp.sum(-1), REF), 'one finite number'),
    'fit of a nan': (lambda: fit_tabular(lambda lp: (lp * math.nan).sum(), REF), 'one finite number'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_bad_arguments_are_refused_by_name(name):
    call, message = FAULTS[name]
    with pytest.raises(ValueError, match=message): call()
