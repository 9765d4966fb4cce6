"""Who may use the model when: one worker thread, two bounded queues, deadlines and cancellation.

A network must not be entered by two threads at a time, so everything that runs it is a job of this scheduler. Jobs
that answer (``ASK``) wait in one queue, jobs that change a memory (``WRITE``) in another; the worker takes turns. A
long write gives way at its own safe points (:meth:`Job.give_way`): the questions that wait then are answered first. A
short one does not: if each waited for a full queue of questions, none of them would end under load. For the same reason
short ones that wait follow each other, until together they have held the model for as long.

Several jobs that answer can run side by side in that thread: those that are iterators of what they wait for. The worker
brings each of them to its next wait, and has all waits ended together. While a write waits, no question begins but
those that waited when the running ones began, so that the write's turn comes.

This module knows nothing of HTTP, models or memories.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import InvalidStateError
from typing import Any

from msa.errors import MSAError
from msa.serving.job import CancelledJobError, Job, Lane, QueueFullError, ShuttingDownError

logger = logging.getLogger(__name__)

_FIRST_GUESS_S = 1.0  # service time before any job has ended
_SMOOTHING = 0.2
_LONGEST_RETRY_S = 120.0
_BEGIN_S = 0.1
_LONG_S = 0.5  # a write that has held the model for so long is a long one


class Place:
    """A place in a queue, kept for a job that is being made ready; see :meth:`Scheduler.place`."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.kept = True


