"""What survives a restart."""

import sqlite3

import pytest

from msa.serving import ServingError
from msa.serving.ledger import FILE_NAME, KeptAnswer, Ledger


def operation(number, state="succeeded", memory="m"):
    return {
        "id": f"op{number}", "memory": memory, "kind": "add_documents", "state": state, "created": 1.0, "updated": 2.0,
        "request": {"a": 1}, "progress": {}, "result": None, "error": {"message": "x"},
    }  # fmt: skip


def test_keys_and_their_answers(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.begin_key("me", "k", "m", "d") is None
    assert ledger.begin_key("me", "k", "m", "other") == KeptAnswer("d", None, None)
    assert ledger.begin_key("you", "k", "m", "d") is None
    ledger.finish_key("me", "k", 200, "{}")
    ledger.close()
    ledger = Ledger(tmp_path)
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
    assert ledger.operation("op1") == operation(1, "running")
    assert [fields["id"] for fields in ledger.unfinished_operations()] == ["op1", "op2"]
    assert [fields["id"] for fields in ledger.operations(None, 9)] == ["op2", "op1"]
    assert [fields["id"] for fields in ledger.operations(["m"], 9)] == ["op1"]
    assert ledger.operations([], 9) == []
    assert ledger.operation("'; DROP TABLE operations; --") is None
    ledger.close()


def test_a_damaged_file_and_one_of_a_later_release(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"no database at all " * 100)
    with pytest.raises(ServingError, match=r"state\.sqlite cannot be used .* Move it away"):
        Ledger(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(ServingError, match="later release"):
        Ledger(tmp_path)
