"""One rank leads, the others follow: rank 0 runs the program, and calls on the others' shards when it needs them.

Where every rank runs the same program (:class:`ShardedMemory`), all must take each decision alike and at once. A server
cannot: its requests come to one process, in any order, and are called off at any moment. Here rank 0 alone decides. The
others wait for commands, and every command is carried out by all ranks and ends in their agreeing on how it went, so
that an error of one is an error on rank 0 and leaves them in step.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from msa import errors
from msa.errors import MSAError, ParallelError
from msa.parallel.ranks import DEFAULT_TIMEOUT_S, Ranks, as_bytes, from_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")
_LONGEST_SILENCE_S = 5.0
_BLOCK_BYTES = 4096  # what is not longer travels at once
_STOP, _PING = "stop", "ping"


class Channel:
    """What ranks tell one another beside tensors: JSON, over gloo also where tensors travel over NCCL.

    Args:
        ranks: the processes; every rank makes its channel at the same time.
        timeout_s: seconds after which a rank that says nothing counts as lost.

    Attributes:
        signals: those that came while this rank was following.
    """

    def __init__(self, ranks: Ranks, timeout_s: float) -> None:
        self.signals: set[int] = set()
        # waiting for a command can take for ever, and over NCCL would keep a GPU busy
        members = None if ranks.group is None else dist.get_process_group_ranks(ranks.group)
        timeout = timedelta(seconds=timeout_s)
        group = dist.new_group(members, timeout, "gloo", use_local_synchronization=members is not None)
        self._ranks = Ranks(group)
        self.rank = ranks.rank

    def tell(self, message: dict[str, Any] | None = None) -> dict[str, Any]:
        """Rank 0's message, on every rank."""
        payload = _packed(message)
        block = torch.zeros(_BLOCK_BYTES, dtype=torch.uint8)
        room = _BLOCK_BYTES - 8
        block[:8] = as_bytes(torch.tensor([len(payload)]))
        block[8 : 8 + len(payload)] = payload[:room]
        block = self._ranks.broadcast(block)
        size = int(from_bytes(block[:8], torch.int64, (1,)))
        data = block[8 : 8 + size]
        if size > room:
            rest = payload[room:] if self.rank == 0 else torch.zeros(size - room, dtype=torch.uint8)
            data = torch.cat([data, self._ranks.broadcast(rest)])
        told: dict[str, Any] = json.loads(data.numpy().tobytes())
        return told

    def problems(self, mine: Exception | None) -> list[Exception]:
        """What went wrong on the ranks, the same number on all of them; empty: nothing did."""
        fields = None if mine is None else {"kind": type(mine).__name__, "message": str(mine)}
        payload = torch.zeros(0, dtype=torch.uint8) if fields is None else _packed(fields)
        world = self._ranks.world
        counts = self._ranks.exchange(as_bytes(torch.tensor([len(payload)])), [8] * world)
        sizes = [int(from_bytes(count, torch.int64, (1,))) for count in counts]
        if not any(sizes):
            return []
        told = self._ranks.exchange(payload, sizes)
        return [
            mine if mine is not None and rank == self.rank else _as_error(rank, json.loads(piece.numpy().tobytes()))
            for rank, piece in enumerate(told)
            if len(piece)
        ]


def _packed(fields: dict[str, Any] | None) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(fields).encode()), dtype=torch.uint8)


def _as_error(rank: int, fields: dict[str, str]) -> Exception:
    """Another rank's exception: of the same kind where it was raised on purpose."""
    kind = getattr(errors, fields["kind"], None)
    message = f"{fields['message']} (on rank {rank})"
    if isinstance(kind, type) and issubclass(kind, MSAError):
        return kind(message)
    if fields["kind"] in ("OutOfMemoryError", "MemoryError"):
        return MemoryError(message)
    return ParallelError(f"{fields['kind']}: {message}")


class Attempt:
    """Runs what may fail on one rank alone; the others are told at the end.

    Attributes:
        problem: the first thing that went wrong; None: nothing did.
    """

    def __init__(self) -> None:
        self.problem: Exception | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """What is done inside may fail here alone."""
        try:
            yield
        except ParallelError:  # nobody is left who could be told
            raise
        # whatever it is, the other ranks wait for this one and must hear of it
        except Exception as error:
            self.problem = self.problem or error