class Scheduler:
    """One worker thread and its two queues.

    Args:
        max_waiting: questions that may wait, besides those that run.
        max_waiting_writes: writes that may wait.
        name: of the thread.
        long_s: seconds that a write, or several after each other, may hold the model before they give way.
        max_concurrent: questions that may run side by side.
        advance: does what running questions wait for, the longest running first, and returns those things that it has
            done (not all, if there is no room for so many). When it fails, the youngest question fails by its error.
            None: nothing needs to be done.
        seat: makes room for what running questions wait for, and returns those things that ``advance`` would do now;
            it fails as ``advance`` does. None: there is always room.
        begin_s: seconds of beginning questions after which those that run go on: a question begins if there were
            fewer. So many that come together are soon side by side, and streams do not wait for all of them.
    """

    def __init__(
        self,
        max_waiting: int,
        max_waiting_writes: int,
        name: str = "msa-worker",
        long_s: float = _LONG_S,
        *,
        max_concurrent: int = 1,
        advance: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
        seat: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
        begin_s: float = _BEGIN_S,
    ) -> None:
        self._limits = {Lane.ASK: max_waiting, Lane.WRITE: max_waiting_writes}
        self._queues: dict[Lane, deque[Job]] = {lane: deque() for lane in Lane}
        self._kept = dict.fromkeys(Lane, 0)  # places in the queues, for jobs that are not there yet
        self._running: list[Job] = []  # a write that gives way stays below the question that runs
        self._long_s = long_s
        self._max_concurrent = max_concurrent
        self._advance, self._seat = advance or (lambda things: things), seat or (lambda things: things)
        self._begin_s = begin_s
        self._open: list[Job] = []  # those side by side, the longest running first
        self._crowded = self._advanced = False  # some of them wait for room; the last pass was for somebody
        self._may_follow = 0  # questions that may still begin although a write waits
        self._service_s = dict.fromkeys(Lane, _FIRST_GUESS_S)
        self._wake = threading.Condition()
        self._closed = False
        self._last = Lane.WRITE
        self._turn_began = -float("inf")  # of the lane that had the last one
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        work: Callable[[Job], Any],
        lane: Lane = Lane.ASK,
        *,
        deadline: float | None = None,
        on_event: Callable[[Any], None] | None = None,
        place: Place | None = None,
    ) -> Job:
        """Queue a piece of work; arguments as for :class:`Job`.

        Args:
            place: one that was kept for it, in whose lane it goes: then it is not refused for want of room.

        Raises:
            QueueFullError: too many wait already.
            ShuttingDownError: no more jobs are taken.
        """
        job = Job(work, lane if place is None else place.lane, deadline, on_event)
        with self._wake:
            if place is None:
                self.check_room(lane)
            else:
                self._check_open()
                self._give_up(place)
            self._queues[job.lane].append(job)
            self._wake.notify()
        return job

    def check_room(self, lane: Lane = Lane.ASK) -> None:
        """Before much is done for a request: make sure that a job would be taken now.

        Raises:
            QueueFullError, ShuttingDownError: as for :meth:`submit`.
        """
        with self._wake:
            self._check_open()
            queue = self._queues[lane]
            # those that nobody waits for any more must not keep others out
            for late in [waiting for waiting in queue if waiting.should_stop()]:
                self._drop(late)
            if len(queue) + self._kept[lane] >= self._limits[lane] + self._free_places(lane):
                raise QueueFullError(
                    f"{len(queue)} requests wait already, as many as may; try again later", self.retry_after_s(lane)
                )

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDownError("the server is shutting down; try again in a moment")

    @contextlib.contextmanager
    def place(self, lane: Lane = Lane.ASK) -> Iterator[Place]:
        """Keep a place in a queue, to :meth:`submit` with, while a job is being made ready.

        Who is refused is refused at once, before anything is done for the job, and not after it.

        Raises:
            QueueFullError, ShuttingDownError: as for :meth:`submit`.
        """
        with self._wake:
            self.check_room(lane)
            self._kept[lane] += 1
        place = Place(lane)
        try:
            yield place
        finally:
            with self._wake:
                self._give_up(place)

    def _give_up(self, place: Place) -> None:
        self._kept[place.lane] -= place.kept
        place.kept = False

    def _free_places(self, lane: Lane) -> int:
        """Jobs in this lane's queue that will not wait: the worker takes them at once."""
        if lane is Lane.ASK and not self._queues[Lane.WRITE] and not self.running(Lane.WRITE):
            return max(0, self._max_concurrent - len(self._running))
        return int(not self._running and not any(self._queues.values()))

    def cancel(self, job: Job, reason: MSAError | None = None) -> None:
        """End a job: one that waits at once, one that runs as soon as it looks."""
        reason = reason or CancelledJobError("nobody waits for this any more")
        with self._wake:
            if job in self._queues[job.lane]:
                job._stop = job._stop or reason
                self._drop(job)
            elif not job.future.done():
                job._stop = job._stop or reason

    def _drop(self, job: Job) -> None:
        self._queues[job.lane].remove(job)
        job.ended = time.monotonic()
        job.future.set_exception(job.stop_reason or CancelledJobError("the job was dropped"))

    def waiting(self, lane: Lane) -> int:
        """Jobs that wait in a queue."""
        return len(self._queues[lane])

    def running(self, lane: Lane) -> int:
        """Jobs of a lane that have begun and not ended."""
        return sum(job.lane is lane for job in [*self._running])

    def retry_after_s(self, lane: Lane) -> float:
        """Seconds after which a place in the queue should be free."""
        return min(max(1.0, self._service_s[lane] / max(1, self.running(lane))), _LONGEST_RETRY_S)

    @property
    def accepts(self) -> bool:
        """Whether jobs are taken and worked on."""
        return not self._closed and self._thread.is_alive()

    def close(self) -> None:
        """Take no more jobs; those there are go on."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def abort(self) -> None:
        """Fail all that wait and all that run; what runs ends as soon as it looks."""
        self.close()
        with self._wake:
            jobs = [job for queue in self._queues.values() for job in queue] + self._running
        for job in jobs:
            reason = ShuttingDownError("the server was stopped before this was finished; try again")
            self.cancel(job, reason)
            with contextlib.suppress(InvalidStateError):
                job.future.set_exception(reason)

    def join(self, timeout_s: float) -> bool:
        """Wait until every job has ended and the thread is gone; False if that takes longer."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not any(self._queues.values()) and not self._open:
                    if self._closed:
                        return
                    self._wake.wait()
            self._resume_open()
            self._begin(self._take_next)
            self._advance_open()

    def _begin(self, take: Callable[[], Job | None]) -> None:
        """Begin jobs, and bring each to what it waits for first, as long as those that run may wait for this."""
        began = time.monotonic()
        while True:
            with self._wake:
                job = take()
            if job is None:
                return
            self._run(job)
            if job in self._open:
                self._resume(job)
                self._do_together(self._seat)
            if not self._open or time.monotonic() - began >= self._begin_s:
                return

    def _take_next(self) -> Job | None:
        """The job that begins now; None: those that run go on first."""
        asking, writing = self._queues[Lane.ASK], self._queues[Lane.WRITE]
        if not asking and not writing:
            return None
        if self._open:
            if not asking or not self._has_room() or (writing and not self._may_follow):
                return None
            self._may_follow -= 1
            lane = Lane.ASK
        else:
            lane = self._next_lane()
            if lane is not self._last:
                self._turn_began = time.monotonic()
            self._may_follow = min(len(asking), self._max_concurrent) - 1
        job = self._queues[lane].popleft()
        self._last = lane
        self._running.append(job)
        return job

    def _next_lane(self) -> Lane:
        """Lanes take turns; short writes follow each other until together they have been a long one."""
        other = Lane.WRITE if self._last is Lane.ASK else Lane.ASK
        stays = self._last is Lane.WRITE and time.monotonic() - self._turn_began < self._long_s
        return self._last if self._queues[self._last] and (stays or not self._queues[other]) else other

    def _has_room(self) -> bool:
        return len(self._open) < self._max_concurrent and not self._crowded

    def _run(self, job: Job) -> None:
        """Run a job to its end; one that is a generator is only opened."""
        job.started = time.monotonic()
        if job.lane is Lane.WRITE:
            job._between, job._held_since = self._answer_waiting, job.started
        try:
            if job.stop_reason is not None:
                raise job.stop_reason
            result = job._work(job)
        # the worker must outlive whatever a job raises; the one who waits for it is told
        except BaseException as error:
            self._fail(job, error)
        else:
            if isinstance(result, Generator):
                job._steps = result
                self._open.append(job)
            else:
                self._succeed(job, result)

    def _resume_open(self) -> None:
        """Bring every open question to what it waits for next."""
        for job in [*self._open]:
            # one that should end early does not wait for room
            if job._waits_for is None or job.stop_reason is not None:
                self._resume(job)

    def _advance_open(self) -> None:
        """Do what the open questions wait for, all of it together."""
        waiting = [job for job in self._open if job._waits_for is not None]
        if not waiting and not self._advanced:
            return
        self._advanced = bool(waiting)  # that nothing waits any more is said once, so that nothing is kept for it
        done = self._do_together(self._advance)
        for job in waiting:
            if any(job._waits_for is thing for thing in done):
                job._waits_for = None

    def _do_together(self, do: Callable[[Sequence[Any]], Sequence[Any]]) -> Sequence[Any]:
        """Hand over all that is waited for; returns what was done. If that fails, the youngest question does."""
        waiting = [job for job in self._open if job._waits_for is not None]
        try:
            done = do([job._waits_for for job in waiting])
        # whatever it is, the others may go on without this one
        except BaseException as error:
            if waiting:
                self._resume(waiting[-1], error)
            return ()
        self._crowded = len(done) < len(waiting)
        return done

    def _resume(self, job: Job, error: BaseException | None = None) -> None:
        """Let an open question go on to what it waits for next, or make it fail."""
        assert job._steps is not None
        try:
            job._waits_for = next(job._steps) if error is None else job._steps.throw(error)
        except StopIteration as end:
            self._open.remove(job)
            self._succeed(job, end.value)
        # as for any job
        except BaseException as raised:
            self._open.remove(job)
            self._fail(job, raised)

    def _succeed(self, job: Job, result: Any) -> None:
        self._end(job)
        with contextlib.suppress(InvalidStateError):  # it was aborted: they were told already
            job.future.set_result(result)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._end(job)
        if error is job.stop_reason:
            error.__traceback__ = None  # it was told to end; the frames would keep what all open questions wait for
        with contextlib.suppress(InvalidStateError):
            job.future.set_exception(error)

    def _end(self, job: Job) -> None:
        job.ended, job._steps, job._waits_for = time.monotonic(), None, None
        took = job.ended - (job.started or job.ended)
        self._service_s[job.lane] += _SMOOTHING * (took - self._service_s[job.lane])
        with self._wake:
            self._running.remove(job)

    def _answer_waiting(self, write: Job) -> None:
        """Run the questions that wait now; later ones wait for the next time, so that the write goes on too."""
        if time.monotonic() - write._held_since < self._long_s:
            return
        left = len(self._queues[Lane.ASK])

        def take() -> Job | None:
            nonlocal left
            left = min(left, len(self._queues[Lane.ASK]))
            if not left or not self._has_room():
                return None
            left -= 1
            job = self._queues[Lane.ASK].popleft()
            self._running.append(job)
            return job

        while left or self._open:
            self._resume_open()
            self._begin(take)
            self._advance_open()
        write._held_since = time.monotonic()
