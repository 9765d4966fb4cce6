"""Operations without a server: calling off, standing aside, restarts after kills, full disks."""

import shutil
import sqlite3
import threading

import pytest
from serving_helpers import until

from msa.serving.job import QueueFullError, ShuttingDownError
from msa.serving.ledger import Ledger, TakenKey
from msa.serving.operations import Operations


class Session:
    """Operations of one process; each that runs waits until it is let go, and notes that it was begun."""

    def __init__(self, folder, *, begin=True, **options):
        self.folder, self.begun, self.let_go = folder, [], threading.Event()
        self.ledger = Ledger(folder)
        settings = {"resumable": frozenset({"add_documents"}), "max_unfinished": 10, **options}
        kinds = ("add_documents", "compact")
        self.operations = Operations(folder, self.ledger, dict.fromkeys(kinds, self._run), **settings)
        if begin:
            self.operations.begin()

    def _run(self, operation):
        self.begun.append(operation.id)
        while not self.let_go.wait(0.002):
            operation.check()
        return {"done": operation.id}

    def start(self, memory, kind="add_documents", **options):
        operation_id = self.operations.new_id()
        self.operations.folder_of(operation_id).mkdir()
        return self.operations.start(kind, memory, {"a": 1}, operation_id, **options)

    def running(self, *operations):
        """Wait until exactly these run."""
        ids = {operation.id for operation in operations}
        live = self.operations._live
        until(lambda: {key for key, one in [*live.items()] if one.state == "running" and key in self.begun} == ids)

    def stored(self, operation):
        return self.ledger.operation(operation.id)

    def close(self):
        self.operations.close(5)
        self.ledger.close()


