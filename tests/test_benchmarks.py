"Benchmarks: files in their published forms, and rules as published."
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.benchmarks import _CHECKS, _language, SECTIONS, by_section, follows, read_benchmark, score_benchmark, score_ifeval, score_pairs, trivial_pairs
from alignlab.helpdesk import make_prompts, respond
from alignlab.models import load_policy

SHARED = Path(__file__).parents[2] / "shared" / "data"
IF = "length_constraints:number_words"

@pytest.fixture(scope="module")
def start(): return load_policy("helpdesk-sft")

def write(path, rows): path.write_text("".join(json.dumps(r) + "\n" for r in rows)); return path

def test_forms(tmp_path):
    pair, asked, said = dict(prompt="p", chosen="a", rejected="b"), dict(key=1, prompt="p", instruction_id_list=["punctuation:no_comma"], kwargs=[{}]), dict(instruction="p", output="a", generator="g")
    for form, row in (("rewardbench", dict(pair, subset="donotanswer")), ("ifeval", asked), ("alpaca_eval", said), ("pairs", pair)):
        assert read_benchmark(write(tmp_path / f"{form}.jsonl", [row]))[0] == form
    pq.write_table(pa.Table.from_pylist([dict(pair, subset="math-prm")]), tmp_path / "filtered.parquet")
    assert read_benchmark(tmp_path / "filtered.parquet") == ("rewardbench", [dict(pair, subset="math-prm")])
    with gzip.open(tmp_path / "zipped.jsonl.gz", "wt") as f: f.write(json.dumps(asked) + "\n")
    assert read_benchmark(tmp_path / "zipped.jsonl.gz")[0] == "ifeval"

def test_faults_name_file_and_row(tmp_path):
    pair = dict(prompt="p", chosen="a", rejected="b", subset="x")
    with pytest.raises(ValueError, match="line 2: no usable rejected"): read_benchmark(write(tmp_path / "a.jsonl", [pair, dict(pair, rejected=None)]))
    with pytest.raises(ValueError, match="no such file"): read_benchmark(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="chosen"): read_benchmark(write(tmp_path / "b.jsonl", [dict(question="?")]))
    with pytest.raises(ValueError, match="no usable rejected"): read_benchmark(write(tmp_path / "e.jsonl", [dict(pair, rejected=[])]))
    (tmp_path / "f.csv").write_text("prompt,instruction_id_list,kwargs\np,['punctuation:no_comma'],[{}]\n")
    with pytest.raises(ValueError, match="no usable instruction_id_list, kwargs"): read_benchmark(tmp_path / "f.csv")
    with pytest.raises(ValueError, match="all rows are Ties"): by_section([dict(subset="Ties")], torch.ones(1))
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(ValueError, match="no rows"): read_benchmark(tmp_path / "c.jsonl")

@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=8), st.floats(.1, 9), st.floats(-9, 9))
def test_pairs_are_ranked_whatever_the_scale(scores, scale, shift):
    rows, s = [dict(prompt="p", chosen="a", rejected="b")] * len(scores), torch.tensor(scores, dtype=torch.double).flatten()
    right = score_pairs(rows, s)
    torch.testing.assert_close(right + score_pairs(rows, s.view(-1, 2).flip(1).flatten()), torch.ones(len(rows), dtype=torch.double))
    if all(a == b or abs(a - b) > .01 for a, b in scores): torch.testing.assert_close(score_pairs(rows, s * scale + shift), right)

def test_four_replies():
    four = dict(prompt="p", chosen=["right"], rejected=["a", "b", "c"])
    for scores, right in (([2., 1., 0., -1.], 1.), ([2., 2., 0., 0.], .5), ([0., 0., 0., 0.], .25), ([2., 0., 0., 3.], 0.)): assert score_pairs([four], torch.tensor(scores)).tolist() == [right]
    with pytest.raises(ValueError, match="3 scores for 4"): score_pairs([four], torch.zeros(3))

