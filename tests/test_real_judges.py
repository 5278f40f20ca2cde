"Judges of real text: what counts as a verdict, servers that fail, ignore and garble, the account and the cache, and the real thing on loopback."
import json, math, os, signal, subprocess, sys, threading, time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest, torch
from hypothesis import given, settings, strategies as st
from alignlab.helpdesk import make_prompts, respond
from alignlab.judges import Panel, _next_logps, label_quality, swap_average
from alignlab.models import load_policy
from alignlab.real_judges import APIJudge, LikelihoodJudge, RationaleJudge, ReplayJudge, load_llmbar, open_judge, read_verdict, text_judge, verdict
from alignlab.real_judges import _check_model
from conftest import ROOT

close, nan = torch.testing.assert_close, math.nan
quick = settings(derandomize=True, deadline=None, max_examples=80)
X, A, B = [f"question {i}" for i in range(12)], [f"good answer {i}" for i in range(12)], [f"bad {i}" for i in range(12)]

class Fake:
    "An OpenAI-compatible server that does what `plan(question, attempt, body)` says: a reply (text, logprobs), or the name of a fault"
    def __init__(self, plan, finish="stop", usage=(100, 2)):
        fake = self
        self.plan, self.asked, self.answered, self.bodies, self.now, self.most, self.lock = plan, Counter(), Counter(), [], 0, 0, threading.Lock()
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *a): pass
            def send(self, code, text, length=None, **headers):
                data = text.encode(); self.send_response(code); self.send_header("content-type", "application/json"); self.send_header("content-length", str(length or len(data)))
                for k, v in headers.items(): self.send_header(k.replace("_", "-"), v)
                self.end_headers(); self.wfile.write(data); self.wfile.flush()
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                question = body["messages"][0]["content"]
                with fake.lock: fake.asked[question] += 1; fake.bodies.append(body); attempt = fake.asked[question]; fake.now += 1; fake.most = max(fake.most, fake.now)
                try: self.reply(question, attempt, body)
                except (BrokenPipeError, ConnectionResetError): pass
                finally:
                    with fake.lock: fake.now -= 1
            def reply(self, question, attempt, body):
                do = fake.plan(question, attempt, body)
                if do == "timeout": time.sleep(1.2); self.close_connection = True; return
                if do == "half": self.send(200, '{"choices": [{"mess', length=4000); self.close_connection = True; return
                if do == "garbage": return self.send(200, "<html>all is well</html>")
                if do == "no choices": return self.send(200, '{"object": "chat.completion", "choices": []}')
                if isinstance(do, int): return self.send(do, json.dumps(dict(error=dict(message=f"fault {do}", code=None))), **(dict(retry_after="0.2") if do == 429 else {}))
                if isinstance(do, dict): return self.send(do.pop("status", 400), json.dumps(dict(error=do)))
                text, logprobs = do
                told = dict(content=[dict(token=t[0][0], logprob=t[0][1], top_logprobs=[dict(token=a, logprob=b) for a, b in t]) for t in logprobs]) if logprobs else None
                with fake.lock: fake.answered[question] += 1
                self.send(200, json.dumps(dict(id="x", object="chat.completion", created=0, model=body["model"], usage=dict(prompt_tokens=usage[0], completion_tokens=usage[1], total_tokens=sum(usage)),
                    choices=[dict(index=0, finish_reason=finish, message=dict(role="assistant", content=text), logprobs=told)])))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler); self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    def __enter__(self): return self
    def __exit__(self, *a): self.server.shutdown(); self.server.server_close()

def first_is_good(question): return question.index("good answer") < question.index("bad")
def right(question, attempt=1, body=None):
    p = .9 if first_is_good(question) else .2
    return "A" if p > .5 else "B", [[("A", math.log(p)), (" B", math.log(1 - p))]]
def wordy(question, *a): return ("A" if first_is_good(question) else "B"), None
def judge(fake, tmp_path, **more): return APIJudge("small", fake.url, **{**dict(cache=tmp_path / "cache", timeout=.8, retries=4), **more})

