"""The entry point of ``msa``: parse, run, and turn every error into one line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator

from msa.cli import add, ask, bench, convert, evaluate, manage, mcp, search, serve, train
from msa.cli.console import one_line, write_note
from msa.cli.options import ArgumentParser, UsageError, complete_model_options

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
# tell of a memory's damage each time they look at it; a command says it once
_SAY_WHAT_IS = ("msa.bank.bank", "msa.bank.opening")


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = ArgumentParser(
        prog="msa",
        description="Memory Sparse Attention: ask a language model with a memory of your documents.",
        epilog="examples:\n  msa add mem/ notes/ report.pdf\n  msa ask mem/ 'When was the bridge opened?'",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=ArgumentParser)
    for group in (add, ask, search, manage, serve, mcp, convert, train, evaluate, bench):
        group.register(commands)
    complete_model_options(commands)
    return parser


class _Version(argparse.Action):
    """``--version``; looks the version up only when asked."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import msa

        sys.stdout.write(f"msa {msa.__version__}\n")
        parser.exit()


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its arguments, without the program's name; None: those of this process.

    Returns:
        The exit code: 0; 1 for a failure, 2 for wrong usage, 130 when interrupted.
    """
    try:
        if hasattr(sys.stdout, "reconfigure"):  # a character the terminal lacks must not end an answer
            sys.stdout.reconfigure(errors="replace")
        parser = build_parser()
        args = parser.parse_args(argv)
    except KeyboardInterrupt:
        write_note("msa: interrupted")
        return EXIT_INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_FAILURE
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        with _messages(args.verbose):
            code: int = args.run(args)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _drop_output()
        return EXIT_FAILURE
    except KeyboardInterrupt as error:
        _show_traceback(args)
        write_note(f"msa: {str(error) or 'interrupted'}")
        return EXIT_INTERRUPTED
    except UsageError as error:
        _show_traceback(args)
        write_note(f"msa: {error}")
        return EXIT_USAGE
    except Exception as error:
        _show_traceback(args)
        write_note(f"msa: {error_line(error)}")
        return EXIT_FAILURE


def error_line(error: Exception) -> str:
    """What went wrong, on one line, for a user."""
    from msa.errors import MSAError

    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename is not None else ""
        hint = {errno.ENOSPC: ". Free disk space, then run it again", errno.EACCES: ". Check the permissions"}
        return one_line(f"{name}{error.strerror}{hint.get(error.errno or 0, '')}")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        reason = one_line(str(error), 200)
        return f"out of memory{f' ({reason})' if reason else ''}. Use a smaller model, --dtype bfloat16 or --device cpu"
    if isinstance(error, MSAError | ValueError | OSError) and str(error):
        return one_line(str(error))
    kind = type(error).__name__
    return one_line(f"unexpected {kind}: {one_line(str(error), 300)}. Run it again with --debug for the traceback")


def _show_traceback(args: argparse.Namespace) -> None:
    if args.debug:
        traceback.print_exc()


def _drop_output() -> None:
    """Whoever read standard output is gone: throw away what is left, so that closing it raises nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _MessageHandler(logging.Handler):
    """Log messages as plain lines on standard error, a traceback below where a record has one."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        message = record.getMessage()
        if record.name in _SAY_WHAT_IS:
            if message in self._said:
                return
            self._said.add(message)
        # skipped files are read twice by ``msa add``, which shows them itself
        if record.levelno > logging.INFO or record.name != "msa.documents.readers":
            write_note(message)
            if record.exc_info and record.exc_info[1] is not None:
                for line in "".join(traceback.format_exception(record.exc_info[1])).splitlines():
                    write_note(f"| {line}")


@contextlib.contextmanager
def _messages(verbose: bool) -> Iterator[None]:
    """Send this package's warnings to standard error; if verbose, also what it does and Python's other warnings."""
    logger, handler = logging.getLogger("msa"), _MessageHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.filterwarnings("ignore", module=r"(?!msa\b)")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
