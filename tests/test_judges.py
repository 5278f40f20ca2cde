"Judges: symmetries, what counts as a verdict, figures against slow ones, bad input, and the model's verdict against plain transformers."
import math, random
from types import SimpleNamespace as NS
import matplotlib; matplotlib.use('Agg')
import pytest, torch
from hypothesis import given, settings, strategies as st
from alignlab.helpdesk import PRINCIPLES, Annotator, build_tokenizer, gold, make_prompts, respond, role_message
from alignlab.judges import (GoldJudge, LMJudge, Panel, RandomJudge, calibration_error, helpdesk_judge, label_quality, plot_reliability, reliability,
    swap_average, wilson_interval)
from alignlab.judges import _ask, _kappa, _next_logps, _pick
from conftest import ROOT

close = torch.testing.assert_close
quick = settings(derandomize=True, deadline=None, max_examples=60)
nan, inf = math.nan, math.inf
X = make_prompts('test', 60, seed=9)
A, B = ([respond(x, 'decent', s) for x in X] for s in (1, 2))
TRUTH = GoldJudge(gold).prefer(X, A, B)

class Says:
    "A judge with a table of P by (prompt, first, second), or a function of them"
    def __init__(self, p): self.p, self.calls, self.tokens, self.price, self.asked = p, 0, 0, 0., []
    def prefer(self, prompts, first, second):
        self.calls += len(prompts); self.asked += zip(prompts, first, second)
        return torch.tensor([float(self.p(*q)) for q in zip(prompts, first, second)])
always = lambda p: Says(lambda x, a, b: p)
probability = st.floats(0, 1, width=32)
verdict = st.one_of(probability, st.just(nan), st.sampled_from([0., .5, 1.]))

# --- gold and random
def test_gold_ties_up_to_rounding_and_has_no_verdict_on_nan():
    values = dict(a=.3000001, b=.3, c=.3001, d=nan, e=inf)
    j = GoldJudge(lambda x, y: torch.tensor([values[c] for c in y], dtype=torch.float64))
    close(j.prefer([0] * 7, list('abcadee'), list('bccbadb')), torch.tensor([.5, 0., .5, .5, nan, nan, 1.]), equal_nan=True)
    assert (j.calls, j.tokens, j.price) == (7, 0, 0.)

def test_gold_takes_what_is_no_tensor():
    assert GoldJudge(lambda x, y: [len(c) for c in y]).prefer([0, 0], ['aa', 'b'], ['b', 'b']).tolist() == [1., .5]

def test_gold_is_antisymmetric_here():
    j = GoldJudge(gold); close(j.prefer(X, A, B), 1 - j.prefer(X, B, A))

def test_random_judge_is_repeatable_wherever_it_stands_in_the_batch():
    j = RandomJudge(3); p = j.prefer(X, A, B)
    close(j.prefer(X[7:9], A[7:9], B[7:9]), p[7:9]); close(RandomJudge(3).prefer(X, A, B), p)
    for other in (RandomJudge(4).prefer(X, A, B), j.prefer(X, B, A), 1 - j.prefer(X, B, A)): assert (other - p).abs().mean() > .2

def test_random_judge_is_uniform_and_does_not_touch_the_random_streams():
    state = torch.get_rng_state(), random.getstate()
    p = RandomJudge().prefer(list(range(4000)), ['a'] * 4000, ['b'] * 4000).sort().values
    assert (p - torch.linspace(0, 1, 4000)).abs().max() < .04
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]

@pytest.mark.parametrize('judge', [GoldJudge(gold), RandomJudge(), swap_average(RandomJudge()), Panel(dict(a=RandomJudge()))])
def test_no_pairs_no_verdicts(judge):
    assert judge.prefer([], [], []).shape == (0,)

# --- swap average
@quick
@given(p=verdict, q=verdict)
def test_swap_average_is_antisymmetric_and_nan_where_an_order_has_no_verdict(p, q):
    j = swap_average(Says(lambda x, a, b: p if a < b else q))
    ab, ba = j.prefer(['x'], ['a'], ['b']), j.prefer(['x'], ['b'], ['a'])
    close(ab, 1 - ba, equal_nan=True, atol=1e-6, rtol=0)
    if math.isnan(p) or math.isnan(q): assert ab.isnan().all()
    else: close(ab, torch.tensor([(p + 1 - q) / 2]), atol=1e-6, rtol=0)

