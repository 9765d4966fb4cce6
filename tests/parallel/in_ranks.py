"""Run checks in ranks of their own; test_parallel.py starts this in a process of its own, because it forks.

    python in_ranks.py FOLDER

Rank R of W that check everything in ranks_checks.py writes FOLDER/W/R.json; what is left of two ranks when one is lost
writes FOLDER/killed/0.json, FOLDER/stopped/0.json and FOLDER/absent/0.json.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from engine_checks import answers_in_ram, answers_over_a_folder, hybrid_over_a_folder
from ranks_checks import CHECKS, queries, shard_of, sharded, whole

from msa.errors import ParallelError
from msa.ops import RoutingSpec
from msa.parallel import init_from_environment

LOST_AFTER_S = 3.0


def fork(rank: int, world: int, port: int, work: Callable[[], dict[str, str]], folder: Path) -> int:
    """Do something as one rank in a child process; returns its id."""
    child = os.fork()
    if child:
        return child
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    code = 1
    try:
        torch.set_num_threads(1)
        (folder / f"{rank}.json").write_text(json.dumps(work()))
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def all_checks() -> dict[str, str]:
    """Each check's name and what went wrong with it, empty where nothing did."""
    found = {}
    with init_from_environment(timeout_s=30, device="cpu") as ranks:
        for name, check in CHECKS.items():
            found[name] = ""
            try:
                check(ranks)
            except ParallelError:
                found[name] = traceback.format_exc()
                break
            except Exception:
                found[name] = traceback.format_exc()
    return found


def lose_rank_1(how: str) -> dict[str, str]:
    """Rank 1 goes before the second question; says what rank 0 saw of it, and after how long."""
    started = time.monotonic()
    try:
        ranks = init_from_environment(timeout_s=LOST_AFTER_S, device="cpu")
        layout = [list(shard_of(range(whole().num_documents), rank, 2)) for rank in range(2)]
        view = sharded(whole(), layout, ranks)
        query, mask = queries()
        view.route(3, query, mask, RoutingSpec(), 3)
        if ranks.rank == 1:
            os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how])
        started = time.monotonic()
        view.route(3, query, mask, RoutingSpec(), 3)
        view.fetch(3, torch.tensor([[0, 10]]))
    except ParallelError as error:
        return {"error": str(error), "seconds": str(time.monotonic() - started)}
    return {"error": "", "seconds": "0"}


def start(folder: Path, world: int, present: int, work: Callable[[], dict[str, str]]) -> list[int]:
    """The first ``present`` ranks of ``world``, each a child process."""
    folder.mkdir()
    port = free_port()
    return [fork(rank, world, port, work, folder) for rank in range(present)]


def ended(child: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    """Lose ranks three times, all at once, as that is mostly waiting; then check 1 to 4 ranks after one another."""
    whole(), answers_in_ram(), answers_over_a_folder(), hybrid_over_a_folder()  # once, before forking
    lost = {
        how: start(folder / how, 2, 1 if how == "absent" else 2, lambda how=how: lose_rank_1(how))  # type: ignore[misc]
        for how in ("killed", "stopped", "absent")
    }
    for how, (survivor, *others) in lost.items():
        assert ended(survivor) == 0, how
        for child in others:
            if how == "stopped":
                os.kill(child, signal.SIGKILL)
            assert ended(child) == -signal.SIGKILL, how
    for world in (1, 2, 3, 4):
        codes = [ended(child) for child in start(folder / str(world), world, world, all_checks)]
        assert not any(codes), (world, codes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