# --- what counts as a verdict
@pytest.mark.parametrize("text,p", [("A", 1.), ("B", 0.), ("C", .5), (" **A**.", 1.), ("[[B]]", 0.), ("(A)", 1.), ("[[A]] no, wait: [[B]]", 0.), ("B or not, [[C]]", .5), ("A is better.", nan),
                                    ("Answer: A", nan), ("AB", nan), ("a", nan), ("", nan), (None, nan), ("I cannot choose", nan), ("[[D]]", nan), ("A\nB", nan)])
def test_verdict_is_strict(text, p): close(torch.tensor(verdict(text)), torch.tensor(p), equal_nan=True)

@quick
@given(text=st.text(max_size=40).filter(lambda t: "[[" not in t), letter=st.sampled_from("ABC"))
def test_last_marked_verdict_wins(text, letter):
    assert verdict(f"[[A]] {text} [[B]] {text} [[{letter}]]{text}") == dict(A=1., B=0., C=.5)[letter]

@quick
@given(lps=st.lists(st.floats(-8, 2), min_size=3, max_size=3), other=st.floats(0, .45))
def test_log_probs_are_a_softmax_over_the_letters_in_all_their_spellings(lps, other):
    p = torch.tensor(lps).softmax(0) * (1 - other)
    half = p[0].item() / 2 + 1e-12
    told = {"A": math.log(half), " A": math.log(half), "B": math.log(p[1].item() + 1e-12), "**C": math.log(p[2].item() + 1e-12), "The": math.log(other + 1e-9)}
    close(read_verdict(dict(text="A", logprobs=[told])), ((p[0] + p[2] / 2) / p.sum()).item(), atol=1e-6, rtol=0)

def test_without_mass_on_the_letters_the_text_decides():
    assert read_verdict(dict(text="B", logprobs=[{"The": -.1, "A": -3.}])) == 0. and math.isnan(read_verdict(dict(text="The A", logprobs=[{"The": -.1, "A": -3.}])))

def test_with_reasons_the_verdict_is_read_at_its_own_place():
    told = [{"A": -.01, "B": -6.}, {" is": 0., " was": -9.}, {" [[": 0., "[": -9.}, {"B": math.log(.7), "A": math.log(.3)}, {"]]": 0., "]": -9.}]
    close(read_verdict(dict(text="A is [[B]]", logprobs=told)), .3, atol=1e-6, rtol=0)

def test_a_log_prob_of_the_sampled_token_alone_says_nothing_about_the_other():
    assert read_verdict(dict(text="A", logprobs=[{"A": -.6}])) == 1.

# --- a server that does what it should
def test_both_orders_log_probs_and_the_account(tmp_path):
    with Fake(right) as f:
        j = judge(f, tmp_path, price=(2., 10.))
        close(j.prefer(X, A, B), torch.full((12,), .9)); close(j.prefer(X, B, A), torch.full((12,), .2))
        assert (j.calls, j.cached, j.unparsed, j.without_logprobs, j.tokens) == (24, 0, 0, 0, 24 * 102) and j.price == pytest.approx(24 * (100 * 2 + 2 * 10) / 1e6)
        assert f.bodies[0]["temperature"] == 0 and f.bodies[0]["logprobs"] is True and "question" in f.bodies[0]["messages"][0]["content"]
        q = label_quality(judge(f, tmp_path), X, A, B, torch.ones(12))                       # another object: all from the cache
        assert q["judge"]["agreement"] == 1 and q["judge"]["calls"] == 0 and sum(f.answered.values()) == 24
        close(swap_average(judge(f, tmp_path)).prefer(X, A, B), torch.full((12,), .85))
        assert not list((tmp_path / "cache").rglob("*.part"))