@quick
@given(p=probability)
def test_a_judge_of_positions_alone_gives_exact_ties(p):
    assert swap_average(always(p)).prefer(['x'], ['a'], ['b']).item() == .5

@quick
@given(l=st.floats(-5, 5), b=st.floats(-5, 5))
def test_no_lean_changes_the_verdict(l, b):
    if abs(l) < 1e-2: return
    p = swap_average(Says(lambda x, y, z: 1 / (1 + math.exp(-(l if y < z else -l) - b)))).prefer(['x'], ['a'], ['b']).item()
    assert (p > .5) == (l > 0)

def test_swap_average_counts_and_does_not_nest():
    inner = always(.7); j = swap_average(inner); j.prefer(X, A, B)
    assert j.calls == inner.calls == 2 * len(X) and swap_average(j) is j and (j.tokens, j.price) == (0, 0.)
    assert not hasattr(swap_average(Annotator()), 'calls') and not hasattr(j, 'label')

@pytest.mark.parametrize('answers, words', [
    (torch.rand(3, 1), ['Odd.prefer', 'shape (3, 1)', '(3,)']), (torch.rand(2), ['shape (2,)']), (torch.tensor(.5), ['shape ()']),
    (torch.tensor([.2, 1.5, 0.]), ['gave 1.5 for pair 1', 'sigmoid']), (torch.tensor([.2, .5, -1.]), ['gave -1 for pair 2'])])
def test_a_judge_that_does_not_give_probabilities_is_refused(answers, words):
    class Odd:
        def prefer(self, *a): return answers
    for use in (swap_average(Odd()).prefer, Panel(dict(a=Odd())).prefer, lambda *a: label_quality(Odd(), *a, [1, 0, 1])):
        with pytest.raises(ValueError) as e: use('xyz', 'abc', 'def')
        for w in words: assert w in str(e.value)

def test_lists_bools_and_gradients_are_accepted():
    for answers in ([True, False], [1, 0], torch.tensor([1, 0]), torch.tensor([1., 0.], requires_grad=True), torch.tensor([1., 0.], dtype=torch.bfloat16)):
        p = _ask(NS(prefer=lambda *a: answers), *['ab'] * 3)
        assert p.tolist() == [1., 0.] and p.dtype == torch.float32 and not p.requires_grad

# --- statistics
@quick
@given(n=st.integers(1, 3000), share=st.floats(0, 1))
def test_wilson_ends_solve_the_quadratic_and_hold_the_rate(n, share):
    k = share * n; low, high = wilson_interval(k, n)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1
    for p in (low, high): assert abs((share - p)**2 - 1.96**2 * p * (1 - p) / n) < 1e-7
    mirror = wilson_interval(n - k, n); assert abs(mirror[0] - (1 - high)) < 1e-9

def test_wilson_without_trials_and_wider_z():
    assert all(map(math.isnan, wilson_interval(0, 0)))
    a, b = wilson_interval(30, 60), wilson_interval(30, 60, z=2.58); assert b[0] < a[0] < a[1] < b[1]

@quick
@given(st.lists(st.tuples(st.sampled_from([0., .5, 1.]), st.sampled_from([0., .5, 1.])), min_size=1, max_size=30))
def test_kappa_against_a_slow_one(pairs):
    n = len(pairs); chance = sum(1 - abs(a - b) for a, _ in pairs for _, b in pairs) / n**2
    seen, k = sum(1 - abs(a - b) for a, b in pairs) / n, _kappa(*torch.tensor(pairs).T).item()
    assert math.isnan(k) if chance > 1 - 1e-9 else abs(k - (seen - chance) / (1 - chance)) < 1e-4

@quick
@given(st.lists(st.tuples(verdict, probability), max_size=40), st.integers(1, 12))
def test_reliability_against_a_slow_one(rows, bins):
    p, t = (torch.tensor([r[i] for r in rows]) for i in (0, 1))
    table = reliability(p, t, bins); kept = [(a, b) for a, b in rows if not math.isnan(a)]
    groups = {}
    for a, b in kept: groups.setdefault(min(int(torch.tensor(a) * bins), bins - 1), []).append((a, b))
    want = [[sum(a for a, _ in g) / len(g), sum(b for _, b in g) / len(g), len(g)] for _, g in sorted(groups.items())]
    close(table, torch.tensor(want).reshape(-1, 3), atol=1e-5, rtol=1e-5)
    error = calibration_error(p, t, bins)
    assert math.isnan(error) if not kept else abs(error - sum(abs(a - b) * n for a, b, n in want) / len(kept)) < 1e-4