def test_sections_as_published():
    "Subsets count by their size, mathematics as much as code, and the total is the mean of sections."
    rows, right = [], []
    for subset, n, share in (("math-prm", 4, 1.), ("hep-python", 30, .0), ("hep-rust", 10, 1.), ("donotanswer", 3, 1.), ("refusals-offensive", 9, 0.), ("Ties", 5, 0.)):
        rows += [dict(subset=subset)] * n; right += [share] * n
    found = by_section(rows, torch.tensor(right))
    assert found["Reasoning"].mean == pytest.approx((1 + 10 / 40) / 2) and found["Safety"].mean == pytest.approx(3 / 12)
    assert found["total"].mean == pytest.approx((.625 + .25) / 2) and set(found) == {"total", "Reasoning", "Safety"}
    assert sum(len(v.split()) for v in SECTIONS.values()) == 23

def test_pairs_are_scored_by_implicit_rewards(tmp_path, start):
    "The start against itself ties everywhere; another policy as a plain sum over its log-probs says"
    base, rows = load_policy("helpdesk-base"), [dict(prompt=p, chosen=respond(p, "good", 1), rejected=respond(p, "decent", 2), subset="x") for p in make_prompts("test", 12, 3)]
    file = write(tmp_path / "pairs.jsonl", rows)
    tied = score_benchmark(start, file, start)
    assert tied["total"].mean == tied["per_token"].mean == .5 != tied["without_reference"].mean
    with torch.no_grad(): gain = {k: base.logps([r["prompt"] for r in rows], [r[k] for r in rows]) - start.logps([r["prompt"] for r in rows], [r[k] for r in rows]) for k in ("chosen", "rejected")}
    words = {k: torch.tensor([len(r[k].split()) + 1. for r in rows]) for k in gain}                       # one token a word, and the end
    found = score_benchmark(base, file, start)
    assert found["total"].mean == pytest.approx((gain["chosen"] > gain["rejected"]).double().mean().item())
    assert found["per_token"].mean == pytest.approx((gain["chosen"] / words["chosen"] > gain["rejected"] / words["rejected"]).double().mean().item())

CASES = {  # instruction -> (kwargs, a reply that follows it, one that does not)
    "keywords:existence": (dict(keywords=["sea", "ship"]), "A Ship at sea", "a boat at sea"),
    "keywords:frequency": (dict(keyword="sea", frequency=2, relation="at least"), "sea to sea", "the sea"),
    "keywords:forbidden_words": (dict(forbidden_words=["sea"]), "a seal", "the Sea"),
    "keywords:letter_frequency": (dict(letter="a", let_frequency=2, let_relation="less than"), "an ox", "a cat"),
    "length_constraints:number_sentences": (dict(num_sentences=2, relation="at least"), "One here. And two!", "One, not two."),
    "length_constraints:number_paragraphs": (dict(num_paragraphs=2), "one\n***\ntwo", "one\n***\n***\ntwo"),
    IF: (dict(num_words=3, relation="less than"), "two words", "here are three"),
    "length_constraints:nth_paragraph_first_word": (dict(num_paragraphs=2, nth_paragraph=2, first_word="Then"), "First this.\n\n\"Then, that.", "First this.\n\nAfter that."),
    "detectable_content:number_placeholders": (dict(num_placeholders=2), "[name] of [town]", "[name]"),
    "detectable_content:postscript": (dict(postscript_marker="P.S."), "Bye.\nP. S. more", "Bye."),
    "detectable_format:number_bullet_lists": (dict(num_bullets=2), "* a\n- b", "* a\n* b\n* c"),
    "detectable_format:constrained_response": ({}, "My answer is maybe.", "maybe"),
    "detectable_format:number_highlighted_sections": (dict(num_highlights=2), "*one* and **two**", "*one* and ** **"),
    "detectable_format:multiple_sections": (dict(section_spliter="Section", num_sections=2), "Section 1 a\nSection 2 b", "Section 1 a"),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<a title>>\ntext", "<<>> text"),
    "combination:two_responses": ({}, "one ****** two", "one ****** one"),
    "combination:repeat_prompt": (dict(prompt_to_repeat="Say this."), "say this. Done", "Done. Say this."),
    "startend:end_checker": (dict(end_phrase="the end."), '"This is The End."', "the end. or not"),
    "startend:quotation": ({}, ' "said" ', '"said'),
    "change_case:capital_word_frequency": (dict(capital_frequency=2, capital_relation="at least"), "HERE and THERE", "HERE and there"),
    "change_case:english_capital": ({}, "ALL OF THIS IS ENGLISH TEXT", "Not all"),
    "change_case:english_lowercase": ({}, "all of this is english text", "Not all"),
    "punctuation:no_comma": ({}, "no commas", "yes, one")}