def test_the_same_question_twice_is_asked_once_and_no_key_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with Fake(right) as f:
        j = judge(f, tmp_path); p = j.prefer(X[:2] * 3, A[:2] * 3, B[:2] * 3)
        assert len(p) == 6 and j.calls == 2 and set(f.asked.values()) == {1}
    assert all("secret" not in file.read_text() for file in (tmp_path / "cache").rglob("*.json"))

def test_another_template_model_or_server_is_another_question(tmp_path):
    with Fake(right) as f, Fake(right) as g:
        for j in (judge(f, tmp_path), judge(f, tmp_path, template="card"), judge(g, tmp_path), judge(f, tmp_path, max_new_tokens=4)): j.prefer(X[:1], A[:1], B[:1]); assert j.calls == 1
        other = APIJudge("big", f.url, cache=tmp_path / "cache"); other.prefer(X[:1], A[:1], B[:1]); assert other.calls == 1

def test_no_more_requests_at_once_than_allowed(tmp_path):
    def slow(*a): time.sleep(.1); return right(*a)
    with Fake(slow) as f: judge(f, tmp_path, at_once=3).prefer(X, A, B); assert f.most == 3

def test_a_damaged_reply_in_the_cache_is_asked_again(tmp_path):
    with Fake(right) as f:
        judge(f, tmp_path).prefer(X, A, B); next((tmp_path / "cache").rglob("*.json")).write_text('{"text": "A", "log')
        j = judge(f, tmp_path); j.prefer(X, A, B); assert (j.calls, j.cached) == (1, 11)

# --- a server that ignores or refuses what it is asked
def test_a_server_that_ignores_logprobs_is_noticed_and_its_text_is_read(tmp_path):
    def plan(question, *a): return ("I think that A is better, all in all.", None) if "question 3" in question else wordy(question)
    with Fake(plan) as f:
        j = judge(f, tmp_path); p = j.prefer(X, B, A)
        assert j.without_logprobs == 12 and j.unparsed == 1 and p.isnan().tolist() == [i == 3 for i in range(12)] and (p[~p.isnan()] == 0).all()
        row = label_quality(judge(f, tmp_path), X, A, B, torch.ones(12))["judge"]; assert row["unparsed"] == pytest.approx(1 / 12) and row["agreement"] == 1

@pytest.mark.parametrize("refused", [["max_completion_tokens"], ["logprobs"], ["temperature"], ["max_completion_tokens", "logprobs", "temperature"]])
def test_a_refused_parameter_is_left_out_from_then_on(tmp_path, refused):
    def plan(question, attempt, body):
        bad = next((k for k in refused if k in body), None)
        return dict(message=f"Unsupported parameter: '{bad}'", param=bad) if bad else wordy(question) if "logprobs" in refused else right(question)
    with Fake(plan) as f:
        j = judge(f, tmp_path, at_once=4); p = j.prefer(X, A, B)
        assert (p > .5).all() and j.calls == 12 and j.at_risk == 0 and sum(f.asked.values()) <= 12 + 4 * len(refused)
        assert ("max_tokens" in f.bodies[-1]) == ("max_completion_tokens" in refused) and ("top_logprobs" in f.bodies[-1]) == ("logprobs" not in refused)

def test_a_question_that_is_too_long_has_no_verdict_and_stops_nothing(tmp_path):
    def plan(q, *a): return dict(message="the request exceeds the available context size", type="exceed_context_size_error") if "question 5" in q else right(q)
    with Fake(plan) as f: j = judge(f, tmp_path); p = j.prefer(X, A, B); assert p.isnan().sum() == 1 and j.unparsed == 1 and j.calls == 12

def test_an_article_is_no_verdict():
    told = [{"A": -.05, "B": -4.}]
    assert math.isnan(read_verdict(dict(text="A hard question. B", logprobs=told))) and read_verdict(dict(text="A is better.", logprobs=told)) > .9 and read_verdict(dict(text="A hard one: [[B]]", logprobs=[*told, {"[[": 0., "[": -9.}, {"B": -.1, "A": -3.}])) < .1

