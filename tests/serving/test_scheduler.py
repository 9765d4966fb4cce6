"""The scheduler alone: no HTTP, no model."""

import threading
import time

import pytest
from serving_helpers import until

from msa.serving.job import CancelledJobError, DeadlineError, Lane, QueueFullError, ShuttingDownError
from msa.serving.scheduler import Scheduler


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


def test_a_place_is_kept_while_a_job_is_made_ready(scheduler):
    held, order = Held(scheduler), []
    with scheduler.place() as first, scheduler.place():
        with pytest.raises(QueueFullError):
            scheduler.check_room()
        with pytest.raises(QueueFullError), scheduler.place():
            pass
        with pytest.raises(QueueFullError):
            scheduler.submit(lambda job: order.append("came between"))
        kept = scheduler.submit(lambda job: order.append("kept"), place=first)
        with pytest.raises(QueueFullError):  # the second is still kept
            scheduler.check_room()
    last = scheduler.submit(lambda job: order.append("last"))  # nothing came of the second
    held.free.set()
    kept.future.result(5)
    last.future.result(5)
    assert order == ["kept", "last"]
    with scheduler.place(), pytest.raises(ZeroDivisionError), scheduler.place():
        raise ZeroDivisionError
    with scheduler.place(), scheduler.place(), scheduler.place(Lane.WRITE):  # all are free again
        pass


def test_a_kept_place_is_not_taken_back_by_a_write(scheduler):
    with scheduler.place() as a, scheduler.place() as b, scheduler.place() as c:  # one runs at once, two wait
        held = Held(scheduler, Lane.WRITE)
        jobs = [scheduler.submit(lambda job: "answered", place=place) for place in (a, b, c)]
    held.free.set()
    assert [job.future.result(5) for job in jobs] == ["answered"] * 3


def test_a_kept_place_goes_into_its_lane_and_nowhere_after_closing(scheduler):
    with scheduler.place(Lane.WRITE) as place:
        assert scheduler.submit(lambda job: job.lane, place=place).future.result(5) is Lane.WRITE
    with scheduler.place() as place:
        scheduler.close()
        with pytest.raises(ShuttingDownError):
            scheduler.submit(lambda job: None, place=place)


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


def test_short_writes_follow_each_other_until_they_are_a_long_one():
    """Turns of one write each would make every write wait for as many questions as there are writes before it."""
    scheduler = Scheduler(max_waiting=9, max_waiting_writes=9, long_s=0.3)
    order = []

    def noting(name, seconds=0.0):
        def work(job):
            order.append(name)
            time.sleep(seconds)

        return work

    held = Held(scheduler)
    jobs = [scheduler.submit(noting("ask")) for _ in range(2)]
    jobs += [scheduler.submit(noting("write"), Lane.WRITE) for _ in range(3)]
    jobs += [scheduler.submit(noting("slow", 0.3), Lane.WRITE), scheduler.submit(noting("late"), Lane.WRITE)]
    held.free.set()
    for job in jobs:
        job.future.result(5)
    assert order == ["write", "write", "write", "slow", "ask", "late", "ask"]
    end(scheduler)


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


class Baton:
    """What ``advance`` of a scheduler is given: it does one thing a turn for each that waits, but for some at a time."""

    def __init__(self, places=9):
        self.places, self.turns, self.error = places, [], None

    def __call__(self, things):
        self.turns.append(list(things))
        if self.error and len(things) > 1:
            error, self.error = self.error, None
            raise error
        return things[: self.places]


def counting(name, steps, seen=None):
    """A question that waits ``steps`` times; what it waits for has its name."""

    def work(job):
        for step in range(steps):
            if job.stop_reason is not None:
                raise job.stop_reason
            if seen is not None:
                seen.append((name, step))
            yield f"{name}{step}"
        return name

    return work


def side_by_side(baton, max_concurrent=3, begin_s=0.0, **options):
    """Of which one question begins a turn, unless ``begin_s`` says otherwise."""
    return Scheduler(8, 8, long_s=0, max_concurrent=max_concurrent, advance=baton, begin_s=begin_s, **options)


def ask_together(scheduler, works, lane=Lane.ASK):
    """Submit all before the first begins."""
    held = Held(scheduler, Lane.WRITE)
    jobs = [scheduler.submit(work, lane) for work in works]
    held.free.set()
    return jobs


def end(scheduler):
    scheduler.close()
    assert scheduler.join(5)