@pytest.fixture
def session(tmp_path):
    """Begin a session in a folder, or go on after a kill with a copy of what was on disk at that moment."""
    opened = []

    def open_one(killed=None, **options):
        folder = tmp_path / f"state-{len(opened)}"
        if killed is not None:
            shutil.copytree(killed.folder, folder)
        opened.append(Session(folder, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def ended(operation):
    return operation.outcome.result(10).state


def test_one_that_waits_and_is_called_off_ends_at_once_and_for_good(session):
    first = session()
    runs, waits = first.start("m"), first.start("m")
    first.running(runs)
    first.operations.cancel(waits)
    assert (waits.state, ended(waits), first.operations.unfinished()) == ("cancelled", "cancelled", 1)
    assert first.stored(waits)["state"] == "cancelled"
    assert not first.operations.folder_of(waits.id).exists()
    first.operations.cancel(waits)
    again = session(killed=first)
    again.running(runs)
    assert again.operations.get(waits.id).state == "cancelled"


def test_one_that_runs_and_was_called_off_does_not_go_on_after_a_kill(session, monkeypatch):
    first = session()
    runs = first.start("m")
    first.running(runs)
    monkeypatch.setattr(type(runs), "check", lambda operation: None)  # no safe point comes
    first.operations.cancel(runs)
    again = session(killed=first)
    assert again.operations.get(runs.id).state == "cancelled"
    assert (again.operations.unfinished(), again.begun) == (0, [])
    assert not again.operations.folder_of(runs.id).exists()
    first.let_go.set()


def test_pages_of_them(session):
    one = session()
    made = [one.start(memory) for memory in ("a", "b", "a", "a")]
    assert one.operations.list(None, 2) == [made[3], made[2]]
    assert one.operations.list(None, 9, after=made[2].id) == [made[1], made[0]]
    assert one.operations.list(["a"], 9, after=made[3].id) == [made[2], made[0]]
    one.let_go.set()


def test_those_of_a_memory_that_is_held_go_on_when_it_is_released(session):
    here = session()
    runs, waits, other = here.start("m"), here.start("m"), here.start("n")
    here.running(runs, other)
    here.operations.hold("m")
    here.operations.hold("m")
    here.running(other)
    assert here.stored(runs)["state"] == "queued"
    here.operations.release("m")
    assert here.begun == [runs.id, other.id] or here.begun == [other.id, runs.id]
    here.operations.release("m")
    here.running(runs, other)
    assert runs.starts == 1, "having stood aside is no failure"
    here.let_go.set()
    assert [ended(one) for one in (runs, waits, other)] == ["succeeded"] * 3


def test_those_of_a_memory_that_was_deleted_are_called_off(session):
    here = session()
    runs, waits, other = here.start("m"), here.start("m"), here.start("n")
    here.running(runs, other)
    here.operations.hold("m")
    here.operations.cancel_all("m")
    here.operations.release("m")
    assert (ended(runs), ended(waits), other.state) == ("cancelled", "cancelled", "running")
    again = session(killed=here)
    again.running(other)
    assert again.begun == [other.id]


def test_what_ends_the_server_three_times_is_not_tried_again(session):
    now = session()
    bad = now.start("m")
    for _ in range(2):
        now.running(bad)
        now = session(killed=now)
    now.running(bad)
    now = session(killed=now)
    assert (now.operations.unfinished(), now.begun) == (0, [])
    error = now.operations.get(bad.id).error
    assert error["code"] == "interrupted"
    assert "ended 3 times" in error["message"]
    assert "smaller parts" in error["message"]
    assert not now.operations.folder_of(bad.id).exists()


def test_one_that_gets_on_is_taken_up_as_often_as_it_takes(session):
    now = session()
    large = now.start("m")
    for _ in range(5):
        now.running(large)
        now.operations.got_on(now.operations.get(large.id))
        now.operations.save(now.operations.get(large.id))
        now = session(killed=now)
    now.running(large)


def test_a_server_that_stops_in_order_counts_for_nothing(session):
    now = session()
    long = now.start("m")
    for _ in range(4):
        now.running(long)
        now.close()
        now = session(killed=now)
    now.running(long)


def test_those_that_saw_the_server_die_run_one_at_a_time_until_they_get_on(session):
    first = session()
    one, two, waits = first.start("a"), first.start("b"), first.start("a")
    first.running(one, two)
    second = session(killed=first)
    second.running(one)
    fresh = second.start("c")
    second.running(one, fresh)
    third = session(killed=second)
    third.running(two)
    assert third.begun == [two.id], "it saw the server die less often"
    third.operations.got_on(third.operations.get(two.id))
    third.running(two, fresh)
    third.operations.got_on(third.operations.get(fresh.id))
    third.running(one, two, fresh)
    assert waits.id not in third.begun, "nobody overtakes the one before him"


def test_what_another_memory_of_the_same_name_would_get_is_not_taken_up(session):
    first = session()
    gone, there = first.start("gone"), first.start("there")
    first.running(gone, there)
    again = session(killed=first, exists=lambda name: name == "there")
    again.running(there)
    found = again.operations.get(gone.id)
    assert (found.state, found.error["code"]) == ("failed", "memory_not_found")


def test_a_full_disk_holds_nothing_up(session, caplog):
    here = session()
    runs = here.start("m")
    here.running(runs)
    here.ledger._connection.execute("PRAGMA query_only=1")
    here.let_go.set()
    assert ended(runs) == "succeeded"
    assert here.operations.unfinished() == 0
    assert here.operations.get(runs.id).state == here.operations.list(["m"], 1)[0].state == "succeeded"
    assert '"code": "storage_error"' in caplog.text
    with pytest.raises(sqlite3.OperationalError):
        here.start("m")
    assert here.operations.unfinished() == 0
    here.ledger._connection.execute("PRAGMA query_only=0")
    assert ended(here.start("m")) == "succeeded"
    assert session(killed=here).operations.get(runs.id).state == "succeeded", "it was written with the next"


def test_what_was_received_keeps_its_place_until_it_is_an_operation(session):
    here = session(max_unfinished=2)
    with here.operations.receiving() as first:
        here.start("m")
        with pytest.raises(QueueFullError):
            here.start("m")
        with pytest.raises(QueueFullError), here.operations.receiving():
            pass
        here.operations.start("add_documents", "m", {}, first)
        assert here.operations.unfinished() == 2
        here.operations.cancel(here.operations.get(first))
        here.operations.check_room()
    here.start("m")
    with pytest.raises(QueueFullError):
        here.operations.check_room()


def test_a_place_that_was_kept_is_of_no_use_to_a_server_that_stops(session):
    here = session()
    with here.operations.receiving() as place:
        here.operations.stop()
        with pytest.raises(ShuttingDownError):
            here.operations.start("add_documents", "m", {}, place)
    assert here.operations.unfinished() == 0


def test_an_operation_is_noted_with_its_key_and_answers_for_it_after_a_kill(session):
    first = session()
    first.ledger.begin_key("me", "k", "m", "d")
    first.ledger.begin_key("me", "c", "m", "d")
    runs = first.start("m", key=TakenKey("me", "k"))
    first.start("m", "compact", key=TakenKey("me", "c"))
    again = session(killed=first)
    kept = again.ledger.begin_key("me", "k", "m", "d")
    assert (kept.status, f'"id": "{runs.id}"' in kept.body) == (202, True)
    assert again.ledger.begin_key("me", "c", "m", "d") is None, "one that was interrupted can be asked for again"
