"""A lock for each name, and nothing left of names that nobody uses."""

import threading

from serving_helpers import until

from msa.serving.named_locks import NamedLocks


def test_one_holds_a_name_at_a_time_and_other_names_are_free():
    locks, held, got = NamedLocks(), threading.Event(), []

    def hold(name):
        with locks.holding(name):
            got.append(name)
            held.wait(10)

    threads = [threading.Thread(target=hold, args=(name,), daemon=True) for name in ("a", "a", "b")]
    for thread in threads:
        thread.start()
    until(lambda: len(got) == 2 and locks._users["a"] == 2)
    assert sorted(got) == ["a", "b"]
    held.set()
    for thread in threads:
        thread.join(10)
    assert sorted(got) == ["a", "a", "b"]
    assert len(locks) == 0


def test_a_failure_lets_go():
    locks = NamedLocks()
    try:
        with locks.holding("a"):
            raise KeyError("a")
    except KeyError:
        pass
    assert len(locks) == 0
    with locks.holding("a"):
        assert len(locks) == 1