def test_replies_that_are_cut_off_before_a_verdict_stop_the_spending(tmp_path):
    "A model that thinks unseen, and a limit that is too small: told after twenty replies, not after a thousand"
    def thinks(*a): return "", None
    with Fake(thinks, finish="length") as f:
        n = 100; x = [f"question {i}" for i in range(n)]
        with pytest.raises(ValueError, match="first 20 replies were cut off at 16 tokens.*max_new_tokens"): judge(f, tmp_path, at_once=4).prefer(x, ["good answer"] * n, ["bad"] * n)
        assert 20 <= sum(f.answered.values()) <= 24

def test_a_server_that_bills_more_than_it_was_allowed_is_believed_the_next_time(tmp_path):
    with Fake(right, usage=(4000, 500)) as f:
        j = judge(f, tmp_path, price=(1., 1.), budget=.02, at_once=1)
        with pytest.raises(ValueError, match="budget of"): j.prefer(X, A, B)
        assert j.calls == 4 and j.price == pytest.approx(4 * 4500 / 1e6)

# --- a faulty server
FAULTS = ["timeout", "half", "garbage", "no choices", 429, 500, 503]
def test_through_all_faults_nothing_is_lost_and_nothing_counted_twice(tmp_path):
    "Every question meets one or two faults before it is answered"
    def plan(q, attempt, body):
        i = int(q.split("question ")[1].split("\n")[0])
        faults = [FAULTS[i % 7], FAULTS[(i * 3 + 1) % 7]][:1 + i % 2]
        return faults[attempt - 1] if attempt <= len(faults) else right(q)
    with Fake(plan) as f:
        j = judge(f, tmp_path, price=(1., 1.), at_once=12); close(j.prefer(X, A, B), torch.full((12,), .9))
        assert set(f.answered.values()) == {1} and len(f.answered) == j.calls == 12 and j.tokens == 12 * 102 and j.price == pytest.approx(12 * 102 / 1e6)
        lost = sum(x in ("timeout", "half", "garbage", "no choices", 500, 503) for i in range(12) for x in [FAULTS[i % 7], FAULTS[(i * 3 + 1) % 7]][:1 + i % 2])
        assert j.at_risk > 0 and j._reserved == pytest.approx(0, abs=1e-12) and j.at_risk / lost < 1e-3        # a server may have billed what it did not deliver
        again = judge(f, tmp_path); again.prefer(X, A, B); assert (again.calls, again.cached) == (0, 12)

def test_what_fails_for_good_is_told_and_the_rest_is_kept(tmp_path):
    broken = {"on": True}
    def plan(q, *a): return 500 if broken["on"] and ("question 2\n" in q or "question 7\n" in q) else right(q)
    with Fake(plan) as f:
        with pytest.raises(RuntimeError, match=r"2 requests failed 2 times each .*fault 500.*10 of 12 replies are kept.*asks only for the other 2"): judge(f, tmp_path, retries=1).prefer(X, A, B)
        broken["on"] = False
        j = judge(f, tmp_path); assert (j.prefer(X, A, B) > .5).all() and (j.calls, j.cached) == (2, 10)

def test_a_server_where_nothing_gets_through_is_not_asked_a_thousand_times(tmp_path):
    with Fake(lambda *a: 500) as f:
        n = 200; x = [f"question {i}" for i in range(n)]
        with pytest.raises(RuntimeError, match="0 of 200 replies"): judge(f, tmp_path, retries=0, at_once=4).prefer(x, ["good answer"] * n, ["bad"] * n)
        assert sum(f.asked.values()) < 20

@pytest.mark.parametrize("fault,words", [(dict(status=401, message="bad key"), "does not accept the key.*OPENAI_API_KEY"), (dict(status=404, message="no such model"), "knows no model 'small'.*base_url"),
                                         (dict(status=400, message="no images"), "refuses the request: .*no images"), (dict(status=429, message="insufficient_quota"), "no credit")])