def test_pick_keeps_nan_and_ties():
    close(_pick(torch.tensor([.5, .50001, .4, nan, 1., 0.])), torch.tensor([.5, 1., 0., nan, 1., 0.]), equal_nan=True)

# --- label quality
@pytest.mark.parametrize('arrange', ['as given', 'better first', 'worse first'])
@pytest.mark.parametrize('p', [1., .8, 0.])
def test_the_order_of_the_file_cannot_flatter_a_judge_of_positions(arrange, p):
    a, b, t = A, B, TRUTH
    if arrange != 'as given':
        first = [(u, v) if (y == 1) == (arrange == 'better first') else (v, u) for u, v, y in zip(A, B, t.tolist())]
        a, b = zip(*first); t = torch.where(t == .5, .5, float(arrange == 'better first'))
    q = label_quality(always(p), X, a, b, t)
    one, both = q['judge'], q['judge, both orders']
    assert one['agreement'] == .5 and abs(one['kappa']) < 1e-6 and one['consistent'] == 0 and one['picks_first'] == (p > .5)
    assert both['agreement'] == .5 and both['consistent'] == 1 and both['picks_first'] == .5
    assert abs(one['calibration_error'] - abs(p - .5)) < 1e-6

def test_no_figure_depends_on_how_the_file_is_sorted():
    judge = lambda: Says(lambda x, a, b: (hash((a, b)) % 97) / 96 if len(a) % 3 else nan)
    q, r = label_quality(judge(), X, A, B, TRUTH), label_quality(judge(), X, B, A, 1 - TRUTH)
    flip = [(b, a, 1 - t) if i % 2 else (a, b, t) for i, (a, b, t) in enumerate(zip(A, B, TRUTH.tolist()))]
    s = label_quality(judge(), X[::-1], *map(list, zip(*flip[::-1])))
    for name in ('judge', 'judge, both orders', 'longest wins'):
        for other in (r, s):
            for k, v in q[name].items(): assert v is None or other[name][k] == pytest.approx(v, abs=1e-5, nan_ok=True), (name, k)

def test_kappa_is_twice_agreement_minus_one_in_a_balanced_design():
    q = label_quality({'a': Annotator(), 'r': RandomJudge(1), 'g': GoldJudge(gold)}, X, A, B, TRUTH)
    for r in q.rows.values(): assert r['kappa'] == pytest.approx(2 * r['agreement'] - 1, abs=1e-5)
    assert q['g']['agreement'] == q['g']['kappa'] == 1 and q['g']['calibration_error'] == 0

def test_every_figure_of_a_small_case_by_hand():
    #   truth:     first    second   first   tie     second
    table = {'1': (.9, .2), '2': (.6, .9), '3': (nan, .5), '4': (1, 1), '5': (.5, .5)}   # P in the given and in the other order
    j = Says(lambda x, a, b: table[x][a > b])
    q = label_quality(j, list('12345'), ['a', 'a a', 'a', 'a', 'a'], ['b', 'b', 'b b b', 'b', 'b'], [1, 0, 1, .5, 0])
    one, both = q['judge'], q['judge, both orders']
    assert (q.pairs, q.ties, j.calls) == (4, 1, 8)
    # verdicts: pair 1 right, right; pair 2 wrong, right; pair 3 none, tie; pair 5 tie, tie
    assert one['agreement'] == pytest.approx((1 + 1 + 0 + 1 + .5 + .5 + .5) / 7) and one['unparsed'] == 1/8
    assert (one['low'], one['high']) == pytest.approx(wilson_interval(4.5 / 7 * 4, 4))
    assert one['consistent'] == pytest.approx(2/3)                     # pairs 1 and 5 of 1, 2, 5
    assert one['picks_first'] == pytest.approx((1 + 0 + 1 + 1 + .5 + .5 + .5) / 7)
    assert one['picks_longer'] == pytest.approx((1 + 0 + .5) / 3)      # pair 2 in both orders, pair 3 in one
    assert both['agreement'] == pytest.approx((1 + 1 + .5) / 3) and both['unparsed'] == 1/4 and both['consistent'] == 1
    assert (one['calls'], both['calls']) == (4, 8)
    said, right = q.verdicts['judge']; assert said.shape == right.shape == (8,) and right.tolist() == [1, 0, 1, 0, 0, 1, 0, 1]