def test_questions_run_side_by_side_each_beginning_and_ending_at_its_own_time():
    baton = Baton()
    scheduler = side_by_side(baton)
    jobs = ask_together(scheduler, [counting("a", 3), counting("b", 1), counting("c", 2), counting("d", 2)])
    assert [job.future.result(5) for job in jobs] == ["a", "b", "c", "d"]
    # one begins a turn, so that those that run do not wait for many
    # in the end there is nothing to do, which is said once
    assert baton.turns == [["a0"], ["a1", "b0"], ["a2", "c0"], ["c1", "d0"], ["d1"], []]
    assert scheduler.running(Lane.ASK) == 0
    end(scheduler)


def test_those_that_come_together_begin_together_as_long_as_others_may_wait_for_it():
    baton = Baton()
    scheduler = side_by_side(baton, begin_s=60)
    jobs = ask_together(scheduler, [counting("a", 3), counting("b", 1), counting("c", 2), counting("d", 2)])
    assert [job.future.result(5) for job in jobs] == ["a", "b", "c", "d"]
    assert baton.turns == [["a0", "b0", "c0"], ["a1", "c1", "d0"], ["a2", "d1"], []]
    end(scheduler)


def test_what_has_been_done_is_told_before_others_begin():
    baton, order = Baton(), []

    def noting(name):
        def work(job):
            order.append(f"{name} begins")
            yield name
            order.append(f"{name} goes on")

        return work

    scheduler = side_by_side(baton, max_concurrent=2)
    for job in ask_together(scheduler, [noting("a"), noting("b")]):
        job.future.result(5)
    assert order == ["a begins", "a goes on", "b begins", "b goes on"]
    end(scheduler)


def test_no_more_begin_together_than_there_is_room_for():
    baton, seats = Baton(places=2), Baton(places=2)
    scheduler = side_by_side(baton, max_concurrent=4, begin_s=60, seat=seats)
    jobs = ask_together(scheduler, [counting(name, 2) for name in "abcd"])
    assert [job.future.result(5) for job in jobs] == list("abcd")
    assert seats.turns[:3] == [["a0"], ["a0", "b0"], ["a0", "b0", "c0"]]  # and the fourth did not begin
    assert baton.turns[0] == ["a0", "b0", "c0"]
    end(scheduler)


def test_a_seat_that_cannot_be_made_costs_the_youngest_question_alone():
    baton, seats = Baton(), Baton()
    seats.error = MemoryError("no room")
    scheduler = side_by_side(baton, begin_s=60, seat=seats)
    first, second, third = ask_together(scheduler, [counting("a", 2), counting("b", 2), counting("c", 2)])
    with pytest.raises(MemoryError, match="no room"):
        second.future.result(5)
    assert (first.future.result(5), third.future.result(5)) == ("a", "c")
    assert baton.turns == [["a0", "c0"], ["a1", "c1"], []]
    end(scheduler)


def test_no_more_run_than_may():
    baton = Baton()
    scheduler = side_by_side(baton, max_concurrent=2)
    jobs = ask_together(scheduler, [counting(name, 3) for name in "abcde"])
    assert [job.future.result(5) for job in jobs] == list("abcde")
    assert max(map(len, baton.turns)) == 2
    end(scheduler)


def test_with_one_at_a_time_a_question_ends_before_the_next_begins():
    baton, seen = Baton(), []
    scheduler = side_by_side(baton, max_concurrent=1)
    jobs = ask_together(scheduler, [counting(name, 2, seen) for name in "ab"])
    assert [job.future.result(5) for job in jobs] == ["a", "b"]
    assert seen == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    end(scheduler)


def test_where_there_is_no_room_questions_wait_and_none_begins():
    baton = Baton(places=2)
    scheduler = side_by_side(baton, max_concurrent=4)
    jobs = ask_together(scheduler, [counting(name, 4) for name in "abcd"])
    assert [job.future.result(5) for job in jobs] == list("abcd")
    assert max(map(len, baton.turns)) == 3  # the third found no room, so the fourth did not begin
    assert ["a3", "b2", "c0"] in baton.turns
    end(scheduler)


def test_one_that_waits_for_room_can_be_cancelled():
    baton = Baton(places=1)
    scheduler = side_by_side(baton, max_concurrent=2)
    go = threading.Event()

    def endless(job):
        while not go.wait(0.001):
            yield "x"
        return "ended"

    first, second = ask_together(scheduler, [endless, counting("b", 2)])
    until(lambda: ["x", "b0"] in baton.turns)
    scheduler.cancel(second)
    with pytest.raises(CancelledJobError):
        second.future.result(5)
    assert not first.future.done()
    go.set()
    assert first.future.result(5) == "ended"
    end(scheduler)


