"""``msa ask`` without a question: what was said stands before the next question, as it does in the server."""

import io
import json
import os
import pty
import subprocess
import sysconfig
from pathlib import Path

import pytest

import msa as package
from msa.serving.conversation import Turn, compose

QUICK = ("--max-new-tokens", "6", "--max-rounds", "1", "--retrieval", "routed")
COMMAND = str(Path(sysconfig.get_path("scripts")) / "msa")
FIRST, SECOND = "What is the moon?", "When was it opened?"


@pytest.fixture
def converse(msa, made_once, monkeypatch):
    """Ask questions one after another; returns the JSON answers, and the result of the command."""

    def run(*questions, options=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{question}\n" for question in questions)))
        result = msa("ask", made_once, *QUICK, "--json", *options)
        return [json.loads(line) for line in result.out.splitlines()], result

    return run


@pytest.fixture
def asked(monkeypatch):
    """What every question was asked with."""
    seen, stream = [], package.Memory.stream

    def noted(self, question, **options):
        seen.append((question, options["context"], options["routed_context_tokens"]))
        return stream(self, question, **options)

    monkeypatch.setattr(package.Memory, "stream", noted)
    return seen


@pytest.mark.parametrize("window", [0, 9])
def test_what_stands_before_a_question_is_what_the_server_puts_there(converse, asked, made_once, window):
    answers, result = converse(FIRST, SECOND, options=("--history", "300", "--routed-history", window))
    assert (result.code, result.err) == (0, "")
    with package.Memory.open(made_once, read_only=True) as memory:
        count = memory.model.protocol.plain_ids
        turns = [Turn("user", FIRST), Turn("assistant", answers[0]["answer"]), Turn("user", SECOND)]
        expected = compose(turns, 300, lambda text: len(count(text)), window)
        alone = memory.ask(SECOND, max_new_tokens=6, max_rounds=1, retrieval="routed")
    assert asked[:2] == [(FIRST, "", 0), (SECOND, expected.context, window)]
    assert f"User: {FIRST}" in expected.context
    assert answers[1]["usage"]["prompt_tokens"] > alone.usage.prompt_tokens, "the model reads it"
    scores = [source["score"] for source in answers[1]["sources"]]
    assert (scores == [hit.score for hit in alone.sources]) == (window == 0), "and it chooses as far as the option says"


def test_new_begins_afresh_and_an_answer_that_failed_is_not_remembered(converse, asked):
    long = "long" * 2000
    answers, result = converse(FIRST, long, SECOND, " New ", SECOND, options=("--history", "300"))
    assert [question for question, _, _ in asked] == [FIRST, long, SECOND, SECOND]
    contexts = [context for _, context, _ in asked]
    assert contexts[1] == contexts[2] != ""
    assert contexts[3] == ""
    assert [answer["question"] for answer in answers] == [FIRST, SECOND, SECOND]
    assert "type 'new' to begin a new conversation" in result.err
    assert result.code == 1


def test_a_long_conversation_loses_its_beginning_and_says_so(converse, asked):
    answers, _ = converse(*[f"{FIRST} {n}" for n in range(5)], options=("--history", "60"))
    assert f"{FIRST} 3" in asked[-1][1]
    assert f"{FIRST} 0" not in asked[-1][1]
    assert answers[0]["notes"] == []
    assert "left out" in answers[-1]["notes"][0]


def test_piped_questions_are_asked_each_alone_unless_told_otherwise(converse, asked):
    answers, _ = converse(FIRST, "new", SECOND)
    assert [answer["question"] for answer in answers] == [FIRST, "new", SECOND], "nothing to begin: a question"
    assert {context for _, context, _ in asked} == {""}


def test_no_conversation_with_a_question_on_the_command_line(msa, made_once):
    for option in ("--history", "--routed-history"):
        result = msa("ask", made_once, "Why?", option, "5")
        assert (result.code, result.out) == (2, "")
        assert "leave the QUESTION out" in result.err
    assert msa("ask", made_once, "--history", "-1").code == 2


def test_on_a_terminal_it_is_a_conversation(made_once):
    with package.Memory.open(made_once, read_only=True) as memory:
        alone = memory.ask(SECOND, max_new_tokens=6, max_rounds=1, retrieval="routed").usage.prompt_tokens
    ours, theirs = pty.openpty()
    command = [COMMAND, "ask", str(made_once), *QUICK, "--json"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        os.write(ours, f"{FIRST}\n{SECOND}\nnew\n{SECOND}\nexit\n".encode())
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # how Linux says that the other side is closed
            pass
        assert process.wait(120) == 0
        assert b"a new conversation" in process.stderr.read()
    os.close(ours)
    said = [int(number) for number in _values(shown.decode(), '"prompt_tokens": ')]
    assert len(said) == 3
    assert said[1] > alone == said[2]


def _values(text, name):
    return [piece.split(",")[0] for piece in text.split(name)[1:]]