def test_what_no_retry_mends_is_one_line(tmp_path, fault, words):
    with Fake(lambda *a: dict(fault)) as f:
        with pytest.raises(ValueError, match=words) as e: judge(f, tmp_path, at_once=2).prefer(X, A, B)
        assert "\n" not in str(e.value) and sum(f.asked.values()) <= 3

def test_no_server_is_one_line(tmp_path):
    with Fake(right) as f: url = f.url
    with pytest.raises(ValueError, match="nothing answers at http://127.0.0.1.*base_url.*0 of 12"): APIJudge("m", url, cache=tmp_path, at_once=2).prefer(X, A, B)

# --- the budget
def test_the_budget_holds_and_a_larger_one_goes_on(tmp_path):
    with Fake(right) as f:
        j = judge(f, tmp_path, price=(10., 10.), budget=.02)                                 # 102 tokens are $.00102; a request is reserved at its most
        with pytest.raises(ValueError, match=r"budget of \$0.02 is used up.*replies are kept"): j.prefer(X * 3, A * 3, [f"bad {i}" for i in range(36)])
        billed = sum(f.answered.values()) * 102 * 10 / 1e6
        assert 0 < j.calls < 36 and billed <= .02 and j.price == pytest.approx(billed)
        rest = judge(f, tmp_path, price=(10., 10.), budget=1.); rest.prefer(X * 3, A * 3, [f"bad {i}" for i in range(36)])
        assert rest.calls + j.calls == 36 and set(f.answered.values()) == {1}

def test_a_reply_that_never_comes_counts_against_the_budget(tmp_path):
    with Fake(lambda *a: "half") as f:
        j = judge(f, tmp_path, price=(10., 10.), budget=.05, retries=40, at_once=1)
        j._halt.wait = lambda seconds: None                                                  # without the pauses
        with pytest.raises(ValueError, match="came to nothing"): j.prefer(X, A, B)
        assert j.at_risk + j.price <= .05 and j.calls == 0 and sum(f.asked.values()) * j._dollars(*j._most(f.bodies[0])) <= .0501

def test_estimate_is_near_what_is_paid_and_knows_the_cache(tmp_path):
    with Fake(right) as f:
        j = judge(f, tmp_path, price=(1., 0.)); e = j.estimate(X, A, B); assert e["calls"] == 24 and 24 * 80 < e["tokens"] < 24 * 160
        j.prefer(X, A, B); assert j.estimate(X, A, B)["calls"] == 12

# --- killed, and run again
def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path):
    def slow(*a): time.sleep(.15); return right(*a)
    with Fake(slow) as f:
        code = f"from alignlab.real_judges import APIJudge; from test_real_judges import X, A, B; APIJudge('small', {f.url!r}, cache={str(tmp_path / 'cache')!r}, at_once=2).prefer(X, A, B)"
        p = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "tests", env={**os.environ, "PYTHONPATH": str(ROOT)})
        while sum(f.answered.values()) < 5: time.sleep(.02); assert p.poll() is None
        p.send_signal(signal.SIGKILL); p.wait()
        kept = len(list((tmp_path / "cache").rglob("*.json"))); assert 3 <= kept < 12
        time.sleep(.3); j = judge(f, tmp_path, at_once=2)
        close(j.prefer(X, A, B), torch.full((12,), .9)); assert j.calls == 12 - kept and sum(f.answered.values()) <= 12 + 3      # at most the two in flight again

# --- bad input
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False); monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for make, words in ((lambda: APIJudge("some-model"), "needs a key or a server.*OPENAI_API_KEY.*base-url"), (lambda: APIJudge("gpt-4"), "shut it down on 2026-10-23.*teacher_model"),
                        (lambda: APIJudge("m", "localhost:8000"), "begins with http"), (lambda: APIJudge("m", "http://x/v1", budget=1.), "needs prices"),
                        (lambda: APIJudge("m", "http://x/v1", template="which of {first}?"), "lacks {prompt}, {second}"), (lambda: APIJudge("m", "http://x/v1", template="{prompt}{first}{second}{x}"), "braces"),
                        (lambda: open_judge("gpt-4"), "shut it down"), (lambda: open_judge("helpdesk-nothing"), "needs a key or a server|there is no policy"), (lambda: load_llmbar(tmp_path), "no such file"),
                        (lambda: ReplayJudge({("a", "b", "c"): 1.}).prefer(["a"], ["c"], ["b"]), "pair 0 is not among the 1 recorded")):
        with pytest.raises(ValueError, match=words): make()

