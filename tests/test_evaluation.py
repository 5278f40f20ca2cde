"Reports: intervals hold what they promise, KL equals enumeration, best-of-n equals brute force, nothing in a table is executed."
import itertools, json, math, pickle
import pytest
import torch
from hypothesis import given, settings, strategies as st
from alignlab import evaluation as ev, tabular
from alignlab.evaluation import (Estimate, Report, best_of_n, bootstrap, evaluate, length_controlled, over_seeds, paired, plot_frontier, plot_history,
                                 side_by_side, tilted_optimum, use_style, wins)
from alignlab.models import Policy, Sample, kl_per_token

quick = settings(max_examples=40, deadline=None, derandomize=True)
numbers = st.floats(-100, 100, width=32)
def gen(seed): return torch.Generator().manual_seed(seed)
def close(a, b, tol=1e-9): torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64), atol=tol, rtol=tol)
def same(a, b, tol=1e-9): close([a.mean, a.low, a.high], [b.mean, b.low, b.high], tol); assert a.n == b.n

# --- estimates
def test_estimate_is_plain_and_prints_what_it_is_worth():
    e = Estimate(.4234, .3812, .4611, 512)
    assert str(e) == repr(e) == f"{e}" == "0.42 [0.38, 0.46]" and {**e} == dict(mean=.4234, low=.3812, high=.4611, n=512)
    assert str(Estimate(.41234, .41211, .41256, 9)) == "0.4123 [0.4121, 0.4126]"
    assert str(Estimate(-.001, -.1, .1, 9)) == "0.00 [-0.10, 0.10]"          # no -0.00
    assert str(Estimate(1., 1., 1., 9)) == "1.00 [1.00, 1.00]"
    assert str(Estimate(math.nan, math.nan, math.nan, 0)) == "undefined" and str(Estimate(1., math.nan, math.nan, 1)) == "1.00 [no interval]"

def coverage(draw, interval, truth, trials):
    es = [interval(draw(gen(t)), t) for t in range(trials)]
    return sum(e.low <= truth <= e.high for e in es) / trials

def test_bootstrap_covers_at_64_prompts_and_not_at_5():
    skewed = lambda n: lambda g: -torch.rand(n, generator=g).log()           # exponential, mean 1
    normal = lambda n: lambda g: torch.randn(n, generator=g)
    cover = lambda draw, truth: coverage(draw, lambda v, t: bootstrap(v, t, reps=300), truth, 400)
    assert .91 < cover(normal(64), 0) < .98
    assert .88 < cover(skewed(64), 1) < .98
    assert cover(normal(5), 0) < .90

def test_t_interval_covers_at_5_seeds(): assert .915 < coverage(lambda g: torch.randn(5, generator=g), lambda v, t: over_seeds(v), 0, 400) < .98

def test_prompts_not_samples_are_the_unit():
    draw = lambda g: torch.randn(40, 1, generator=g) + .5 * torch.randn(40, 8, generator=g)
    assert coverage(draw, lambda v, t: bootstrap(v, t, reps=300), 0, 200) > .90
    assert coverage(draw, lambda v, t: bootstrap(v.flatten(), t, reps=300), 0, 200) < .70

def test_pairing_covers_and_is_narrower():
    def draw(g):
        hard = torch.randn(64, generator=g)
        return torch.stack([hard + .3 * torch.randn(64, generator=g) + .1, hard + .3 * torch.randn(64, generator=g)])
    assert .90 < coverage(draw, lambda v, t: paired(*v, t, reps=300), .1, 300) < .985
    a, b = draw(gen(1)); e, ea = paired(a, b), bootstrap(a)
    assert e.high - e.low < .7 * (ea.high - ea.low)

@quick
@given(st.lists(numbers, min_size=2, max_size=30), st.floats(-5, 5), st.floats(.1, 5))
def test_bootstrap_moves_with_shift_and_scale(v, shift, scale):
    v = torch.tensor(v).double(); e, moved, turned = bootstrap(v, reps=50), bootstrap(v * scale + shift, reps=50), bootstrap(-v, reps=50)
    same(moved, Estimate(e.mean * scale + shift, e.low * scale + shift, e.high * scale + shift, e.n), 1e-7)
    same(turned, Estimate(-e.mean, -e.high, -e.low, e.n), 1e-7)
    assert v.min() - 1e-9 <= e.low <= e.high <= v.max() + 1e-9 and e.n == len(v)

