"""What an operator sees of a failure that nobody expected: where it happened, and nothing of any text."""

import errno
import json
import logging
import sqlite3

import pytest
from serving_helpers import NEEDLE, QUESTION, error_of, process

from msa.cli.main import _messages
from msa.errors import BankCorruptError, BankError, ParallelError
from msa.memory import Memory
from msa.serving.errors import to_api_error
from msa.serving.failure_log import log_failure
from msa.serving.log_lines import JsonLines, log_line

SECRET = "the secret of page 7"


def fail(*_, **__):
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise RuntimeError(f"while reading {SECRET}") from error


def logged(caplog):
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("msa.serving")]
    return [
        line for line in map(json.loads, filter(lambda text: text.startswith("{"), lines)) if line["event"] == "error"
    ]


def test_a_search_that_fails_says_where(http, caplog, monkeypatch):
    monkeypatch.setattr(Memory, "search", fail)
    response = http.post("/v1/memories/known/search", json={"query": SECRET}, headers={"x-request-id": "mine"})
    assert error_of(response, 500, "internal_error")
    assert SECRET not in response.text
    (line,) = logged(caplog)
    assert (line["id"], line["message"]) == ("mine", "unexpected RuntimeError while answering a request")
    assert [cause["error"] for cause in line["errors"]] == ["RuntimeError", "KeyError"]
    assert any(frame.startswith("msa/serving/routes/memories.py:") for frame in line["errors"][0]["traceback"])
    assert line["errors"][0]["traceback"][-1].endswith(" in fail")
    assert SECRET not in caplog.text
    assert QUESTION not in caplog.text


@pytest.mark.parametrize("stream", [True, False])
def test_so_does_an_answer_that_fails_in_the_middle(http, caplog, monkeypatch, stream):
    told = Memory.steps

    def broken(self, question, **options):
        events = told(self, question, **options)
        yield next(events)
        fail()

    monkeypatch.setattr(Memory, "steps", broken)
    body = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}], "stream": stream}
    response = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine"})
    assert "internal_error" in response.text
    (line,) = logged(caplog)
    assert line["id"] == "mine"
    assert line["errors"][0]["traceback"][-1].endswith(" in fail")
    assert SECRET not in caplog.text + response.text


def test_an_operation_that_fails_is_named(http, memory, caplog, monkeypatch):
    monkeypatch.setattr(Memory, "add", fail)
    headers = {"content-type": "application/x-ndjson"}
    line = json.dumps({"text": NEEDLE}) + "\n"
    operation = http.post(f"{memory}/documents?wait=false", content=line, headers=headers).json()
    while http.get(f"/v1/operations/{operation['id']}").json()["status"] in ("queued", "running"):
        pass
    (line,) = logged(caplog)
    assert line["id"] == operation["id"]
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (BankCorruptError(f"document {SECRET!r} is damaged"), "memory_damaged", None),
        (BankError(f"document {SECRET!r} cannot be read"), "storage_error", None),
        (OSError(errno.ENOSPC, SECRET, f"/{SECRET}"), "storage_error", "No space left on device"),
        (ParallelError(SECRET), "rank_lost", None),
    ],
)
def test_a_failure_that_is_known_is_told_by_its_code(caplog, error, code, reason):
    def failing():
        raise error

    assert to_api_error(raised(failing)).code == code
    (line,) = logged(caplog)
    assert (line["code"], line["message"]) == (code, f"{type(error).__name__} while answering a request")
    assert line["errors"][0].get("reason") == reason
    assert line["errors"][0]["traceback"][-1].endswith(" in failing")
    assert SECRET not in caplog.text


def test_what_the_ledger_s_file_refuses_is_told_by_name(tmp_path, caplog):
    connection = sqlite3.connect(tmp_path / "x")
    connection.execute("CREATE TABLE t (v)")
    connection.execute("PRAGMA max_page_count=2")
    with pytest.raises(sqlite3.OperationalError) as full:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
    to_api_error(full.value)
    assert logged(caplog)[0]["errors"][0]["reason"] == "SQLITE_FULL"


def test_the_message_is_shown_where_somebody_debugs(caplog):
    with caplog.at_level(logging.DEBUG, "msa.serving"):
        to_api_error(raised(fail))
        assert SECRET in caplog.text
        caplog.clear()
        to_api_error(BankCorruptError(f"document {SECRET!r} is damaged"))
        assert SECRET in caplog.text


def test_lines_of_json_alone(capsys):
    """With ``--log-format json``; what is one already stays, and a traceback that is asked for is a line too."""
    handler, logger = JsonLines(), logging.Logger("msa.serving.x")
    logger.addHandler(handler)
    logger.info("serving %s", "here\nand there")
    logger.info("%s", log_line("request", id="mine"))
    log_failure(logger, "while trying", raised(fail))
    first, second, third, fourth = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["level"], first["message"]) == ("message", "info", "serving here\nand there")
    assert second == {"time": second["time"], "event": "request", "id": "mine"}
    assert (third["event"], fourth["level"]) == ("error", "error")
    assert fourth["traceback"][-1].startswith("RuntimeError")


def raised(function):
    try:
        function()
    except Exception as error:  # whatever it is, it is what is looked at
        return error
    raise AssertionError("it did not fail")


def test_a_broken_file_s_bytes_are_not_logged(tmp_path):
    """What reads PDFs quotes the document: the first bytes of one without a header, for instance."""
    with process(tmp_path / "root") as (_, http):
        http.put("/v1/memories/m", json={})
        for broken in (
            b"SECRET and no PDF",
            b"%PDF-1.4\nSECRET",
            b"%PDF-1.4\n1 0 obj\n<< /SECRET SECRET >>\nstartxref\n7\n%%EOF",
        ):
            files = [("file", ("x.pdf", broken, "application/pdf"))]
            error_of(http.post("/v1/memories/m/documents", files=files), 400, "invalid_document")
    log = (tmp_path / "log").read_text()
    assert log.count('"event": "request"') >= 4
    for word in ("SECRET", "SECRE", "pypdf", "pdf header", "EOF"):
        assert word not in log, log


def test_endless_recursion_is_one_line_that_can_be_read(caplog):
    def deeper():
        deeper()

    log_failure(logging.getLogger("msa.serving.x"), "in a test", raised(deeper))
    (line,) = logged(caplog)
    frames = line["errors"][0]["traceback"]
    assert len(frames) < 70
    assert frames[0].endswith("more)")
    assert frames[-1].endswith(" in deeper")


def test_a_failure_that_is_its_own_cause_ends(caplog):
    error = RuntimeError("a")
    error.__cause__ = other = ValueError("b")
    other.__cause__ = error
    log_failure(logging.getLogger("msa.serving.x"), "in a test", error)
    assert [cause["error"] for cause in logged(caplog)[0]["errors"]] == ["RuntimeError", "ValueError"]


def test_the_command_shows_the_traceback_of_a_record_that_has_one(capsys):
    with _messages(verbose=False):
        logging.getLogger("msa.serving").error("it failed", exc_info=raised(fail))
        logging.getLogger("msa.serving").error("it failed too", exc_info=True)  # there is none
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "it failed"
    assert f"| RuntimeError: while reading {SECRET}" in lines
    assert any(line.startswith("| File ") and line.endswith(" in fail") for line in lines)
    assert lines[-1] == "it failed too"