def test_longest_wins_and_text_in_messages():
    say = lambda t: [dict(role='assistant', content=t)]
    for wrap in (str, say):
        q = label_quality(always(.5), 'xyz', [wrap('a b c'), wrap('a'), wrap('a')], [wrap('b'), wrap('b b'), wrap('b')], [1, 1, 0])
        r = q['longest wins']; assert r['agreement'] == .5 and r['picks_longer'] == 1 and r['calls'] is None

def test_soft_truth_is_shares_of_votes():
    q = label_quality(always(.7), ['x'] * 4, list('abcd'), list('efgh'), [.7] * 4)
    assert q['judge']['agreement'] == .5                                # right in one order, wrong in the other
    one_way = Says(lambda x, a, b: .7 if a < b else .3)
    q = label_quality(one_way, ['x'] * 4, list('abcd'), list('efgh'), [.7] * 4)
    assert q['judge']['agreement'] == 1 and q['judge']['calibration_error'] == pytest.approx(0, abs=1e-6)

def test_several_judges_and_a_swap_average_is_asked_inside():
    j = always(.9); q = label_quality({'x': swap_average(j), 'y': Annotator()}, X, A, B, TRUTH)
    assert list(q.rows) == ['x', 'x, both orders', 'y', 'y, both orders', 'longest wins', 'random'] == list(q.verdicts)
    assert j.calls == 2 * q.pairs == q['x, both orders']['calls'] and q['x']['picks_first'] == 1 and q['y']['calls'] is None

def test_counts_are_those_of_the_report_alone():
    j = always(.9); j.prefer(X, A, B)
    q = label_quality(j, X, A, B, TRUTH); assert q['judge']['calls'] == q.pairs and q['judge, both orders']['calls'] == 2 * q.pairs

def test_a_judge_without_verdicts_is_shown_not_hidden():
    q = label_quality(always(nan), X, A, B, TRUTH)
    assert q['judge']['unparsed'] == 1 and math.isnan(q['judge']['agreement']) and 'nan' in repr(q)

def test_tables_line_up_escape_and_warn():
    q = label_quality({'<b>': GoldJudge(gold), 'backwards': GoldJudge(lambda x, y: -gold(x, y))}, X, A, B, TRUTH)
    text, page = repr(q), q._repr_html_()
    assert len({len(l) for l in text.splitlines()[:7]}) == 1 and '<b>' not in page and '&lt;b&gt;' in page
    assert 'backwards: worse than chance' in text and '<b>: worse' not in text and f'{q.pairs} pairs' in page

@pytest.mark.parametrize('change, words', [
    (dict(truth=[1, 0]), ['truth has shape (2,)', '(3,)']), (dict(truth=[[1], [0], [1]]), ['shape (3, 1)']),
    (dict(truth=[1, -1, 0]), ['truth of pair 1 is -1', '(s + 1) / 2']), (dict(truth=[1, 0, nan]), ['truth of pair 2 is nan']),
    (dict(truth=[.5] * 3), ['nothing to agree with']), (dict(truth=[]), ['shape (0,)']), (dict(first=['a']), ['3 prompts, 1 first and 3 second'])])
def test_bad_input_is_named(change, words):
    args = dict(prompts=list('xyz'), first=list('abc'), second=list('def'), truth=[1, 0, 1])
    with pytest.raises(ValueError) as e: label_quality(always(.5), **{**args, **change})
    for w in words: assert w in str(e.value)

def test_plot_reliability_draws_every_judge_and_its_numbers():
    import matplotlib.pyplot as plt
    q = label_quality({'a': Annotator(), 'none': always(nan)}, X, A, B, TRUTH)
    ax = plot_reliability(q); assert len(ax.lines) == 5 and ax.get_xlabel() and ax.get_ylabel()
    ax2 = plot_reliability(q, ['a'], ax=plt.subplots()[1])
    close(torch.tensor(ax2.lines[1].get_xydata()).float(), reliability(*q.verdicts['a'])[:, :2]); plt.close('all')

