"""Arguments that several commands share: their parsers, types and errors."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from msa.cli.console import shown_id

if TYPE_CHECKING:
    from msa.routing import Tiers

_MAX_SEED = 2**63 - 1
# what --model of a command is, and which it is where nothing is said
MODEL_THAT_MADE_IT = "the model; by default the one that made the memory"
MODEL_THAT_MADE_OR_MAKES_IT = f"{MODEL_THAT_MADE_IT}, for a new memory $MSA_MODEL or the shipped one"
ANY_MODEL = "the model; by default $MSA_MODEL or the shipped one"


class UsageError(Exception):
    """The command was called in a wrong way that its parser could not see: exit code 2."""


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose options cannot be abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all of ``args``: what a command does not know is its own error, which names its own help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line on standard error."""
        line = " ".join(message.split())
        sys.stderr.write(f"msa: {line}; see '{self.prog} --help'\n")
        raise SystemExit(2)


Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def add_command(
    commands: Subparsers[ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    details: str = "",
    examples: Sequence[str],
    model: str | None = None,
) -> ArgumentParser:
    """Add one command with the options that every command has.

    Args:
        commands: where to add it.
        name: its name.
        run: does it, and returns the exit code.
        summary: what it does, in one line.
        details: more for its own help.
        examples: command lines for its own help.
        model: what ``--model`` is, of a command that loads one as this, ``--device`` and ``--dtype`` say; other
            commands get what they lack of these from :func:`complete_model_options`.
    """
    shown = "\n".join(f"  {example}" for example in examples)
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}." + (f"\n\n{details}" if details else ""),
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{shown}",
    )
    parser.set_defaults(run=run)
    if model is not None:
        _add_model_options(parser, model)
    group = parser.add_argument_group("diagnostics")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group.add_argument("-v", "--verbose", action="store_true", help="show what is being done")
    return parser


def _add_model_options(parser: ArgumentParser, description: str) -> None:
    group = parser.add_argument_group("model")
    add_model_option(group, description)
    add_device_option(group)
    add_dtype_option(group)


def complete_model_options(commands: Subparsers[ArgumentParser]) -> None:
    """Let every command take ``--model``, ``--device`` and ``--dtype``; where it has no use for one, its help says so.

    Args:
        commands: all commands, each with its own options already; of one that has tasks, the tasks are meant.
    """
    adders: dict[str, Callable[[Any, str], None]] = {
        "--model": add_model_option,
        "--device": add_device_option,
        "--dtype": add_dtype_option,
    }
    for parser in commands.choices.values():
        tasks = [action for action in parser._actions if isinstance(action, Subparsers)]
        for action in tasks:
            complete_model_options(action)
        missing = [] if tasks else [name for name in adders if name not in parser._option_string_actions]
        if missing:
            group = parser.add_argument_group("taken by every command, without effect on this one")
            for name in missing:
                adders[name](group, "not used")


def add_model_option(group: Any, description: str, default: str | None = None) -> None:
    """Add ``--model`` to a parser or an argument group."""
    group.add_argument("--model", type=model, default=default, metavar="NAME|PATH|HUB_ID", help=description)


def add_device_option(group: Any, description: str = "where it runs (auto: CUDA if any)") -> None:
    """Add ``--device`` to a parser or an argument group."""
    group.add_argument("--device", type=device, default="auto", metavar="auto|cpu|cuda[:n]", help=description)


def add_dtype_option(
    group: Any, description: str = "what it computes in (auto: bfloat16 where the device has it)"
) -> None:
    """Add ``--dtype`` to a parser or an argument group."""
    group.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help=description)


def add_memory_argument(parser: ArgumentParser) -> None:
    """Add the positional argument MEMORY."""
    parser.add_argument("memory", metavar="MEMORY", help="the memory's folder")


def add_id_argument(parser: ArgumentParser, name: str, description: str, **settings: Any) -> None:
    """Add an argument or option for ids of documents."""
    shown = "as 'msa list' shows it; one it shows in double quotes is given with them, within single quotes"
    parser.add_argument(name, type=document_id, metavar="ID", help=f"{description}, {shown}", **settings)


def add_where_option(parser: ArgumentParser) -> None:
    """Add ``--where``; several of them must all hold. :func:`conditions` reads them."""
    parser.add_argument(
        "--where",
        type=condition,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="use only documents whose metadata have this value, or have it in a list; read as JSON if it is JSON (a "
        "list: any of its members) and else as a string; may be given several times",
    )


