import http.server
import json
import sys
import threading
import time

import pytest

from msa.errors import EvaluationError, JudgeError
from msa.evaluation.judge import (
    MAX_UNANSWERED,
    RUBRIC,
    Case,
    Judge,
    JudgeSettings,
    JudgeUnavailableError,
    check_rubric,
    fill_rubric,
    read_score,
)
from msa.evaluation.judge_agreement import Agreement, agreement

CASE = Case("What is the capital of France?", ["Paris"], "It is Paris.")
KEY = "sk-secret"


def completion(content, reason="stop"):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": reason}]})


class Endpoint(http.server.ThreadingHTTPServer):
    """A chat endpoint that answers request after request with ``plan``'s next step, the last one for ever."""

    daemon_threads = True

    def __init__(self, plan):
        self.plan, self.requests, self.lock = list(plan), [], threading.Lock()
        self.under_way = self.most_under_way = 0
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            step = self.server.plan[min(len(self.server.requests), len(self.server.plan)) - 1]
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            step(self, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up, as some tests want
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def log_message(self, *args):
        pass


def reply(text, status=200, **headers):
    def step(handler, body):
        data = text.encode()
        handler.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return step


def hang(handler, body):
    handler.server.released.wait(30)


def drip(handler, body):
    """Byte after byte, each soon enough for a timeout per read."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    while not handler.server.released.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def hang_up(handler, body):
    handler.close_connection = True


def score_of_prediction(handler, body):
    """The last digit of what stands between the answer's tags, after a while."""
    time.sleep(0.05)
    content = body["messages"][0]["content"].split("</answer>")[0]
    reply(completion(f"Score: {content.strip()[-1]}"))(handler, body)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(*plan):
        server = Endpoint(plan)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


def judge_at(server, **settings):
    settings = {"backoff_s": 0.01, "timeout_s": 5.0, "api_key": KEY, **settings}
    return Judge(JudgeSettings(base_url=server.url, model="grader", **settings))


def failure(server, **settings):
    with judge_at(server, **settings) as judge, pytest.raises(JudgeError) as caught:
        judge.score(CASE)
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_a_score(serve):
    server = serve(reply(completion("Score: 4")))
    with judge_at(server) as judge:
        judgement = judge.score(CASE)
    assert (judgement.score, judgement.reply, judgement.attempts) == (4, "Score: 4", 1)
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("grader", 0.0, 512)
    (message,) = body["messages"]
    assert message["role"] == "user"
    for text in (CASE.question, "- Paris", CASE.prediction):
        assert text in message["content"]
    assert "{" not in message["content"]


def test_no_key_and_other_fields_of_the_request(serve):
    server = serve(reply(completion("5")))
    with judge_at(server, api_key=None, request={"max_completion_tokens": 9}) as judge:
        assert judge.score(CASE).score == 5
    _, headers, body = server.requests[0]
    assert "authorization" not in {name.lower() for name in headers}
    assert "temperature" not in body
    assert "max_tokens" not in body
    assert body["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (completion("The answer is mostly right, so I would say 4."), "mostly right, so I would say 4"),
        (completion(""), "the reply is empty"),
        (completion(" \n"), "the reply is empty"),
        (completion("Score: 10"), 'found: "Score: 10"'),
        (completion("Score: 1", "length"), "cut off by its token limit"),
        (completion(None), "expected a text from the judge, found: null"),
        (completion([{"type": "text", "text": "4"}]), "expected a text from the judge"),
        ("<html>Welcome</html>", 'expected a chat completion from the judge, found: "<html>Welcome</html>"'),
        ("4", "expected a chat completion"),
        ('{"choices": []}', "expected a chat completion"),
        ('{"choices": [null]}', "expected a chat completion"),
        ('{"error": {"message": "quota"}}', "quota"),
        ("[" * 100_000, "expected a chat completion"),
    ],
)
def test_a_reply_that_is_no_score_is_an_error_and_not_asked_again(serve, text, what):
    server = serve(reply(text))
    assert what in failure(server)
    assert len(server.requests) == 1


def test_busy_then_well(serve):
    server = serve(reply("slow down", 429), reply("", 503), hang_up, reply(completion("Score: 3")))
    with judge_at(server) as judge:
        judgement = judge.score(CASE)
    assert (judgement.score, judgement.attempts) == (3, 4)


def test_the_wait_the_server_asks_for(serve):
    server = serve(reply("", 429, retry_after="0.4"), reply(completion("1")))
    with judge_at(server, backoff_s=30.0) as judge:
        started = time.monotonic()
        assert judge.score(CASE).score == 1
    assert 0.4 <= time.monotonic() - started < 5