def test_bootstrap_forms():
    v = torch.randn(20, 3, generator=gen(0))
    same(bootstrap(v), bootstrap(v.mean(1).double()), 1e-6)
    assert bootstrap(v, seed=1) == bootstrap(v, seed=1) != bootstrap(v, seed=2)
    holes = v.clone(); holes[4, 1] = math.nan; holes[7] = math.nan
    assert bootstrap(holes).n == 19
    close(bootstrap(holes).mean, holes.nanmean(1)[~holes.nanmean(1).isnan()].mean(), 1e-6)
    assert bootstrap(torch.tensor([True, False, True, True])).mean == .75 and bootstrap([1, 2]).mean == 1.5
    assert math.isnan(bootstrap([3.]).low) and bootstrap([3.]).mean == 3.
    many = bootstrap(torch.randn(30_000, generator=gen(0)), reps=300)        # drawn in blocks
    close((many.high - many.low) / (2 * 1.96 / 30_000**.5), 1., .15)
    before = torch.get_rng_state(); bootstrap(v); assert torch.equal(before, torch.get_rng_state())

@pytest.mark.parametrize("values, says", [([], "empty"), ([math.nan], "all NaN"), ([1., math.inf], "infinite"), (torch.zeros(2, 2, 2), "shape")])
def test_bootstrap_refuses(values, says):
    with pytest.raises(ValueError, match=says): bootstrap(values)

def test_paired_is_the_bootstrap_of_differences():
    a, b = torch.randn(30, 4, generator=gen(0)), torch.randn(30, generator=gen(1))
    same(paired(a, b), bootstrap(a.double().mean(1) - b), 1e-9)
    same(paired(a, b), (lambda e: Estimate(-e.mean, -e.high, -e.low, e.n))(paired(b, a)), 1e-7)
    assert paired(a, a) == Estimate(0., 0., 0., 30)
    with pytest.raises(ValueError, match="30 prompts and b has 29"): paired(a, b[1:])

def test_over_seeds_against_scipy():
    from scipy import stats
    v = torch.randn(7, generator=gen(3)).double()
    e = over_seeds(v); low, high = stats.ttest_1samp(v.numpy(), 0).confidence_interval()
    same(e, Estimate(v.mean().item(), low, high, 7))
    assert type(e.low) is float
    for bad in ([1.], [[1., 2.]], []):
        with pytest.raises(ValueError, match="at least 2"): over_seeds(bad)
    with pytest.raises(ValueError, match=r"seeds \[0, 2\]"): over_seeds([math.nan, 1., math.inf])

# --- wins and length
@quick
@given(st.lists(st.sampled_from([-1., -1e-7, 0., 1e-7, 2., math.nan]), min_size=1, max_size=20), st.sampled_from([0., 1e-6]))
def test_wins_add_to_one_both_ways(d, tie):
    d = torch.tensor(d); w = wins(d, tie)
    assert torch.equal(w.isnan(), d.isnan()) and w.dtype == torch.float64
    close((w + wins(-d, tie))[~d.isnan()], torch.ones(int((~d.isnan()).sum())))
    assert set(w[~d.isnan()].tolist()) <= {0., .5, 1.}
    if tie: assert ((w == .5) == (d.abs() <= tie)).all()

def comparisons(n, theta, phi, seed, samples=None):
    g = gen(seed); d = (10 * torch.randn(n, *[samples] * bool(samples), generator=g)).round()
    return (torch.rand(d.shape, generator=g) < torch.sigmoid(theta + phi * torch.tanh(d / d.std(unbiased=False)))).double(), d

def test_length_control_finds_theta_and_covers_it():
    truth = torch.sigmoid(torch.tensor(.4)).item()
    close(length_controlled(*comparisons(20_000, .4, 1.5, 0), reps=2).mean, truth, .02)
    es = [length_controlled(*comparisons(100, .4, 1.5, t), t, reps=100) for t in range(120)]
    assert .88 < sum(e.low <= truth <= e.high for e in es) / len(es) <= .99