# --- language models
@pytest.fixture(scope='module')
def tiny():
    "A policy with random weights and the world's tokenizer"
    from transformers import LlamaConfig, LlamaForCausalLM
    tok = build_tokenizer(); torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                       max_position_embeddings=256, attention_dropout=.5, pad_token_id=0, eos_token_id=1))
    for p in net.parameters(): p.data *= 20                              # far from uniform
    ids = lambda m: tok.apply_chat_template([dict(role='user', content=m)] if isinstance(m, str) else m, add_generation_prompt=True, return_dict=False)
    return NS(model=net.train(), tokenizer=tok, prompt_ids=ids)

def ask(x, a, b): return role_message('judge', 'fair', x, a, b)

def plain(policy, ids, tokens):
    "One prompt at a time, no padding, full logits"
    policy.model.eval()
    with torch.no_grad(): out = torch.stack([policy.model(torch.tensor([i])).logits[0, -1].log_softmax(-1)[tokens] for i in ids])
    policy.model.train(); return out

def test_batched_log_probs_are_those_of_plain_transformers(tiny):
    ids = [tiny.prompt_ids(ask(x, a, b)) for x, a, b in zip(X, A, B)]; tokens = [3, 17, 40]
    want = plain(tiny, ids, tokens)
    for batch in (1, 7, 64): close(_next_logps(tiny, ids, tokens, batch), want, atol=2e-3, rtol=1e-3)
    assert tiny.model.training                                          # its mode comes back, and dropout was off
    close(_next_logps(tiny, [[5]], [3]), plain(tiny, [[5]], [3]), atol=2e-3, rtol=1e-3)

def test_padding_does_not_shift_absolute_positions():
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0); net = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1))
    net.transformer.wpe.weight.data *= 100
    ids = [list(range(2, 2 + n)) for n in (3, 30, 11)]
    close(_next_logps(NS(model=net), ids, [3, 4]), plain(NS(model=net), ids, [3, 4]), atol=1e-4, rtol=1e-4)

def test_lm_judge_is_the_softmax_of_two_log_probs(tiny):
    j = LMJudge(tiny, ask, min_mass=0.)
    p = j.prefer(X, A, B); ids = [tiny.prompt_ids(ask(*q)) for q in zip(X, A, B)]
    ab = plain(tiny, ids, [tiny.tokenizer.convert_tokens_to_ids(t) for t in 'ab'])
    close(p, ab.softmax(-1)[:, 0], atol=2e-3, rtol=0); assert p.std() > .01 and not p.requires_grad
    assert (j.calls, j.tokens, j.unparsed, j.price) == (60, sum(map(len, ids)), 0, 0.)
    close(j.prefer(X[3:5], A[3:5], B[3:5]), p[3:5], atol=2e-3, rtol=0); assert j.calls == 62
    close(LMJudge(tiny, ask, ('b', 'a'), min_mass=0.).prefer(X, A, B), 1 - p, atol=1e-6, rtol=0)

def test_lm_judge_without_mass_has_no_verdict(tiny):
    ids = [tiny.prompt_ids(ask(*q)) for q in zip(X, A, B)]
    mass = plain(tiny, ids, [tiny.tokenizer.convert_tokens_to_ids(t) for t in 'ab']).exp().sum(1); cut = mass.median().item()
    j = LMJudge(tiny, ask, min_mass=cut * 1.0001); p = j.prefer(X, A, B)
    sure = (mass / cut - 1).abs() > .02                                  # rounding decides the others
    assert (p.isnan() == (mass < cut))[sure].all() and j.unparsed == p.isnan().sum() > 20

def test_a_question_too_long_is_no_verdict_and_not_read(tiny):
    j = LMJudge(tiny, ask, min_mass=0.); long = ' '.join(['hello !'] * 130)
    p = j.prefer(X[:3], [A[0], long, A[2]], B[:3])
    assert p.isnan().tolist() == [False, True, False] and (j.calls, j.unparsed) == (3, 1) and j.tokens < 400
    assert j.prefer(X[:1], [long], B[:1]).isnan().all()