@pytest.mark.parametrize("named", ["-1", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"])
def test_a_wait_that_is_none_is_replaced_by_our_own(serve, named):
    server = serve(reply("", 429, retry_after=named), reply(completion("1")))
    with judge_at(server) as judge:
        assert judge.score(CASE).attempts == 2


def test_always_failing(serve):
    server = serve(reply("boom " * 1_000, 500))
    message = failure(server, max_retries=2)
    assert 'did not answer in 3 attempts; the last: HTTP 500: "boom boom' in message
    assert len(message) < 500
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [301, 400, 401, 404, 422])
def test_a_refusal_is_not_repeated(serve, status):
    server = serve(reply(f"bad key {KEY}", status, location="/elsewhere"))
    assert f'refused the request (HTTP {status}: "bad key ***")' in failure(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("step", [hang, drip])
def test_a_server_that_does_not_come_to_an_end(serve, step):
    server = serve(step)
    started = time.monotonic()
    assert "did not answer in 2 attempts; the last: ReadTimeout" in failure(server, timeout_s=0.3, max_retries=1)
    assert 0.6 <= time.monotonic() - started < 5


def test_nobody_listens(serve):
    server = serve(hang)
    server.shutdown()
    server.server_close()
    assert "the last: ConnectError" in failure(server, max_retries=0)


def test_an_endless_reply(serve):
    server = serve(reply("x" * 2_000_000))
    assert "sent over 1,000,000 bytes" in failure(server)


def test_many_at_once_but_not_more_than_allowed(serve):
    server = serve(score_of_prediction)
    cases = [Case("q", ["a"], str(number % 8)) for number in range(20)]
    with judge_at(server, concurrency=3) as judge:
        results = dict(judge.score_all(cases))
    assert sorted(results) == list(range(20))
    for index, result in results.items():
        if index % 8 > 5:  # out of range: its own error, and the others go on
            assert isinstance(result, JudgeError)
        else:
            assert result.score == index % 8
    assert 1 < server.most_under_way <= 3


def test_results_come_before_the_last_case_is_sent(serve):
    server = serve(score_of_prediction)
    with judge_at(server, concurrency=2) as judge:
        results = judge.score_all(Case("q", ["a"], "5") for _ in range(1_000))
        assert next(results)[1].score == 5
        results.close()
    assert len(server.requests) < 10


def gone(server, cases, **settings):
    """Outcomes until the judge is given up, and the error that says so."""
    found = []
    with judge_at(server, **settings) as judge:
        try:
            found.extend(outcome for _, outcome in judge.score_all(cases))
        except JudgeUnavailableError as error:
            return found, str(error)
    pytest.fail("it was not given up")


def test_a_judge_that_nobody_reaches_is_given_up_after_a_few_answers(serve):
    server = serve(hang)
    server.shutdown()
    server.server_close()
    for concurrency in (1, 4):
        cases = (Case("q", ["a"], "p") for _ in range(1_000))
        found, error = gone(server, cases, concurrency=concurrency, max_retries=1)
        assert MAX_UNANSWERED <= len(found) < MAX_UNANSWERED + concurrency
        assert all(isinstance(outcome, JudgeUnavailableError) for outcome in found)
        assert "did not answer in" in error
        assert "ConnectError" in error


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_judge_that_refuses_whoever_asks_is_given_up_at_once(serve, status):
    server = serve(reply(completion("5")), reply(f"no {KEY}", status))
    found, error = gone(server, (CASE for _ in range(1_000)), concurrency=1)
    assert [outcome.score for outcome in found[:-1]] == [5]
    assert f'refused the request (HTTP {status}: "no ***")' in error
    assert len(server.requests) == 2


def test_requests_under_way_are_not_repeated_for_a_judge_that_is_gone(serve):
    server = serve(reply("no", 401), reply("busy", 503))
    started = time.monotonic()
    found, error = gone(server, [CASE] * 4, concurrency=2, backoff_s=20.0)
    assert time.monotonic() - started < 10
    assert (len(found), len(server.requests)) == (2, 2)
    assert "HTTP 401" in error


@pytest.mark.parametrize("failure", [reply("busy", 503), reply("wrong", 400), reply(completion("well, well"))])
def test_answers_that_fail_now_and_then_do_not_stop_the_others(serve, failure):
    plan = [failure, failure, reply(completion("5"))] * 4
    server = serve(*plan)
    with judge_at(server, concurrency=1, max_retries=0) as judge:
        found = [outcome for _, outcome in judge.score_all([CASE] * len(plan))]
    assert [isinstance(outcome, JudgeError) for outcome in found] == [True, True, False] * 4


def test_nothing_to_compare_with(serve):
    server = serve(reply(completion("5")))
    with judge_at(server) as judge:
        for case in (Case("q", [], "p"), Case(" ", ["a"], "p")):
            with pytest.raises(ValueError, match="at least one reference answer"):
                judge.score(case)
            with pytest.raises(ValueError, match="at least one reference answer"):
                list(judge.score_all([CASE, case]))
        assert judge.score(Case("q", ["a"], "")).score == 5  # an empty answer can be judged


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0", 0),
        (" 5\n", 5),
        ("score=2", 2),
        ("SCORE: 3/5", 3),
        ("**Score:** 4", 4),
        ("Score: **1**.", 1),
        ("<think>\nIs it 1? No.\nScore: 5\n</think>\n\nScore: 2", 2),
    ],
)
def test_scores_that_are_read(reply, score):
    assert read_score(reply) == score