def test_length_control_equals_scipy_on_soft_labels():
    from scipy.optimize import minimize
    d = comparisons(80, .4, 1.5, 5)[1].double(); w = torch.rand(80, generator=gen(6)).double(); x = torch.tanh(d / d.std(unbiased=False))
    def loss(p): return -(w * torch.nn.functional.logsigmoid(p[0] + p[1] * x) + (1 - w) * torch.nn.functional.logsigmoid(-p[0] - p[1] * x)).sum().item() + .005 * (p[0]**2 + p[1]**2)
    close(length_controlled(w, d, reps=2).mean, 1 / (1 + math.exp(-minimize(loss, [0., 0.]).x[0])), 1e-4)

def test_length_control_invariances():
    w, d = comparisons(60, .4, 1.5, 7); e = length_controlled(w, d)
    same(length_controlled(w, 7. * d), e, 1e-7)                               # the unit of length does not matter
    same(length_controlled(1 - w, -d), Estimate(1 - e.mean, 1 - e.high, 1 - e.low, 60), 1e-6)
    order = torch.randperm(60, generator=gen(0)); close(length_controlled(w[order], d[order]).mean, e.mean, 1e-7)
    same(length_controlled(w, torch.zeros(60)), Estimate(w.mean().item(), *[length_controlled(w, torch.zeros(60))[k] for k in ("low", "high")], 60), 1e-3)
    w2, d2 = torch.stack([w, w], 1), torch.stack([d, d], 1); e2 = length_controlled(w2, d2)
    close(e2.mean, e.mean, 1e-3); assert e2.n == 60 and abs((e2.high - e2.low) / (e.high - e.low) - 1) < .1     # samples are no prompts

def test_length_control_at_the_edges():
    d = torch.arange(40.) - 20
    for all_win in (torch.ones(40), torch.zeros(40), (d > 0).double()):       # separable: must stay finite
        e = length_controlled(all_win, d); assert 0 <= e.low <= e.mean <= e.high <= 1
    assert length_controlled(torch.ones(40), d).mean > .99
    same(length_controlled((d > 0).double(), d + .5), Estimate(.5, *[length_controlled((d > 0).double(), d + .5)[k] for k in ("low", "high")], 40), .2)
    assert math.isnan(length_controlled(torch.rand(40, generator=gen(0)), torch.full((40,), 3.)).mean)
    holes = torch.ones(40); holes[3] = math.nan; assert length_controlled(holes, d).n == 39
    for bad, says in (((torch.ones(3), torch.ones(4)), "must agree"), ((torch.tensor([2.]), torch.ones(1)), "outside"), ((torch.tensor([math.nan]), torch.ones(1)), "NaN")):
        with pytest.raises(ValueError, match=says): length_controlled(*bad)

# --- best of n and the tilted optimum
@quick
@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=3), st.integers(1, 6))
def test_best_of_n_is_the_mean_over_all_subsets(rewards, n):
    r = torch.tensor(rewards).double(); gold = torch.randn(r.shape, generator=gen(1)).double()
    def best(row, truth, subset):                                             # ties are broken at random: their mean
        top = [i for i in subset if row[i] == max(row[j] for j in subset)]
        return sum(truth[i].item() for i in top) / len(top)
    def brute(truth): return sum(best(row, t, s) for row, t in zip(r, truth) for s in itertools.combinations(range(6), n)) / math.comb(6, n) / len(r)
    point, = best_of_n(r, [n], gold=gold)
    close([point["reward"].mean, point["gold"].mean], [brute(r), brute(gold)])
    close(point["kl"], math.log(n) - (n - 1) / n)