def add_hybrid_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--hybrid``."""
    parser.add_argument(
        "--hybrid",
        action="store_true",
        help="rank documents by exact words too, fused with the memory's own ranking (routed retrieval)",
    )


def add_tier_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--routing-keys``, ``--key-share`` and ``--content``; :func:`tiers_of` reads them."""
    parser.add_argument(
        "--routing-keys",
        choices=("exact", "half", "int8", "mapped"),
        default="exact",
        help="routing keys as they are stored, in 16 or 8 bits, or left on disk (default: exact)",
    )
    parser.add_argument(
        "--key-share",
        type=share,
        default=1.0,
        metavar="S",
        help="look at this share of the routing keys alone, those of the likeliest lists; some documents are missed "
        "(default: 1, all)",
    )
    parser.add_argument(
        "--content",
        choices=("mapped", "ram", "pinned"),
        default="mapped",
        help="content keys and values on disk, in RAM, or in RAM page-locked for a GPU (default: mapped from disk)",
    )


def share(text: str) -> float:
    """A share above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and up to 1, got {text!r}")
    return value


def tiers_of(args: argparse.Namespace) -> Tiers:
    """What :func:`add_tier_options` was told."""
    from msa.routing import Tiers

    return Tiers(routing_keys=args.routing_keys, content=args.content, key_share=args.key_share)


def byte_size(text: str) -> int:
    """A number of bytes: ``500MB``, ``2GB``, ``1.5GiB`` or plain digits.

    >>> byte_size("2GB"), byte_size("1.5KiB")
    (2000000000, 1536)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), flags=re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 2GiB, got {text!r}")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))


def add_json_option(parser: ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")


def document_id(text: str) -> str:
    r"""A document's id as it is, or as :func:`msa.cli.console.shown_id` shows it.

    >>> document_id("notes/a.md"), document_id('"two\\nlines"'), document_id('"quoted"')
    ('notes/a.md', 'two\nlines', '"quoted"')
    """
    try:
        meant = json.loads(text) if text.startswith('"') else text
    except ValueError:
        return text
    return meant if shown_id(meant) == text else text


def model(text: str) -> str:
    """A model's name, which an unset variable of a script's leaves empty: that is not meant to be the default."""
    if not text:
        raise argparse.ArgumentTypeError("the model's name is empty; leave the option out for the default")
    return text


def device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:n``."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:n, got {text!r}")
    return text


def condition(text: str) -> tuple[str, Any]:
    """One ``KEY=VALUE``.

    >>> condition("lang=en"), condition("year=2024"), condition('lang=["en", "de"]')
    (('lang', 'en'), ('year', 2024), ('lang', ['en', 'de']))
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE such as lang=en, got {text!r}")
    try:
        return key, json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return key, value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")  # Python's parser would take NaN and Infinity


def conditions(args: argparse.Namespace) -> dict[str, Any] | None:
    """All ``--where`` together, as ``Memory.ask`` and ``Memory.search`` take them.

    Raises:
        UsageError: one key twice.
    """
    where: dict[str, Any] = {}
    for key, value in args.where:
        if key in where:
            raise UsageError(f"--where names {key!r} twice; for any of several values write --where '{key}=[…, …]'")
        where[key] = value
    return where or None


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    return _integer(text, 1)


def non_negative(text: str) -> int:
    """A whole number, 0 or more."""
    return _integer(text, 0)


def port(text: str) -> int:
    """A port, 0 for any free one."""
    number = non_negative(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"must lie in 0..65535, got {text!r}")
    return number


def _integer(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= _MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, got {text!r}")
    return number


def temperature(text: str) -> float:
    """A number in 0..100."""
    number = _number(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"must lie in 0..100 (0: no randomness), got {text!r}")
    return number


def probability(text: str) -> float:
    """A number in (0, 1]."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must lie above 0 and up to 1, got {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def layers(text: str) -> list[int] | str:
    """``all``, or layers and ranges of them.

    >>> layers("15-17"), layers("2,4-5"), layers("all")
    ([15, 16, 17], [2, 4, 5], 'all')
    """
    if text.strip() == "all":
        return "all"
    chosen: set[int] = set()
    for piece in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", piece)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise argparse.ArgumentTypeError(f"must be like 15-29, 15,16 or all, got {text!r}")
        chosen.update(range(first, last + 1))
    return sorted(chosen)


def words(text: str, what: str) -> str:
    """A question or query that is not empty.

    Raises:
        UsageError: it is.
    """
    if not text.strip():
        raise UsageError(f"the {what} is empty; put it in quotes after the memory")
    return text