@pytest.mark.parametrize(
    "reply",
    [
        "10",
        "6",
        "-1",
        "4.5",
        "4,5",
        "４",
        "4/10",
        "four",
        "Score:",
        "Score: 4 because it is right",
        "Score: 4\nScore: 5",
        "<think>Score: 4",
        "<think>4</think>",
        "score" + " " * 100_000 + "x",
        '{"score": 4}',
    ],
)
def test_replies_that_are_no_score(reply):
    started = time.monotonic()
    with pytest.raises(JudgeError, match="from the judge, "):
        read_score(reply)
    assert time.monotonic() - started < 1


def test_the_rubric_that_comes_with_it():
    rubric = RUBRIC.read_text(encoding="utf-8")
    check_rubric(rubric)
    assert "Score: N" in rubric


@pytest.mark.parametrize(
    ("rubric", "what"),
    [
        ("", r"lacks \{question\}, \{answers\}, \{prediction\}"),
        ("{question} {answers}", r"lacks \{prediction\}\. Its"),
        ("{question} {answers} {prediction} {context}", r"has the unknown \{context\}"),
        ("{question} {reference} {prediction}", r"lacks \{answers\} and has the unknown \{reference\}"),
    ],
)
def test_rubrics_that_are_refused(rubric, what):
    with pytest.raises(ValueError, match=what):
        JudgeSettings(base_url="http://localhost/v1", model="m", rubric=rubric)


def test_a_rubric_of_ones_own():
    rubric = 'Reply {"score": 3} or {}. {question}|{answers}|{prediction}|{question}'
    check_rubric(rubric)
    filled = fill_rubric(rubric, Case("{answers}", ["\\1", "{prediction}"], "{question} {x}"))
    assert filled == 'Reply {"score": 3} or {}. {answers}|- \\1\n- {prediction}|{question} {x}|{answers}'


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"base_url": "localhost:8000/v1"}, "expected a base URL"),
        ({"base_url": "http://user:pw@host/v1"}, "holds a user name or password"),
        ({"base_url": "http://host/v1/chat/completions/"}, "must end before /chat/completions"),
        ({"model": ""}, "model name"),
        ({"api_key": "a\nb"}, "API key"),
        ({"api_key": "schlüssel"}, "API key"),
        ({"timeout_s": 0}, "timeout_s > 0"),
        ({"timeout_s": float("nan")}, "timeout_s > 0"),
        ({"concurrency": 0}, "concurrency >= 1"),
        ({"max_retries": -1}, "max_retries >= 0"),
    ],
)
def test_settings_that_are_refused(settings, what):
    with pytest.raises(ValueError, match=what) as caught:
        JudgeSettings(**{"base_url": "http://localhost/v1", "model": "m", **settings})
    assert "pw" not in str(caught.value)


def test_an_address_that_cannot_be_read():
    with pytest.raises(EvaluationError, match="cannot be read"):
        Judge(JudgeSettings(base_url="http://[::/v1", model="m"))


def test_the_environment(monkeypatch):
    for name in ("BASE_URL", "MODEL", "API_KEY"):
        monkeypatch.delenv(f"MSA_JUDGE_{name}", raising=False)
    with pytest.raises(ValueError, match="Set MSA_JUDGE_BASE_URL and MSA_JUDGE_MODEL"):
        JudgeSettings.from_environment()
    monkeypatch.setenv("MSA_JUDGE_BASE_URL", "http://host/v1")
    monkeypatch.setenv("MSA_JUDGE_MODEL", "from the environment")
    monkeypatch.setenv("MSA_JUDGE_API_KEY", f" {KEY}\n")
    settings = JudgeSettings.from_environment(model="mine", timeout_s=9.0)
    assert (settings.base_url, settings.model, settings.api_key) == ("http://host/v1", "mine", KEY)
    assert settings.timeout_s == 9.0
    assert KEY not in repr(settings) + json.dumps(settings.stamp())
    assert settings.stamp()["model"] == "mine"
    rubric = settings.rubric + "Be kind."
    assert JudgeSettings.from_environment(rubric=rubric).stamp()["rubric_sha256"] != settings.stamp()["rubric_sha256"]


def test_without_httpx(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(EvaluationError, match=r"httpx: pip install 'memory-sparse-attention\[eval\]'"):
        Judge(JudgeSettings(base_url="http://localhost/v1", model="m"))


def test_agreement_with_exact_match():
    assert agreement([5, 5, 0, 1], [1, 1, 0, 0]).kappa == 1.0
    assert agreement([5, 3], [1, 1], threshold=3).share == 1.0
    assert agreement([5, 5], [1, 1]) == Agreement(2, 1.0, None, None)
    for scores, exact in (([], []), ([1], [1, 0])):
        with pytest.raises(ValueError, match="two values for each"):
            agreement(scores, exact)
