"""A language model as judge: 0 to 5 points for an answer, over any OpenAI-compatible chat endpoint.

A judge that cannot be asked, or whose reply is not exactly a score, is a :class:`~msa.errors.JudgeError` and never a 0.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msa.errors import EvaluationError, JudgeError

# httpx is imported where a judge is made: it comes with the extra, and reading scores needs no network

logger = logging.getLogger(__name__)

RUBRIC = Path(__file__).with_name("rubric.md")
PLACEHOLDERS = ("question", "answers", "prediction")
MAX_SCORE = 5
MAX_UNANSWERED = 3  # answers in a row that the judge did not reply about, before no more are sent

_VARIABLES = {"base_url": "MSA_JUDGE_BASE_URL", "model": "MSA_JUDGE_MODEL", "api_key": "MSA_JUDGE_API_KEY"}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_SCORE = re.compile(r"\**(?:score\s*[:=]?)?\s*\**\s*([0-5])(?:\s*/\s*5)?\**\.?", re.IGNORECASE)
_RETRIED = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({401, 403, 404})  # of the key, the model or the URL: any other request would fare as badly
_MAX_REPLY_BYTES = 1_000_000
_MAX_WAIT_S = 60.0
_SHOWN_CHARS = 300
_MAX_SCORE_CHARS = 64


class JudgeUnavailableError(JudgeError):
    """A judge that gave no reply at all, or refuses whoever asks: the error is not about one answer.

    Attributes:
        is_final: whether the next request would fare no better.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


@dataclass(frozen=True)
class Judgement:
    """What the judge said of one answer.

    Attributes:
        score: 0 to 5.
        reply: the judge's words.
        attempts: requests it took.
    """

    score: int
    reply: str
    attempts: int