def test_best_of_n_limits():
    r = torch.randn(10, 32, generator=gen(0)); means = [p["reward"].mean for p in best_of_n(r, range(1, 33))]
    close([means[0], means[-1]], [r.double().mean(), r.double().amax(1).mean()])
    assert all(a < b for a, b in itertools.pairwise(means))
    uniform = torch.full((1, 500), -math.log(500)).double()                    # a table of 500 responses without ties
    for n in (2, 8):
        kl = tabular.kl(tabular.best_of_n(uniform, torch.arange(500.)[None].double(), n), uniform).item()
        bound = best_of_n(r, [n])[0]["kl"]; assert kl <= bound and abs(kl - bound) < .01
    order = torch.randperm(32, generator=gen(1)); same(best_of_n(r[:, order], [5])[0]["reward"], best_of_n(r, [5])[0]["reward"])
    big, = best_of_n(torch.randn(2, 2000, generator=gen(0)), [700]); assert math.isfinite(big["reward"].mean)

@pytest.mark.parametrize("args, says", [((torch.zeros(2, 4), [5]), "1 to the 4"), ((torch.zeros(2, 4), [0]), "1 to the 4"), ((torch.zeros(2, 4), [1.5]), "1 to the 4"),
    ((torch.zeros(4), [1]), "shape"), ((torch.full((1, 2), math.nan), [1]), "finite"), ((torch.zeros(2, 4), [1], torch.zeros(2, 3)), "like rewards")])
def test_best_of_n_refuses(args, says):
    with pytest.raises(ValueError, match=says): best_of_n(*args)

def test_tilted_optimum_is_that_of_the_table_of_samples():
    r = torch.randn(5, 40, generator=gen(0)).double(); ref = torch.full_like(r, -math.log(40))
    for point in tilted_optimum(r, kl=[.1, 1., 2.]):
        logp = tabular.optimal_policy(ref, r, point["beta"])
        close([point["kl"], point["reward"].mean], [tabular.kl(logp, ref).mean(), (logp.exp() * r).sum(1).mean()])
        again, = tilted_optimum(r, betas=[point["beta"]]); close([again["kl"], again["reward"].mean], [point["kl"], point["reward"].mean])
        assert point["samples"] == 40 and 1 <= point["ess"] <= 40
    points = tilted_optimum(r, kl=[0., .5, 1., 2., 99.])
    assert all(a["reward"].mean < b["reward"].mean and a["ess"] > b["ess"] for a, b in itertools.pairwise(points))
    close([points[0]["ess"], points[-1]["ess"]], [40., 1.], 1e-6)
    close([points[0]["reward"].mean, points[-1]["reward"].mean], [r.mean(), r.amax(1).mean()], 1e-6)
    same(tilted_optimum(r, kl=.5)[0]["reward"], points[1]["reward"])
    for n, point in ((n, best_of_n(r, [n])[0]) for n in (2, 4, 8)):            # no policy does better at its distance
        assert point["reward"].mean <= tilted_optimum(r, kl=point["kl"])[0]["reward"].mean + 1e-9

def test_tilted_optimum_refuses():
    for kw, says in ((dict(), "either kl"), (dict(kl=1., betas=[1.]), "either kl"), (dict(kl=-1.), "budget"), (dict(betas=[0.]), "beta")):
        with pytest.raises(ValueError, match=says): tilted_optimum(torch.zeros(2, 3), **kw)

# --- a tiny policy whose responses can all be listed
@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate("<pad> <end> <unk> a b c".split())}, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="left")

@pytest.fixture(scope="module")
def tiny(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM
    def make(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=32, initializer_range=.6, pad_token_id=0, bos_token_id=None, eos_token_id=1, tie_word_embeddings=False))
        return Policy(model.eval(), tokenizer)
    return make(0), make(1)

PROMPTS = ["a b", "c", "b b a c"]

def everything(policy, prompt, longest=3):
    "All responses of at most `longest` tokens, as a Sample, and their log-probs"
    ids = [list(y) for n in range(1, longest + 1) for y in itertools.product(range(6), repeat=n) if 1 not in y[:-1] and (n == longest or y[-1] == 1)]
    logps = policy.logps([prompt] * len(ids), ids).detach().double()
    pad = torch.tensor([y + [0] * (longest - len(y)) for y in ids]); mask = torch.tensor([[1] * len(y) + [0] * (longest - len(y)) for y in ids]).bool()
    return Sample([prompt] * len(ids), [policy.prompt_ids(prompt)] * len(ids), pad, mask, torch.zeros(pad.shape), torch.tensor([y[-1] == 1 for y in ids]), [""] * len(ids)), logps, ids