def test_a_model_that_will_be_shut_down_is_a_warning():
    with pytest.warns(UserWarning, match="2027-01-14"): _check_model("gpt-4o", today="2026-11-24")
    with pytest.raises(ValueError, match="2027-01-14"): _check_model("gpt-4o", today="2027-02-01")
    _check_model("a-model-of-tomorrow")

# --- local judges
def test_open_judge_finds_what_can_judge(tmp_path):
    sft = load_policy("helpdesk-sft"); assert isinstance(open_judge(sft), Panel) and isinstance(open_judge("helpdesk-sft"), Panel)
    j = GoldLike(); assert open_judge(j) is j and isinstance(open_judge("helpdesk-sft", "http://localhost:1/v1"), APIJudge)
class GoldLike:
    def prefer(self, *a): return torch.ones(1)

def test_likelihood_judge_is_a_difference_of_log_probs_and_has_no_order():
    p = load_policy("helpdesk-sft"); x = make_prompts("test", 6); a, b = ([respond(q, "decent", s) for q in x] for s in (1, 2))
    j = LikelihoodJudge(p); got = j.prefer(x, a, b)
    close(got, 1 - j.prefer(x, b, a)); assert j.calls == 12 and j.tokens > 0
    with torch.no_grad(): slow = torch.tensor([sum(s * (p.logps([q], [y], ended=False) - p.logps([""], [y], ended=False)).item() for s, y in ((1, u), (-1, v))) for q, u, v in zip(x, a, b)])
    close(got, torch.sigmoid(.1 * slow), atol=1e-4, rtol=0)
    assert j.prefer(x[:1], a[:1], a[:1]).item() == .5

def test_likelihood_judge_knows_which_answer_belongs_to_the_prompt():
    x = make_prompts("test", 40); a = [respond(q, "good", 1) for q in x]
    assert (LikelihoodJudge(load_policy("helpdesk-sft")).prefer(x, a, a[1:] + a[:1]) > .5).float().mean() > .9

def test_replay_and_llmbar(tmp_path):
    rows = [dict(input="q", output_1="x", output_2="y", label="1"), dict(input="r", output_1="x", output_2="z", label="2")]
    said = [dict(r, results=[{"swap = False": dict(winner=w), "swap = True": dict(winner=v)}]) for r, (w, v) in zip(rows, (("1", "1"), ("1", "2")))]
    said[1]["results"][0]["swap = True"]["winner"] = None
    (tmp_path / "dataset.json").write_text(json.dumps(rows)); (tmp_path / "judge_Old.json").write_text(json.dumps(said))
    (x, a, b, t), judges = load_llmbar(tmp_path); j = judges["Old"]
    assert t.tolist() == [1., 0.] and j.prefer(x, a, b).tolist() == [1., 1.]
    close(j.prefer(x, b, a), torch.tensor([0., nan]), equal_nan=True)
    (tmp_path / "judge_Old.json").write_text('[{"input": 1}]')
    with pytest.raises(ValueError, match="judge_Old.json: not of LLMBar's form"): load_llmbar(tmp_path)

def test_gpt4_of_llmbar_as_published(shared_data):
    (x, a, b, t), judges = load_llmbar(shared_data / "llmbar" / "MT-Bench"); q = label_quality({k: j for k, j in judges.items()}, x, a, b, t)
    assert q["GPT-4"]["agreement"] == pytest.approx(.81, abs=.005) and q["GPT-4"]["consistent"] == pytest.approx(.87, abs=.005) and q["longest wins"]["agreement"] == pytest.approx(.68, abs=.02)