@dataclass(frozen=True)
class JudgeSettings:
    """Where the judge is and how it is asked.

    Attributes:
        base_url: of the API, such as ``https://api.openai.com/v1``; ``/chat/completions`` is added.
        model: the judge's name there.
        api_key: sent as bearer token; None: none is sent.
        rubric: the prompt, with ``{question}``, ``{answers}`` and ``{prediction}``.
        timeout_s: seconds one request may take from first to last byte.
        max_retries: further attempts after 408, 409, 425, 429, 5xx, a timeout or a failed connection.
        backoff_s: wait before the first of them; it doubles each time, up to a minute, unless the server names one.
        concurrency: requests under way at once.
        request: further fields of the request; some models take other names than these.

    Raises:
        ValueError: a number out of range, an address that is none, or a rubric without its placeholders.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    rubric: str = field(default_factory=lambda: RUBRIC.read_text(encoding="utf-8"), repr=False)
    timeout_s: float = 60.0
    max_retries: int = 4
    backoff_s: float = 1.0
    concurrency: int = 4
    request: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 512})

    def __post_init__(self) -> None:
        if "@" in self.base_url:  # it goes into results files and messages
            raise ValueError(f"the base URL holds a user name or password. Give the key as {_VARIABLES['api_key']}")
        if not re.match(r"https?://[^/\s]+", self.base_url):
            raise ValueError(f"expected a base URL such as https://api.openai.com/v1, found {self.base_url!r}")
        if self.base_url.rstrip("/").endswith("/chat/completions"):
            raise ValueError(f"the base URL {self.base_url!r} must end before /chat/completions, which is added")
        if not self.model:
            raise ValueError(f"expected the judge's model name, found none. Set it, or {_VARIABLES['model']}")
        if self.api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", self.api_key):
            raise ValueError("the judge's API key is empty or holds characters no key has. Check where it was copied")
        if not self.timeout_s > 0 or self.backoff_s < 0 or self.max_retries < 0 or self.concurrency < 1:
            raise ValueError(
                "expected timeout_s > 0, backoff_s >= 0, max_retries >= 0 and concurrency >= 1, found "
                f"{self.timeout_s}, {self.backoff_s}, {self.max_retries} and {self.concurrency}"
            )
        check_rubric(self.rubric)

    @classmethod
    def from_environment(cls, **settings: Any) -> JudgeSettings:
        """Settings from ``MSA_JUDGE_BASE_URL``, ``MSA_JUDGE_MODEL`` and ``MSA_JUDGE_API_KEY``; arguments come first.

        Raises:
            ValueError: neither an argument nor a variable names the address and the model, or a value is wrong.
        """
        for name, variable in _VARIABLES.items():
            value = os.environ.get(variable, "").strip()
            if settings.get(name) is None and value:
                settings[name] = value
        lacking = [_VARIABLES[name] for name in ("base_url", "model") if not settings.get(name)]
        if lacking:
            raise ValueError(f"the judge needs an address and a model. Set {' and '.join(lacking)}")
        return cls(**settings)

    def stamp(self) -> dict[str, Any]:
        """What decides the scores, for a results file; without the key."""
        return {
            "base_url": self.base_url,
            "model": self.model,
            "rubric_sha256": hashlib.sha256(self.rubric.encode()).hexdigest(),
            "request": dict(self.request),
        }


@dataclass(frozen=True)
class Case:
    """One answer to judge: the question, its reference answers, and what was answered."""

    question: str
    answers: Sequence[str]
    prediction: str


class Judge:
    """Asks for scores; close it, or use it in a ``with`` block.

    Args:
        settings: where the judge is and how it is asked.

    Raises:
        EvaluationError: httpx is not installed, or the address is none it can read.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        try:
            import httpx
        except ImportError as error:
            raise EvaluationError(
                "the judge needs the library httpx: pip install 'memory-sparse-attention[eval]'"
            ) from error
        self.settings = settings
        self._failures: tuple[type[Exception], ...] = (httpx.RequestError,)
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        try:
            httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise EvaluationError(f"the judge's base URL {settings.base_url!r} cannot be read: {error}") from error
        headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        limits = httpx.Limits(max_connections=settings.concurrency)
        timeout = httpx.Timeout(settings.timeout_s, pool=None)
        self._client = httpx.Client(headers=headers, limits=limits, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def score(self, case: Case) -> Judgement:
        """Judge one answer.

        Raises:
            JudgeUnavailableError: the judge could not be asked.
            JudgeError: it refused the request, or its reply is no score; the reply is named.
            ValueError: a case without a question or without reference answers.
        """
        return self._score(case, threading.Event())

    def _score(self, case: Case, stop: threading.Event) -> Judgement:
        if not case.question.strip() or not case.answers:
            raise ValueError("the judge needs a question and at least one reference answer to compare with")
        body = {
            **self.settings.request,
            "model": self.settings.model,
            "messages": [{"role": "user", "content": fill_rubric(self.settings.rubric, case)}],
        }
        text, attempts = self._ask(json.dumps(body).encode(), stop)
        reply = _message(text)
        return Judgement(read_score(reply), reply, attempts)

    def score_all(self, cases: Iterable[Case]) -> Iterator[tuple[int, Judgement | JudgeError]]:
        """Judge many answers, ``concurrency`` at once; each with its index, counted from 0, as soon as it is there.

        A failed case comes as its error and the others go on, unless the judge itself is gone: once
        :data:`MAX_UNANSWERED` cases in a row got no reply, or one was refused for its key, model or URL, no further
        one is sent. Stop iterating, and none is sent either; requests under way are waited for, and not repeated.

        Raises:
            JudgeUnavailableError: the judge is gone; all cases that were sent have come before.
            ValueError: a case without a question or without reference answers.
        """
        pending: dict[Future[Judgement], int] = {}
        watch = _Watch()
        with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="judge") as pool:
            try:
                for index, case in enumerate(cases):
                    pending[pool.submit(self._score, case, watch.stop)] = index
                    if len(pending) >= self.settings.concurrency:
                        yield from _finished(pending, watch)
                    if watch.stop.is_set():
                        break
                while pending:
                    yield from _finished(pending, watch)
            finally:
                watch.stop.set()
                for future in pending:
                    future.cancel()
        if watch.error is not None:
            raise watch.error

    def _ask(self, body: bytes, stop: threading.Event) -> tuple[str, int]:
        """The text of the response, and the number of requests it took; none is repeated once ``stop`` is set."""
        attempts = self.settings.max_retries + 1
        for attempt in range(1, attempts + 1):
            pause = min(self.settings.backoff_s * 2 ** (attempt - 1), _MAX_WAIT_S) * random.uniform(0.75, 1.0)
            try:
                status, text, named = self._send(body)
            except self._failures as error:
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if status == 200:
                    return text, attempt
                if self.settings.api_key:  # some servers repeat the key they refuse
                    text = text.replace(self.settings.api_key, "***")
                problem = f"HTTP {status}: {_shorten(text)}"
                if status not in _RETRIED and status < 500:
                    message = f"the judge at {self._url} refused the request ({problem}). Check URL, model, key"
                    raise JudgeUnavailableError(message, is_final=True) if status in _REFUSED else JudgeError(message)
                pause = named if named is not None else pause
            if attempt < attempts:
                logger.info("judge: attempt %d of %d failed (%s), next in %.1f s", attempt, attempts, problem, pause)
                if stop.wait(pause):
                    break
        raise JudgeUnavailableError(
            f"the judge at {self._url} did not answer in {attempt} attempts; the last: {problem}"
        )

    def _send(self, body: bytes) -> tuple[int, str, float | None]:
        """Status, text, and the seconds the server asks to wait."""
        import httpx

        started = time.monotonic()
        content = bytearray()
        headers = {"content-type": "application/json"}
        with self._client.stream("POST", self._url, content=body, headers=headers) as response:
            # the client's timeout is per read; this one ends a reply that comes byte by byte
            for piece in response.iter_bytes():
                content += piece
                if time.monotonic() - started > self.settings.timeout_s:
                    raise httpx.ReadTimeout(f"the reply was not complete after {self.settings.timeout_s:g} s")
                if len(content) > _MAX_REPLY_BYTES:
                    raise JudgeError(f"the judge at {self._url} sent over {_MAX_REPLY_BYTES:,} bytes. Check the URL")
            return response.status_code, content.decode("utf-8", "replace"), _wait_named(response.headers)