@pytest.mark.parametrize("prompt", PROMPTS)
def test_kl_and_entropy_against_enumeration(tiny, prompt):
    p, q = tiny
    sample, logp, ids = everything(p, prompt); logq = q.logps([prompt] * len(ids), ids).detach().double()
    close(logp.exp().sum(), 1., 1e-5)
    kl = (logp.exp() * (logp - logq)).sum()
    assert kl > .1
    exact, entropy = ev._drift(p, q, sample)                                   # 156 responses: more than one block
    close((logp.exp() * exact).sum(), kl, 1e-5)
    k1, _ = ev._drift(p, q, sample, exact_up_to=1)
    close(k1, logp - logq, 1e-4)
    var = lambda k: (logp.exp() * (k - kl)**2).sum()
    assert exact.min() >= 0 and var(exact) < var(k1)
    length = sample.mask.sum(1)
    close((logp.exp() * entropy * length).sum(), -(logp.exp() * logp).sum(), 1e-5)      # chain rule: entropies of the steps add up

def test_kl_does_not_depend_on_company(tiny):
    p, q = tiny
    s = p.sample(PROMPTS, n=4, max_new_tokens=6, seed=0); kl, entropy = ev._drift(p, q, s)
    for i in (0, 5, 11):
        T = int(s.mask[i].sum())
        alone = Sample([s.prompts[i]], [s.prompt_ids[i]], s.ids[i:i+1, :T], s.mask[i:i+1, :T], s.logps[i:i+1, :T], s.ended[i:i+1], [s.text[i]])
        one, h = ev._drift(p, q, alone); close(one, kl[i:i+1], 1e-5); close(h, entropy[i:i+1], 1e-5)
    close(kl, kl_per_token(p, q, s).sum(1).detach(), 1e-5)
    same_policy, _ = ev._drift(p, p, s); close(same_policy, torch.zeros(12))
    assert ev._drift(p, None, s)[0] is None

def test_reported_kl_is_that_of_the_policy_not_of_the_reference(tiny):
    p, q = tiny
    def kl(a, b, prompt):
        _, la, ids = everything(a, prompt); lb = b.logps([prompt] * len(ids), ids).detach().double(); return (la.exp() * (la - lb)).sum().item()
    truth, backward = (sum(kl(*ab, x) for x in PROMPTS) / 3 for ab in ((p, q), (q, p)))
    assert abs(truth - backward) > .4
    e = evaluate(p, PROMPTS, q, n_samples=400, max_new_tokens=3)["kl"]         # samples vary, prompts are all there are
    assert abs(e.mean - truth) < .15 < abs(e.mean - backward)

# --- held-out pairs
class Table:
    "A policy that knows the log-prob of each completion"
    def __init__(self, logps): self.table = logps
    def logps(self, prompts, completions): assert len(prompts) == len(completions); return torch.tensor([self.table[c] for c in completions])

def test_rewardbench_rule_by_hand():
    pairs = [dict(prompt="x", chosen=f"w{i}", rejected=f"l{i}") for i in range(3)]
    policy = Table(dict(w0=-20., l0=-22., w1=-31., l1=-30., w2=-12., l2=-40.)); reference = Table(dict(w0=-20., l0=-25., w1=-35., l1=-30., w2=-10., l2=-38.))
    got = ev._pair_accuracy(policy, reference, pairs, block=2)
    close(got["preference_accuracy"], [0., 1., .5]); close(got["ranking_accuracy"], [1., 0., 1.])
    assert set(ev._pair_accuracy(policy, None, pairs)) == {"ranking_accuracy"}
    for data in ([], [dict(prompt="x", chosen="w0")]):
        with pytest.raises(ValueError, match="lacks"): ev._pair_accuracy(policy, None, data)