# --- the real thing: SmolLM2 behind a real OpenAI-compatible server, and in process
@pytest.fixture(scope="module")
def smollm2():
    try: return load_policy("smollm2-135m")
    except ValueError as e: pytest.skip(str(e))

@pytest.fixture(scope="module")
def served(smollm2, tmp_path_factory):
    xllamacpp = pytest.importorskip("xllamacpp")
    from alignlab.models import _SMOLLM2, _cache, _smollm2_gguf
    folder = tmp_path_factory.mktemp("gguf")
    try: _smollm2_gguf(_cache(), folder)
    except ValueError as e: pytest.skip(str(e))
    p = xllamacpp.CommonParams(); p.model.path = str(folder / _SMOLLM2["gguf"]); p.n_ctx, p.n_parallel, p.port, p.verbosity = 4096, 2, 0, 0
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(p)
    yield server.listening_address + "/v1"
    del server

Q = ["Name a color.", "What is 2 + 2?", "Say hello."], ["Blue.", "4", "Hello!"], ["Seven o'clock.", "A fish.", "No."]

def test_a_real_server_gives_the_log_probs_that_the_model_has(served, smollm2, tmp_path):
    j = APIJudge("smollm2", served, template="card", cache=tmp_path, at_once=2); p = j.prefer(*Q)
    assert j.without_logprobs == 0 and j.calls == 3 and j.tokens > 150 and j.unparsed == int(p.isnan().sum())
    for file in tmp_path.rglob("*.json"):
        told = json.loads(file.read_text()); tokens = [(t, lp) for t, lp in told["logprobs"][0].items() if len(smollm2.tokenizer(t, add_special_tokens=False).input_ids) == 1][:8]
        ids = [smollm2.tokenizer(t, add_special_tokens=False).input_ids[0] for t, _ in tokens]
        mine = _next_logps(smollm2, [smollm2.prompt_ids(told["request"]["messages"][0]["content"])], ids)[0].exp()
        close(torch.tensor([math.exp(lp) for _, lp in tokens]), mine, atol=.1, rtol=0); assert mine.sum() > .3       # the server computes in 4 bits
    again = APIJudge("smollm2", served, template="card", cache=tmp_path); close(again.prefer(*Q), p, equal_nan=True); assert again.calls == 0

def test_a_real_server_with_reasons_in_text(served, tmp_path):
    j = APIJudge("smollm2", served, template="reasons", cache=tmp_path, max_new_tokens=24, at_once=2); p = j.prefer(*(c[:2] for c in Q))
    assert len(p) == 2 and j.calls == 2 and all(v != v or 0 <= v <= 1 for v in p.tolist()) and j.unparsed == int(p.isnan().sum())

def test_local_judges_of_real_text(smollm2):
    j = RationaleJudge(smollm2, max_new_tokens=8); p = j.prefer(*Q)
    assert ((p >= 0) & (p <= 1)).all() and j.calls == 3 and len(j.said) == 3
    close(j.prefer(*Q), p); assert len(j.said) == 3
    mixed = LikelihoodJudge(smollm2).prefer(Q[0], Q[1], Q[1][1:] + Q[1][:1]); assert (mixed > .5).all()       # answers to other questions
    dialogue = [[dict(role="user", content="Hi"), dict(role="assistant", content="Hello"), dict(role="user", content=q)] for q in Q[0]]
    assert text_judge(smollm2).prefer(dialogue, *Q[1:]).shape == (3,)

def test_an_empty_answer_has_no_likelihood_and_costs_no_other_verdict():
    j = LikelihoodJudge(load_policy("helpdesk-sft", device="cpu"))
    p = j.prefer(["is my dog allowed ?"] * 2, ["", "no ."], ["no .", "you may ."])
    assert p.isnan().tolist() == [True, False]
