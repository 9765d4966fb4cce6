"""The scheduler alone: no HTTP, no model."""

import threading
import time

import pytest
from serving_helpers import until

from msa.serving.scheduler import (
    CancelledJobError,
    DeadlineError,
    Lane,
    QueueFullError,
    Scheduler,
    ShuttingDownError,
)


@pytest.fixture
def scheduler():
    scheduler = Scheduler(max_waiting=2, max_waiting_writes=2, long_s=0)
    yield scheduler
    scheduler.abort()
    assert scheduler.join(5)


class Held:
    """A job that runs until it is let go."""

    def __init__(self, scheduler, lane=Lane.ASK, **options):
        self.begun, self.free = threading.Event(), threading.Event()
        self.job = scheduler.submit(self._work, lane, **options)
        assert self.begun.wait(5)

    def _work(self, job):
        self.begun.set()
        while not self.free.wait(0.002):
            if job.should_stop():
                raise job.stop_reason
        return "held"


def test_a_result_events_and_an_exception(scheduler):
    seen = []

    def work(job):
        job.emit(1)
        job.emit(2)
        return threading.current_thread().name

    assert scheduler.submit(work, on_event=seen.append).future.result(5) == "msa-worker"
    assert seen == [1, 2]
    with pytest.raises(ZeroDivisionError):
        scheduler.submit(lambda job: 1 / 0).future.result(5)
    assert scheduler.submit(lambda job: "alive").future.result(5) == "alive"


@pytest.mark.parametrize("error", [MemoryError, SystemExit, KeyboardInterrupt])
def test_nothing_that_a_job_raises_ends_the_worker(scheduler, error):
    def work(job):
        raise error("out of it")

    with pytest.raises(error):
        scheduler.submit(work).future.result(5)
    assert scheduler.accepts
    assert scheduler.submit(lambda job: 7).future.result(5) == 7


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(scheduler):
    held = Held(scheduler)
    waiting = [scheduler.submit(lambda job: None) for _ in range(2)]
    started = time.monotonic()
    with pytest.raises(QueueFullError, match="2 requests wait already") as refused:
        scheduler.submit(lambda job: None)
    assert time.monotonic() - started < 0.05
    assert 1 <= refused.value.retry_after_s <= 120
    assert scheduler.submit(lambda job: "other lane", Lane.WRITE)
    held.free.set()
    for job in waiting:
        job.future.result(5)


def test_cancelling_what_waits_frees_its_place(scheduler):
    held = Held(scheduler)
    first, second = (scheduler.submit(lambda job: None) for _ in range(2))
    scheduler.cancel(first)
    with pytest.raises(CancelledJobError):
        first.future.result(1)
    third = scheduler.submit(lambda job: "third")
    held.free.set()
    assert third.future.result(5) == "third"
    assert second.future.result(5) is None
    scheduler.cancel(third)  # too late: nothing happens
    assert third.future.result(5) == "third"


def test_what_runs_is_told_to_end(scheduler):
    held = Held(scheduler)
    scheduler.cancel(held.job)
    with pytest.raises(CancelledJobError):
        held.job.future.result(5)


def test_deadlines_of_what_runs_and_what_waits(scheduler):
    held = Held(scheduler, deadline=time.monotonic() + 0.05)
    late = scheduler.submit(lambda job: "too late", deadline=time.monotonic() + 0.01)
    for job in (held.job, late):
        with pytest.raises(DeadlineError):
            job.future.result(5)


def test_those_whose_time_is_up_keep_nobody_out(scheduler):
    held = Held(scheduler)
    late = [scheduler.submit(lambda job: None, deadline=time.monotonic() - 1) for _ in range(2)]
    assert scheduler.submit(lambda job: None)
    for job in late:
        with pytest.raises(DeadlineError):
            job.future.result(0)
    held.free.set()