def test_preference_accuracy_starts_at_one_half(tiny):
    pairs = [dict(prompt=x, chosen=c, rejected=r) for x, (c, r) in zip(PROMPTS * 30, itertools.permutations(["a", "b c", "a b c a", "c c", "b"] * 3, 2))]
    got = evaluate(tiny[0], PROMPTS, tiny[0].copy(), data=pairs, max_new_tokens=4)
    same(got["preference_accuracy"], Estimate(.5, .5, .5, 90))
    other = evaluate(tiny[0], PROMPTS, tiny[1], data=pairs, max_new_tokens=4)
    assert other["preference_accuracy"].mean != .5 and other["ranking_accuracy"] == got["ranking_accuracy"]
    ours, theirs = (p.logps([r["prompt"] for r in pairs] * 2, [r["chosen"] for r in pairs] + [r["rejected"] for r in pairs]).detach() for p in tiny)
    gap = ours - theirs; close(other["preference_accuracy"].mean, wins(gap[:90] - gap[90:], tie=1e-4).mean(), 1e-9)

# --- the report
def letters(prompts, completions, ended=True):
    return {"gold": torch.tensor([float(c.count("a")) for c in completions]), "bees": torch.tensor([float(c.count("b")) for c in completions])}

class First:
    "A judge that always prefers what it reads first"
    def prefer(self, prompts, first, second): return torch.ones(len(first))

class Mute:
    "A judge that says nothing of every other pair"
    def prefer(self, prompts, first, second): return torch.tensor([math.nan if i % 2 else 1. for i in range(len(first))])

def test_report_holds_all_that_was_asked_and_nothing_else(tiny):
    p, q = tiny; prompts = [" ".join(x) for x in itertools.product("abc", repeat=3)]
    r = evaluate(p, prompts, q, letters, against=["a b"] * 27, n_samples=2, max_new_tokens=6, seed=3, data=[dict(prompt="a", chosen="b", rejected="c c")] * 2,
                 skills=dict(luck=lambda policy, seed: [1, 0, seed == 3]))
    assert list(r) == ["gold", "win_rate", "length_controlled_win_rate", "kl", "length", "end_rate", "diversity", "attributes", "skills", "preference_accuracy", "ranking_accuracy"]
    assert r["gold"].n == 27 and r["skills"]["luck"].mean == 2 / 3 and set(r["attributes"]) == {"bees"} and set(r["diversity"]) == {"bigrams", "entropy"}
    assert len(r.samples) == 54 and r.scores["gold"].shape == (27, 2)
    s = p.sample(prompts, 2, 1., 6, 3)
    assert [x["completion"] for x in r.samples] == s.text and [x["prompt"] for x in r.samples] == s.prompts
    close(r["gold"].mean, letters(s.prompts, s.text)["gold"].mean(), 1e-6)
    close(r["length"].mean, sum(len(c) - e for c, e in zip(s.completions, s.ended.long().tolist())) / 54)
    close(r["end_rate"].mean, s.ended.double().mean())
    close(r["win_rate"].mean, wins(letters(s.prompts, s.text)["gold"] - 1.).mean())
    bare = evaluate(p, prompts, max_new_tokens=6)
    assert list(bare) == ["length", "end_rate", "diversity"]
    assert evaluate(p, prompts, q, letters, max_new_tokens=6).to_dict() == evaluate(p, prompts, q, letters, max_new_tokens=6).to_dict()

def test_report_is_strict_json_everywhere(tiny):
    from alignlab.training import FitArgs, Run
    r = evaluate(tiny[0], PROMPTS[:1], tiny[1], letters, max_new_tokens=4)     # one prompt: no intervals
    d = r.to_dict(); assert d == json.loads(json.dumps(d, allow_nan=False)) and d["gold"]["low"] is None and d["gold"]["n"] == 1
    assert Run(None, [], FitArgs(), 0.).row("x", report=r)["report"] == d       # a record holds the same, without to_dict
    back = pickle.loads(pickle.dumps(r)); assert back.to_dict() == d and back.samples == r.samples and type(back) is Report