def test_a_failing_pass_costs_the_youngest_question_alone():
    baton, closed = Baton(), []
    baton.error = MemoryError("no room")

    def careful(job):
        try:
            yield "b0"
        finally:
            closed.append(True)

    scheduler = side_by_side(baton)
    first, second = ask_together(scheduler, [counting("a", 3), careful])
    with pytest.raises(MemoryError, match="no room"):
        second.future.result(5)
    assert first.future.result(5) == "a"
    assert closed == [True]
    assert baton.turns.count(["a1"]) == 1  # done again without the other
    end(scheduler)


def test_a_question_that_raises_leaves_the_others_alone():
    def raises(job):
        yield "b0"
        raise ZeroDivisionError

    scheduler = side_by_side(Baton())
    first, second = ask_together(scheduler, [counting("a", 5), raises])
    with pytest.raises(ZeroDivisionError):
        second.future.result(5)
    assert first.future.result(5) == "a"
    end(scheduler)


def test_a_write_gets_its_turn_however_many_questions_come():
    scheduler, order = side_by_side(Baton(), max_concurrent=2), []

    def noting(name, steps):
        def work(job):
            yield from (f"{name}{step}" for step in range(steps))
            order.append(name)

        return work

    held = Held(scheduler)
    jobs = [scheduler.submit(noting(name, 5)) for name in "abcd"]
    jobs.append(scheduler.submit(lambda job: order.append("write"), Lane.WRITE))
    jobs.append(scheduler.submit(lambda job: order.append("second write"), Lane.WRITE))
    held.free.set()
    for job in jobs:
        job.future.result(5)
    # two may run: so many are answered between two writes
    assert order == ["write", "a", "b", "second write", "c", "d"]
    end(scheduler)


def test_a_long_write_gives_way_to_questions_side_by_side():
    baton, order = Baton(), []
    scheduler = side_by_side(baton, max_concurrent=2)
    asked = threading.Event()

    def write(job):
        assert asked.wait(5)
        job.give_way()
        order.append([job.future.done() for job in asking])

    writing = scheduler.submit(write, Lane.WRITE)
    until(lambda: scheduler.running(Lane.WRITE) == 1)
    asking = [scheduler.submit(counting(name, 2)) for name in "abc"]
    asked.set()
    writing.future.result(5)
    assert order == [[True, True, True]]
    assert max(map(len, baton.turns)) == 2
    end(scheduler)


def test_short_jobs_go_between_two_steps():
    go = threading.Event()

    def endless(job):
        while not go.wait(0.001):
            yield "x"

    scheduler = side_by_side(Baton(), max_concurrent=2)
    running = scheduler.submit(endless)
    assert scheduler.submit(lambda job: "found").future.result(5) == "found"
    assert not running.future.done()
    go.set()
    assert running.future.result(5) is None
    end(scheduler)


def test_the_queue_is_full_only_once_all_places_are_taken():
    free = threading.Event()

    def work(job):
        while not free.wait(0.001):
            yield "x"

    scheduler = Scheduler(1, 1, max_concurrent=3, advance=Baton())
    jobs = [scheduler.submit(work) for _ in range(4)]
    until(lambda: scheduler.running(Lane.ASK) == 3)
    with pytest.raises(QueueFullError, match="1 requests wait already"):
        scheduler.submit(work)
    free.set()
    for job in jobs:
        job.future.result(5)
    end(scheduler)


def test_aborting_ends_those_side_by_side():
    def work(job):
        while job.stop_reason is None:
            yield "x"
        raise job.stop_reason

    scheduler = side_by_side(Baton())
    jobs = [scheduler.submit(work) for _ in range(2)]
    until(lambda: scheduler.running(Lane.ASK) == 2)
    scheduler.abort()
    assert scheduler.join(5)
    for job in jobs:
        with pytest.raises(ShuttingDownError):
            job.future.result(0)


def test_deadlines_of_those_side_by_side():
    def work(job):
        while job.stop_reason is None:
            yield "x"
        raise job.stop_reason

    scheduler = side_by_side(Baton())
    late = scheduler.submit(work, deadline=time.monotonic() + 0.05)
    fine = scheduler.submit(counting("a", 500))
    with pytest.raises(DeadlineError):
        late.future.result(5)
    assert fine.future.result(5) == "a"
    end(scheduler)