def test_lanes_take_turns(scheduler):
    held = Held(scheduler)
    order = []
    jobs = [
        scheduler.submit(lambda job, lane=lane: order.append(lane), lane)
        for lane in (Lane.ASK, Lane.ASK, Lane.WRITE, Lane.WRITE)
    ]
    held.free.set()
    for job in jobs:
        job.future.result(5)
    assert order == [Lane.WRITE, Lane.ASK, Lane.WRITE, Lane.ASK]


def test_a_long_write_gives_way_and_goes_on(scheduler):
    order = []
    begun, asked = threading.Event(), threading.Event()

    def write(job):
        begun.set()
        assert asked.wait(5)
        for step in range(3):
            order.append(step)
            job.give_way()
        return "written"

    writing = scheduler.submit(write, Lane.WRITE)
    assert begun.wait(5)
    asking = [scheduler.submit(lambda job, n=n: order.append(f"answer {n}")) for n in range(2)]
    broken = scheduler.submit(lambda job: None, Lane.WRITE)
    asked.set()
    assert writing.future.result(5) == "written"
    assert order == [0, "answer 0", "answer 1", 1, 2]
    assert all(job.future.done() for job in asking)
    assert broken.future.result(5) is None


def test_a_short_write_does_not_wait_for_a_queue_of_questions():
    scheduler = Scheduler(max_waiting=2, max_waiting_writes=2, long_s=0.2)
    order = []
    asked = threading.Event()

    def write(job):
        assert asked.wait(5)
        for step in range(2):
            order.append(step)
            job.give_way()
        time.sleep(0.2)  # now it is a long one
        job.give_way()
        job.give_way()
        order.append("end")

    writing = scheduler.submit(write, Lane.WRITE)
    until(lambda: scheduler.running(Lane.WRITE) == 1)
    asking = [scheduler.submit(lambda job, n=n: order.append(f"answer {n}")) for n in range(2)]
    asked.set()
    writing.future.result(5)
    assert order == [0, 1, "answer 0", "answer 1", "end"]
    assert all(job.future.done() for job in asking)
    scheduler.abort()
    assert scheduler.join(5)


def test_a_cancelled_write_ends_at_its_safe_point(scheduler):
    begun, go = threading.Event(), threading.Event()

    def write(job):
        begun.set()
        assert go.wait(5)
        job.give_way()
        raise AssertionError("it went on")

    job = scheduler.submit(write, Lane.WRITE)
    assert begun.wait(5)
    scheduler.cancel(job)
    go.set()
    with pytest.raises(CancelledJobError):
        job.future.result(5)


def test_closing_lets_all_end_and_aborting_fails_them():
    scheduler = Scheduler(4, 4)
    held = Held(scheduler)
    waiting = scheduler.submit(lambda job: "done")
    scheduler.close()
    with pytest.raises(ShuttingDownError):
        scheduler.submit(lambda job: None)
    assert not scheduler.accepts
    held.free.set()
    assert scheduler.join(5)
    assert (held.job.future.result(0), waiting.future.result(0)) == ("held", "done")

    scheduler = Scheduler(4, 4)
    held, waiting = Held(scheduler), scheduler.submit(lambda job: None)
    scheduler.abort()
    assert scheduler.join(5)
    for job in (held.job, waiting):
        with pytest.raises(ShuttingDownError):
            job.future.result(0)


def test_aborting_does_not_wait_for_what_does_not_look():
    scheduler = Scheduler(4, 4)
    begun, free = threading.Event(), threading.Event()

    def deaf(job):
        begun.set()
        free.wait(10)
        return "late"

    job = scheduler.submit(deaf)
    assert begun.wait(5)
    scheduler.abort()
    with pytest.raises(ShuttingDownError):
        job.future.result(0)
    free.set()
    assert scheduler.join(5)


def test_counts(scheduler):
    held = Held(scheduler)
    scheduler.submit(lambda job: None)
    scheduler.submit(lambda job: None, Lane.WRITE)
    assert [scheduler.waiting(lane) for lane in Lane] == [1, 1]
    assert [scheduler.running(lane) for lane in Lane] == [1, 0]
    held.free.set()