@pytest.mark.parametrize("instruction", CASES)
def test_instructions(instruction):
    kwargs, good, bad = CASES[instruction]
    assert follows(good, instruction, kwargs) is True and follows(bad, instruction, kwargs) is False and follows("  ", instruction, kwargs) is False

def test_every_instruction_has_a_case(): assert set(_CHECKS) - set(CASES) == {"language:response_language"}

def test_loose_forgives_a_first_line_and_asterisks():
    assert [follows("Sure, here it is:\nno commas", "punctuation:no_comma", loose=x) for x in (False, True)] == [False, True]
    assert [follows("**THE END**", "startend:end_checker", dict(end_phrase="the end"), loose=x) for x in (False, True)] == [False, True]

def test_ifeval_scores():
    rows = [dict(prompt="a", instruction_id_list=["punctuation:no_comma", "change_case:english_lowercase"], kwargs=[{}, None]), dict(prompt="b", instruction_id_list=[IF], kwargs=[dict(num_words=2, relation="at least", keywords=None)])]
    found = score_ifeval(rows, ["one, two", "two words"])
    assert found["prompt_strict"].mean == .5 and found["instruction_strict"].mean == pytest.approx(2 / 3)
    assert score_ifeval(rows * 9, ["one, two", "two words"] * 9)["instruction_strict"].n == 18            # prompts are the units
    with pytest.raises(ValueError, match="unknown instruction 'x'"): follows("a", "x")
    with pytest.raises(ValueError, match=f"{IF}: wrong arguments"): follows("a", IF, dict(words=3))
    with pytest.raises(ValueError, match="2 prompts and 1 replies"): score_ifeval(rows, ["a"])

@pytest.mark.skipif(_language("oui", "fr") is not None, reason="langdetect is there")
def test_what_nobody_can_check_is_left_out_and_alone_is_an_error():
    french = dict(prompt="a", instruction_id_list=["language:response_language", "punctuation:no_comma"], kwargs=[dict(language="fr"), {}])
    found = score_ifeval([french, dict(french, instruction_id_list=["punctuation:no_comma"], kwargs=[{}])], ["oui", "oui, non"])
    assert found["prompt_strict"].n == 1 and found["prompt_strict"].mean == 0 and found["instruction_strict"].mean == .5
    with pytest.raises(ValueError, match="need the package langdetect"): score_ifeval([french], ["oui"])

def test_needs_a_judge_or_a_reference(tmp_path, start):
    with pytest.raises(ValueError, match="give a judge"): score_benchmark(start, write(tmp_path / "a.jsonl", [dict(instruction="p", output="a", generator="g")]))
    with pytest.raises(ValueError, match="reference"): score_benchmark(start, write(tmp_path / "b.jsonl", [dict(prompt="p", chosen="a", rejected="b", subset="x")]))

def test_longest_and_shortest_are_opposites():
    rows = [dict(prompt="p", chosen="a b c", rejected="a b"), dict(prompt="p", chosen=[dict(role="assistant", content="I cannot help")], rejected=[dict(role="assistant", content="sure thing here it is")])]
    found = trivial_pairs(rows)
    assert found["longest"].mean + found["shortest"].mean == 1 and found["refuses"].mean == .75

@pytest.mark.skipif(not (SHARED / "ifeval").is_dir(), reason="needs published data beside the checkout")
def test_published_ifeval_is_understood_whole():
    form, rows = read_benchmark(SHARED / "ifeval" / "input_data.jsonl.gz")
    assert form == "ifeval" and len(rows) == 300
    for r in rows:
        for i, k in zip(r["instruction_id_list"], r["kwargs"]): assert follows("Some reply.", i, k) in (True, False, None)