def test_win_rates(tiny):
    p, q = tiny; own = p.sample(PROMPTS, 2, 1., 6, 0).text
    tie = evaluate(p, PROMPTS, measure=letters, against=own, n_samples=2, max_new_tokens=6)      # its own answers, one for each sample
    assert tie["win_rate"] == Estimate(.5, .5, .5, 3) == tie["length_controlled_win_rate"]
    assert evaluate(p, PROMPTS, judge=First(), against=q, max_new_tokens=6)["win_rate"].mean == .5          # position cancels
    half = evaluate(p, PROMPTS, judge=Mute(), against=["a"] * 3, max_new_tokens=6); assert half["win_rate"].n == 2
    class Silent:
        def prefer(self, prompts, first, second): return torch.full((len(first),), math.nan)
    assert "win_rate" not in evaluate(p, PROMPTS, judge=Silent(), against=["a"] * 3, max_new_tokens=6)
    rival = evaluate(p, PROMPTS * 1, measure=letters, against=p, n_samples=200, max_new_tokens=6)          # itself, drawn independently
    assert abs(rival["win_rate"].mean - .5) < .08 and (rival.scores["win_rate"] != .5).any()

@pytest.mark.parametrize("kw, says", [(dict(judge=First()), "against="), (dict(against=["a"] * 3), "nothing can compare"), (dict(against=["a"] * 2, judge=First()), "one for each prompt"),
    (dict(measure=lambda p, c, e: {"gold": torch.ones(1)}), "measure gave gold"), (dict(data=[dict(prompt="a")]), "lacks")])
def test_evaluate_refuses(tiny, kw, says):
    with pytest.raises(ValueError, match=says): evaluate(tiny[0], PROMPTS, max_new_tokens=4, **kw)

def test_evaluate_without_prompts(tiny):
    for none in ([], "a b"):
        with pytest.raises(ValueError, match="a list of at least one"): evaluate(tiny[0], none)

def test_evaluate_leaves_no_trace(tiny):
    p, q = tiny; p.model.train()
    try:
        before, weights = torch.get_rng_state(), [w.clone() for w in p.model.parameters()]
        evaluate(p, PROMPTS, q, letters, data=[dict(prompt="a", chosen="b", rejected="c")], max_new_tokens=4)
        assert p.model.training and not q.model.training and torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(a, b) and b.grad is None for a, b in zip(weights, p.model.parameters()))
    finally: p.model.eval()

def test_dropout_is_off_while_measuring(tiny):
    p, q = tiny
    noisy = p.copy(); noisy.model.config.attention_dropout = .5
    for m in noisy.model.modules():
        if hasattr(m, "attention_dropout"): m.attention_dropout = .5
    quiet = evaluate(noisy, PROMPTS, p, data=[dict(prompt="a b c", chosen="b", rejected="c")], max_new_tokens=4)
    noisy.model.train()
    loud = evaluate(noisy, PROMPTS, p, data=[dict(prompt="a b c", chosen="b", rejected="c")], max_new_tokens=4)
    assert quiet.to_dict() == loud.to_dict() and quiet["kl"].mean == 0

# --- diversity
def words(n, seed, vocabulary=30, length=12):
    p = 1 / torch.arange(1., vocabulary + 1)
    return torch.multinomial(p.expand(n, -1), length, replacement=True, generator=gen(seed)).tolist()

def test_distinct_bigrams_is_the_mean_over_random_groups():
    docs = words(10, 0)
    def distinct(group): pairs = [b for d in group for b in itertools.pairwise(d)]; return len(set(pairs)) / len(pairs)
    close(ev._distinct_bigrams(docs).mean, sum(distinct(g) for g in itertools.combinations(docs, 8)) / math.comb(10, 8))

def test_distinct_bigrams_does_not_depend_on_the_number_of_answers_and_covers():
    truth = ev._distinct_bigrams(words(3000, 1)).mean
    es = [ev._distinct_bigrams(words(40, t)) for t in range(2, 102)]
    assert .88 <= sum(e.low <= truth <= e.high for e in es) / len(es) and abs(sum(e.mean for e in es) / 100 - truth) < .005
    left = [ev._distinct_bigrams(words(40, 5)[:i] + words(40, 5)[i+1:]).mean for i in range(40)]             # the jackknife, done the slow way
    v = torch.tensor(left).double(); half = (39 / 40 * (v - v.mean()).square().sum()).sqrt().item()
    e = ev._distinct_bigrams(words(40, 5)); close((e.high - e.low) / 2 / 2.0226909, half, 1e-6)
    assert ev._distinct_bigrams([words(1, 0)[0]] * 20).mean < .15
    assert ev._distinct_bigrams(words(8, 0)) is None and ev._distinct_bigrams([[1]] * 20) is None

