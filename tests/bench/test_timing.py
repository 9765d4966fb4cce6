import time

import torch

from msa.bench.floors import in_cache, reading, seconds_per_operation
from msa.bench.timing import alternated, peak_mib, reset_peak, seconds_of, timed


def test_works_take_turns():
    calls = []
    rounds = alternated({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b", "a", "b"]
    assert {name: len(seconds) for name, seconds in rounds.items()} == {"a": 2, "b": 2}


def test_the_clock_is_the_given_one():
    ticks = iter([1.0, 4.0])
    assert seconds_of(lambda: None, lambda: next(ticks)) == 3.0


def test_the_first_call_does_not_count():
    calls = []

    def slow_at_first():
        calls.append(0)
        if len(calls) == 1:
            time.sleep(0.2)

    found = timed(slow_at_first, 3)
    assert len(calls) == 4
    assert found["best"] <= found["median"] < 0.2


def test_peak_is_what_was_added():
    start = reset_peak()
    torch.ones(64 * 2**20, dtype=torch.uint8)  # gone at once: so much is never kept for later
    assert 60 < peak_mib() - start < 100
    assert reset_peak() < start + 30


def test_reading_reads_all_but_the_last_odd_bytes():
    ones = torch.ones(19, dtype=torch.int8)
    assert int(reading(ones)()) == 2 * int.from_bytes(bytes([1] * 8), "little")
    assert int(reading(torch.tensor([[3], [4]]))()) == 7
    assert int(reading(torch.ones(3, dtype=torch.int8))()) == 0


def test_products_in_cache_cover_all_chunks(monkeypatch):
    seen = []
    monkeypatch.setattr("msa.bench.floors.on_threads", lambda work, turns, threads: seen.append(len(turns)))
    in_cache(torch.bfloat16, 2, 1024, 1300)()  # 512 keys fit
    in_cache(torch.bfloat16, 2, 1024, 5)()
    assert seen == [3, 1]


def test_products_in_cache_run():
    assert in_cache(torch.int8, 8, 64, 40000)() == []


def test_seconds_of_an_operation():
    found = seconds_per_operation(torch.float32)
    assert 1e-15 < found["best"] <= found["median"] < 1e-7