class _Watch:
    """Notices that the judge itself is gone, and has nothing more sent from then on."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.error: JudgeUnavailableError | None = None
        self._in_a_row = 0

    def see(self, error: BaseException | None) -> None:
        """What became of the next case."""
        if not isinstance(error, JudgeUnavailableError):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if error.is_final or self._in_a_row >= MAX_UNANSWERED:
            self.error = self.error or error
            self.stop.set()


def _finished(pending: dict[Future[Judgement], int], watch: _Watch) -> Iterator[tuple[int, Judgement | JudgeError]]:
    """Wait for at least one, and take out all that are done."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=pending.__getitem__):
        index = pending.pop(future)
        error = future.exception()
        if error is not None and not isinstance(error, JudgeError):
            raise error
        watch.see(error)
        yield index, error if error is not None else future.result()


def _wait_named(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:  # missing, or a date, which our own wait replaces
        return None
    return min(seconds, _MAX_WAIT_S) if seconds >= 0 else None


def _message(text: str) -> str:
    """What the judge wrote, out of the response's JSON."""
    try:
        choice = json.loads(text)["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise JudgeError(f"expected a chat completion from the judge, found: {_shorten(text)}") from error
    if reason == "length":
        what = f"the judge's reply was cut off by its token limit: {_shorten(str(content))}. Take a judge"
        raise JudgeError(f"{what} that says less, or raise max_tokens in JudgeSettings.request")
    if not isinstance(content, str):
        raise JudgeError(f"expected a text from the judge, found: {json.dumps(content)[:_SHOWN_CHARS]}")
    return content


def read_score(reply: str) -> int:
    """The score of a reply that is nothing but one, after the thoughts in ``<think>`` tags of some models.

    Raises:
        JudgeError: the reply is empty, prose, out of range or not a whole number; it is named.

    >>> read_score("Score: 4"), read_score("<think>hm, 3?</think>\\n2"), read_score("**5/5**")
    (4, 2, 5)
    """
    said = _THOUGHTS.sub("", reply).strip()
    match = _SCORE.fullmatch(said) if len(said) <= _MAX_SCORE_CHARS else None
    if not match:
        found = f"found: {_shorten(reply)}" if reply.strip() else "the reply is empty"
        raise JudgeError(f'expected "Score: N" with N from 0 to {MAX_SCORE} from the judge, {found}')
    return int(match[1])


def check_rubric(rubric: str) -> None:
    """Refuse a rubric that does not show the judge all it needs.

    Raises:
        ValueError: a placeholder is missing, or there is one that nothing fills.

    >>> check_rubric("Grade {prediction} against {answers}; the question was {question}. Reply: Score: N")
    """
    found = set(_PLACEHOLDER.findall(rubric))
    lacking = [f"{{{name}}}" for name in PLACEHOLDERS if name not in found]
    unknown = [f"{{{name}}}" for name in sorted(found - set(PLACEHOLDERS))]
    if lacking or unknown:
        problems = [f"lacks {', '.join(lacking)}"] if lacking else []
        problems += [f"has the unknown {', '.join(unknown)}"] if unknown else []
        wanted = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise ValueError(f"the rubric {' and '.join(problems)}. Its placeholders are {wanted}")


def fill_rubric(rubric: str, case: Case) -> str:
    """The prompt for one case; placeholders inside the filled texts stay as they are.

    >>> fill_rubric("{question}|{answers}|{prediction}", Case("q {prediction}", ["a", "b"], "p"))
    'q {prediction}|- a\\n- b|p'
    """
    answers = "\n".join(f"- {answer}" for answer in case.answers)
    texts = {"question": case.question, "answers": answers, "prediction": case.prediction}
    return _PLACEHOLDER.sub(lambda match: texts[match[1]], rubric)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return json.dumps(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…", ensure_ascii=False)