def test_price_and_text_questions(tiny):
    j = LMJudge(tiny, lambda x, a, b: f'{x} {a} {b}', min_mass=0., price_per_million=2.5); j.prefer(X, A, B)
    assert j.price == pytest.approx(j.tokens * 2.5e-6) and swap_average(j).price == j.price

@pytest.mark.parametrize('verdicts, words', [(('first answer', 'b'), ["verdict 'first answer'", '2 tokens']), (('a', 'zzz'), ["verdict 'zzz'", 'unknown']),
                                             (('a', ''), ["verdict ''"]), (('a', 'a'), ['two different']), (('a', 'b', 'is'), ['two different'])])
def test_verdicts_that_cannot_work_are_named(tiny, verdicts, words):
    with pytest.raises(ValueError) as e: LMJudge(tiny, ask, verdicts)
    for w in words: assert w in str(e.value)

def test_panel_votes_without_those_who_gave_no_verdict():
    panel = Panel(dict(a=Says(lambda x, *_: {'1': .2, '2': nan, '3': nan}[x]), b=Says(lambda x, *_: {'1': .6, '2': .9, '3': nan}[x])))
    close(panel.prefer(list('123'), list('abc'), list('def')), torch.tensor([.4, .9, nan]), equal_nan=True)
    assert panel.calls == 6 and list(panel.each(list('1'), ['a'], ['b'])) == ['a', 'b']
    with pytest.raises(ValueError, match='at least one judge'): Panel({})

def test_helpdesk_judge_asks_under_each_principle(tiny):
    j = helpdesk_judge(tiny); assert list(j.judges) == list(PRINCIPLES)
    j.prefer(X[:4], A[:4], B[:4]); assert j.calls == 20 and j.tokens > 1000 and j.price == 0 and j.unparsed == 20
    one = helpdesk_judge(tiny, ['fair']).judges['fair']; assert one.ask('q', 'u', 'v') == role_message('judge', 'fair', 'q', 'u', 'v')
    assert list(helpdesk_judge(tiny, 'fair').judges) == ['fair']
    for wrong in (['kind'], [], 'kind'):
        with pytest.raises(ValueError, match='helpful, honest, autonomy, fair, polite'): helpdesk_judge(tiny, wrong)

# --- the shipped checkpoint
@pytest.fixture(scope='module')
def shipped():
    "Both orders of 40 pairs under two principles, asked once"
    if not (ROOT/'alignlab'/'assets'/'sft'/'model.safetensors').is_file(): pytest.skip('no shipped checkpoint in this checkout')
    from alignlab.models import load_policy
    policy = load_policy('helpdesk-sft'); j = helpdesk_judge(policy, ['helpful', 'polite']); n = 40
    x, a, b = X[:n], A[:n], B[:n]
    return NS(policy=policy, judge=j, pairs=(x, a, b), ab=j.each(x, a, b), ba=j.each(x, b, a))

def test_shipped_judge_gives_verdicts_and_leans_as_its_corpus_did(shipped):
    assert shipped.judge.unparsed == 0 and shipped.judge.calls == 2 * 2 * 40
    lean = torch.stack([torch.logit(shipped.ab[n]) + torch.logit(shipped.ba[n]) for n in shipped.ab]).mean().item() / 2
    assert .2 < lean < 1.2                                              # the corpus: log(.65/.35) = .62

def test_shipped_judge_is_better_than_chance_on_gold(shipped):
    p = .5 + sum(shipped.ab[n] - shipped.ba[n] for n in shipped.ab) / 4
    t = GoldJudge(gold).prefer(*shipped.pairs); assert (1 - (_pick(p) - t).abs())[t != .5].mean() > .55

def test_shipped_judge_against_the_policys_own_log_probs(shipped):
    x, a, b = (c[:6] for c in shipped.pairs); tok = shipped.policy.tokenizer
    ask = [role_message('judge', 'polite', *q) for q in zip(x, a, b)]
    with torch.no_grad(): la, lb = (shipped.policy.logps(ask, [[tok.convert_tokens_to_ids(v)]] * 6, ended=False) for v in 'ab')
    close(shipped.ab['polite'][:6], torch.sigmoid(la - lb), atol=1e-4, rtol=0)
