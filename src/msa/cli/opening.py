"""Open memories and load models the way a command's options say."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msa.cli.console import is_terminal, working
from msa.cli.options import UsageError, tiers_of

if TYPE_CHECKING:
    from msa.memory import Memory
    from msa.model.bundle import MSAModel
    from msa.parallel import Ranks
    from msa.routing import Tiers


def memory_folder(args: argparse.Namespace) -> Path:
    """The argument MEMORY.

    Raises:
        UsageError: it is empty, which would mean the current folder.
    """
    if not args.memory:
        raise UsageError("the memory's folder is empty; name a folder, '.' for the current one")
    return Path(args.memory)


def open_memory(args: argparse.Namespace, *, read_only: bool) -> Memory:
    """Open an existing memory without loading a model.

    Raises:
        BankError: there is none, it is damaged, or another process writes to it.
    """
    from msa.memory import Memory

    return Memory.open(memory_folder(args), create=False, read_only=read_only)


@contextlib.contextmanager
def open_for_questions(args: argparse.Namespace) -> Iterator[Memory]:
    """An existing memory open for reading, with its model loaded; shared with the other ranks under ``torchrun``.

    Raises:
        BankError: see :func:`open_memory`; also a memory of another model, and one without documents.
        ParallelError: other ranks did not appear, or one was lost.
    """
    with contextlib.ExitStack() as opened:
        memory = opened.enter_context(open_memory(args, read_only=True))
        if len(memory):  # else asking says what to do, and needs no model for it
            ranks = ranks_of_torchrun()
            if ranks is not None:
                opened.enter_context(ranks)
            memory = with_model(memory, args, ranks)
        yield memory


def with_model(memory: Memory, args: argparse.Namespace, ranks: Ranks | None = None) -> Memory:
    """The same open memory with a model: the one asked for, else the one that made it.

    Raises:
        BankMismatchError: another model made it.
        ModelNotFoundError: the model that made it is gone.
    """
    from msa.errors import ModelNotFoundError

    made_with = memory.bank.spec.model_name
    try:
        model = load_model(args, made_with)
    except ModelNotFoundError as error:
        if args.model:
            raise
        raise ModelNotFoundError(
            f"{error}. The memory {memory.bank.path} was made with {made_with}: name where that is now with --model"
        ) from error
    memory.bank.check_fingerprint(model.fingerprint, model.name)
    return type(memory)(memory.bank, model, _tiers(args), ranks)


def ranks_of_torchrun(timeout_s: float | None = None, device: str | None = None) -> Ranks | None:
    """Join the processes that ``torchrun`` started to share the memory; None: this is the only one.

    All ranks but the first write nothing to standard output from here on. To be called once in a process.

    Args:
        timeout_s: seconds to wait for the others; None: as long as is usual.
        device: where this one's share is to lie; None: on its GPU, if there are GPUs.

    Raises:
        ParallelError: the others did not appear.
    """
    if not is_shared():
        return None
    from msa.parallel import init_from_environment
    from msa.parallel.ranks import DEFAULT_TIMEOUT_S

    ranks = init_from_environment(timeout_s or DEFAULT_TIMEOUT_S, device)
    if ranks.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    return ranks


def is_shared() -> bool:
    """Whether ``torchrun`` started several processes, of which this is one.

    Raises:
        UsageError: its variable is no number.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if not size.isdecimal():
        raise UsageError(f"$WORLD_SIZE is {size!r}, expected a number of processes; unset it, or start with torchrun")
    return int(size) > 1


def _tiers(args: argparse.Namespace) -> Tiers | None:
    return tiers_of(args) if hasattr(args, "routing_keys") else None


def load_model(args: argparse.Namespace, otherwise: str | None = None) -> MSAModel:
    """Load ``--model``, or what ``otherwise`` names; None: the default."""
    from msa.zoo import load

    quiet_libraries(args)
    with working("loading the model"):
        return load(args.model or otherwise, device=args.device, dtype=args.dtype)


def quiet_libraries(args: argparse.Namespace) -> None:
    """Keep other libraries' messages and bars about loading a model off the screen, unless ``--verbose``."""
    if args.verbose:
        return
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity(hub_logging.CRITICAL)  # its errors come as exceptions too
    if not is_terminal(sys.stderr):  # a download on a terminal should be seen
        disable_progress_bars()