# --- what people see
nasty = st.text(max_size=30) | st.sampled_from(["<script>alert(1)</script>", "</td></table>", "\x1b[31mred\x1b[0m", "a\nb", "$x^2$", "&amp;", "\r\x08", "\u202eabc"])
@quick
@given(st.lists(st.tuples(nasty, nasty), min_size=1, max_size=3), nasty)
def test_side_by_side_escapes_everything(rows, name):
    import html
    shown = side_by_side([p for p, _ in rows], {name: [t for _, t in rows]}, {name: {"gold": [.5] * len(rows)}})
    for t in [name, *itertools.chain(*rows)]: assert html.escape(t) in shown._repr_html_()
    assert all(c.isprintable() or c == "\n" for c in repr(shown)) and "0.50" in repr(shown)
    bones = shown.html
    for t in sorted({name, *itertools.chain(*rows)}, key=len, reverse=True):
        if t.strip(): bones = bones.replace(html.escape(t), "")
    assert "<script" not in bones

def test_side_by_side_forms():
    dialogue = [dict(role="user", content="hi"), dict(role="assistant", content="yes ?")]
    shown = side_by_side([dialogue, "p"], {"one": ["a", "b"], "two": ["c", "d"]})
    assert "user: hi" in repr(shown) and repr(shown).count("\n") == 6 and shown.html.count("<tr>") == 3 and "mathjax_ignore" in shown.html
    with pytest.raises(ValueError, match="one has 1 answers for 2"): side_by_side(["p", "q"], {"one": ["a"]})

def test_report_escapes_names():
    r = Report({"gold": Estimate(1., 0., 2., 3), "attributes": {"<b>\x1b[2J": Estimate(1., 0., 2., 3)}})
    assert "<b>" not in r._repr_html_() and "\x1b" not in repr(r) and "gold" in repr(r)

@pytest.fixture
def plt():
    import matplotlib; matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    with plt.rc_context(): yield plt
    plt.close("all")

def test_plot_frontier(plt):
    use_style(); use_style(); assert plt.rcParams["axes.grid"]
    seed = lambda s: [{"kl": .1 * i + s, "reward": i + s} for i in range(5)]
    ax = plot_frontier({"a": [seed(0), seed(.05)], "b": [{"kl": Estimate(1., .9, 1.1, 5), "reward": Estimate(2., 1., 3., 5)}], "ends": [[seed(0)[-1]], [seed(.05)[-1]]]})
    assert ax.get_legend_handles_labels()[1] == ["a", "b", "ends"] and "nats" in ax.get_xlabel()
    mean = next(l for l in ax.lines if l.get_label() == "a")
    close(mean.get_xdata()[[0, -1]], [.05, .4]); close(mean.get_ydata()[0], (.5 + .05) / 2)                # both seeds at KL .05
    r = Report({"kl": Estimate(1., .9, 1.1, 5), "attributes": {"polite": Estimate(2., math.nan, math.nan, 1)}})
    ax = plot_frontier({"r": [r, r.to_dict()]}, y="attributes.polite"); assert ax.get_ylabel() == "attributes.polite"
    for empty in ([], [[], seed(0)]):
        with pytest.raises(ValueError, match="'a' has no points"): plot_frontier({"a": empty})

def test_plot_history(plt):
    run = lambda n, s=0.: [dict(step=i + 1, loss=1. / (i + 1) + s, kl=None if i == 0 else .1) for i in range(n)]
    fig = plot_history(run(6), "loss"); assert len(fig.axes) == 1 and len(fig.axes[0].lines) == 1
    fig = plot_history([run(6), run(4, .1), run(6, .2)], ["loss", "kl"])
    assert len(fig.axes) == 2 and [len(l.get_xdata()) for l in fig.axes[0].lines] == [4] * 4               # as far as the shortest run
    close(fig.axes[0].lines[-1].get_ydata()[0], 1.1)
    with pytest.raises(ValueError, match="'margin'"): plot_history(run(3), "margin")
    assert (fig.axes[1].get_xlabel(), fig.axes[1].get_ylabel()) == ("step", "kl")