class Leader:
    """Rank 0's side: sends commands, one at a time, from any thread; a context manager that lets the others go.

    While there is nothing to say, a thread asks the others every few seconds whether they are there.

    Args:
        ranks: the processes, of which this is rank 0.
        timeout_s: seconds after which a rank that does not answer counts as lost; the same on all ranks.

    Attributes:
        lost: why no more commands can be sent; None: they can.
        on_lost: called once, from any thread, when that happens.
    """

    def __init__(self, ranks: Ranks, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.ranks = ranks
        self.lost: ParallelError | None = None
        self.on_lost: Callable[[], None] = lambda: None
        self._channel = Channel(ranks, timeout_s)
        self._lock = threading.Lock()
        self._unused: deque[int] = deque()
        self._ended = threading.Event()
        self._silence_s = min(_LONGEST_SILENCE_S, timeout_s / 4)
        self._watch = threading.Thread(target=self._ask_whether_all_are_there, name="msa-ranks", daemon=True)
        self._watch.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the other ranks go; a second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._watch.join()
        # one that is lost only now is not missed any more; the log has it
        with contextlib.suppress(ParallelError), self._in_step():
            self._channel.tell({"do": _STOP})

    def command(self, do: str, work: Callable[[Channel, Attempt], T], **fields: Any) -> T:
        """Have all ranks do something together.

        Args:
            do: what, for the followers.
            work: this rank's part; what may fail on one rank alone it does in the attempt it is given.
            fields: what the followers need to know, as JSON.

        Returns:
            What ``work`` returned.

        Raises:
            ParallelError: a rank was lost, now or before; no further command will succeed.
            Exception: what went wrong on a rank, this one's own first.
        """
        attempt = Attempt()
        with self._in_step():
            unused = [self._unused.popleft() for _ in range(len(self._unused))]
            self._channel.tell({"do": do, "unused": unused, **fields})
            result = work(self._channel, attempt)
            problems = self._channel.problems(attempt.problem)
        if problems:
            raise problems[0]
        return result

    def no_longer_needs(self, number: int) -> None:
        """The followers may forget a view; they are told with the next command, so that any thread may call this."""
        self._unused.append(number)

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """All that travels, travels inside this; whatever is raised in it leaves the ranks out of step for good."""
        with self._lock:
            if self.lost is not None:
                raise ParallelError(f"a rank was lost: {self.lost}")
            try:
                yield
            except BaseException as error:
                self.lost = error if isinstance(error, ParallelError) else ParallelError(f"out of step: {error!r}")
                asked_for = self._ended.is_set() or isinstance(error, KeyboardInterrupt)
                logger.log(
                    logging.INFO if asked_for else logging.ERROR, "the ranks can no longer be used: %s", self.lost
                )
                self.on_lost()
                raise

    def _ask_whether_all_are_there(self) -> None:
        while not self._ended.wait(self._silence_s):
            try:
                self.command(_PING, lambda channel, attempt: None)
            except ParallelError:  # noted, and told to whom it concerns
                return


def follow(
    ranks: Ranks,
    tasks: dict[str, Callable[[Channel, Attempt, dict[str, Any]], None]],
    forget: Callable[[Sequence[int]], None],
    timeout_s: float = DEFAULT_TIMEOUT_S,
    channel: Channel | None = None,
) -> None:
    """On all other ranks: carry out rank 0's commands until it lets them go.

    SIGTERM and SIGINT are ignored meanwhile, where this is the main thread: they come to all processes, and rank 0
    needs the others until its last request is answered.

    Args:
        ranks: the processes.
        tasks: what each command does here, given the channel, the attempt and the command's fields.
        forget: told the numbers of views that are no longer needed.
        timeout_s: seconds without a word from rank 0 after which it counts as lost.
        channel: what was made for it when rank 0 made its :class:`Leader`; None: make it now.

    Raises:
        ParallelError: rank 0 ended without a word, or said none for too long.
        KeyboardInterrupt: it did, and SIGINT had come here too.
    """
    channel = channel or Channel(ranks, timeout_s)
    with _signals_noted(channel.signals), torch.inference_mode():
        try:
            while (command := channel.tell())["do"] != _STOP:
                attempt = Attempt()
                forget(command["unused"])
                if command["do"] != _PING:
                    tasks[command["do"]](channel, attempt, command)
                if attempt.problem is not None:
                    logger.error("rank %d could not %s: %r", ranks.rank, command["do"], attempt.problem)
                channel.problems(attempt.problem)
        except ParallelError as error:
            if signal.SIGINT in channel.signals:  # rank 0 had it too, in the middle of a command: nothing went wrong
                raise KeyboardInterrupt from error
            raise


@contextmanager
def _signals_noted(noted: set[int]) -> Iterator[None]:
    """Do nothing about SIGINT and SIGTERM but note that they came."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda which, frame: noted.add(which)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
