"""What survives a restart."""

import sqlite3

import pytest

from msa.serving import ServingError
from msa.serving.ledger import FILE_NAME, KeptAnswer, Ledger, TakenKey


def operation(number, state="succeeded", memory="m"):
    return {
        "id": f"op{number}", "memory": memory, "kind": "add_documents", "state": state, "created": 1.0, "updated": 2.0,
        "request": {"a": 1}, "progress": {}, "result": None, "error": {"message": "x"}, "starts": 1,
    }  # fmt: skip


def test_keys_and_their_answers(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.begin_key("me", "k", "m", "d") is None
    assert ledger.begin_key("me", "k", "m", "other") == KeptAnswer("d", None, None)
    assert ledger.begin_key("you", "k", "m", "d") is None
    ledger.finish_key("me", "k", 200, "{}")
    ledger.close()
    ledger = Ledger(tmp_path)
    ledger.settle_keys()
    assert ledger.begin_key("me", "k", "m", "d") == KeptAnswer("d", 200, "{}")
    assert ledger.begin_key("you", "k", "m", "d") is None, "it was never answered"
    ledger.release_key("me", "k")
    assert ledger.begin_key("me", "k", "m", "d") is not None, "an answer is not taken back"
    ledger.forget_memory("m")
    assert ledger.begin_key("me", "k", "m", "d") is None
    assert ledger.begin_key("you", "k", "m", "d") is not None, "one that is being answered stays"
    ledger.close()


def test_only_the_newest_are_kept(tmp_path):
    ledger = Ledger(tmp_path, kept_keys=3, kept_operations=2)
    for number in range(30):
        assert ledger.begin_key("me", f"k{number}", "m", "d") is None
        ledger.finish_key("me", f"k{number}", 200, "{}")
        ledger.save_operation(operation(number, "running" if number == 4 else "succeeded"))
    kept = [number for number in range(29, -1, -1) if ledger.begin_key("me", f"k{number}", "m", "d") is not None]
    assert 29 in kept
    assert len(kept) <= 7
    assert ledger.operation("op4") is not None, "what is unfinished is never forgotten"
    assert ledger.operation("op29") is not None
    assert ledger.operation("op10") is None
    ledger.close()


def test_operations(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.save_operation(operation(1))
    ledger.save_operation(operation(2, "queued", "n"))
    ledger.save_operation(operation(1, "running"))
    assert ledger.operation("op1") == {**operation(1, "running"), "cancelled": 0}
    ledger.call_off("op1")
    ledger.save_operation(operation(1, "running"))
    assert ledger.operation("op1") == {**operation(1, "running"), "cancelled": 1}, "that it was is not overwritten"
    assert [fields["id"] for fields in ledger.unfinished_operations()] == ["op1", "op2"]
    assert [fields["id"] for fields in ledger.operations(None, 9)] == ["op2", "op1"]
    assert [fields["id"] for fields in ledger.operations(["m"], 9)] == ["op1"]
    assert ledger.operations([], 9) == []
    assert ledger.operation("'; DROP TABLE operations; --") is None
    ledger.close()


@pytest.mark.parametrize(
    ("state", "kept"),
    [("queued", True), ("running", True), ("succeeded", True), ("failed", False), ("cancelled", False)],
)
def test_a_key_whose_request_was_cut_off_is_answered_with_its_operation(tmp_path, state, kept):
    ledger = Ledger(tmp_path)
    assert ledger.begin_key("me", "k", "m", "d") is None
    ledger.accept_operation(operation(1, "queued"), TakenKey("me", "k"), '{"id": "op1"}')
    ledger.release_key("me", "k", accepted=False)
    assert ledger.begin_key("me", "k", "m", "d").status is None, "it is still being answered"
    ledger.save_operation(operation(1, state))
    ledger.close()
    ledger = Ledger(tmp_path)
    ledger.settle_keys()
    assert ledger.begin_key("me", "k", "m", "d") == (KeptAnswer("d", 202, '{"id": "op1"}') if kept else None)
    ledger.close()


def test_a_request_that_failed_after_its_operation_was_accepted_can_be_sent_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.begin_key("me", "k", "m", "d")
    ledger.accept_operation(operation(1, "failed"), TakenKey("me", "k"), "{}")
    ledger.release_key("me", "k")
    assert ledger.begin_key("me", "k", "m", "d") is None
    ledger.close()


def full(ledger, is_full=True):
    """Let there be no room for another page, or make room."""
    connection = ledger._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages if is_full else pages + 10_000}")


def test_what_is_over_and_cannot_be_written_is_told_all_the_same_and_written_later(tmp_path):
    large = "x" * 100_000
    ledger = Ledger(tmp_path)
    ledger.begin_key("me", "answered", "m", "d")
    ledger.save_operation(operation(1, "running"))
    full(ledger)
    ledger.finish_key("me", "answered", 200, large)
    ended = {**operation(1), "result": {"text": large}}
    ledger.end_operation(ended)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        ledger.save_operation(ended)
    assert ledger.begin_key("me", "answered", "m", "d") == KeptAnswer("d", 200, large)
    assert ledger.operation("op1") == ledger.operations(["m"], 1)[0] == {**ended, "cancelled": 0}
    full(ledger, is_full=False)
    ledger.begin_key("me", "another", "m", "d")
    ledger.close()
    ledger = Ledger(tmp_path)
    assert ledger.begin_key("me", "answered", "m", "d") == KeptAnswer("d", 200, large)
    assert ledger.operation("op1") == {**ended, "cancelled": 0}
    ledger.close()


def test_a_key_that_could_not_be_released_is_when_something_can_be_written_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.begin_key("me", "k", "m", "d")
    ledger._connection.execute("PRAGMA query_only=1")
    ledger.release_key("me", "k")
    ledger._connection.execute("PRAGMA query_only=0")
    assert ledger.begin_key("me", "k", "m", "d") is None
    ledger.close()


FORMAT_1 = """
CREATE TABLE keys (
    scope TEXT, key TEXT, memory TEXT, digest TEXT, status INTEGER, body TEXT, created REAL, PRIMARY KEY (scope, key)
);
CREATE INDEX keys_by_age ON keys (created);
CREATE TABLE operations (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, memory TEXT, kind TEXT, state TEXT, created REAL,
    updated REAL, request TEXT, progress TEXT, result TEXT, error TEXT
);
INSERT INTO keys VALUES ('me', 'k', 'm', 'd', 202, '{"id": "op1"}', 1.0), ('me', 'cut', 'm', 'd', NULL, NULL, 1.0);
INSERT INTO operations (id, memory, kind, state, created, updated, request, progress)
VALUES ('op1', 'm', 'add_documents', 'running', 1.0, 2.0, '{"a": 1}', '{}');
PRAGMA user_version=1;
"""


def test_a_file_of_the_first_format_goes_on(tmp_path):
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.executescript(FORMAT_1)
    connection.close()
    for _ in range(2):
        ledger = Ledger(tmp_path)
        ledger.settle_keys()
        (found,) = ledger.unfinished_operations()
        assert found == {**operation(1, "running"), "error": None, "starts": 0, "cancelled": 0}
        assert ledger.begin_key("me", "k", "m", "d") == KeptAnswer("d", 202, '{"id": "op1"}')
        assert ledger.begin_key("me", "cut", "m", "d") is None
        ledger.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_damaged_file_and_one_of_a_later_release(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"no database at all " * 100)
    with pytest.raises(ServingError, match=r"state\.sqlite cannot be used .* Move it away"):
        Ledger(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(ServingError, match="later release"):
        Ledger(tmp_path)
