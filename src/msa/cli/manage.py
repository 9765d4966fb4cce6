"""``msa list``, ``show``, ``delete``, ``stats``, ``verify`` and ``compact``: look after a memory, without any model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from msa.cli.console import (
    count,
    one_line,
    shown,
    shown_id,
    size,
    working,
    write_fields,
    write_json,
    write_line,
    write_note,
    write_table,
)
from msa.cli.opening import memory_folder, open_memory
from msa.cli.options import (
    ArgumentParser,
    Subparsers,
    add_command,
    add_id_argument,
    add_json_option,
    add_memory_argument,
    non_negative,
)

if TYPE_CHECKING:
    from msa.documents import Document
    from msa.memory import Memory

_PAGE = 500  # documents listed at a time


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the commands, in the order in which ``msa --help`` lists them."""
    for add in (_add_list, _add_show, _add_delete, _add_stats, _add_verify, _add_compact, _add_backup):
        add(commands)


def _add_plain(
    commands: Subparsers[ArgumentParser], name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> ArgumentParser:
    """A command that needs no more than a memory."""
    examples = [f"msa {name} mem/", f"msa {name} mem/ --json"]
    parser = add_command(commands, name, run, summary=summary, examples=examples)
    add_memory_argument(parser)
    add_json_option(parser)
    return parser


def _add_list(commands: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "list",
        run_list,
        summary="list the documents of a memory, in the order they were added",
        examples=["msa list mem/", "msa list mem/ --limit 20 --after notes/a.md"],
    )
    add_memory_argument(parser)
    parser.add_argument("--limit", type=non_negative, metavar="N", help="documents, at most (default: all)")
    add_id_argument(parser, "--after", "begin behind this document, its id")
    add_json_option(parser)


def run_list(args: argparse.Namespace) -> int:
    """Run ``msa list``."""
    with open_memory(args, read_only=True) as memory:
        if args.after is not None and args.after not in memory:
            write_note(_no_document(args, [args.after]))
            return 1
        if args.json:
            documents = [
                {"id": document.id, "characters": len(document.text), "metadata": document.metadata}
                for page in _pages(memory, args.limit, args.after)
                for document in page
            ]
            write_json({"data": documents, "total": len(memory)})
            return 0
        for page in _pages(memory, args.limit, args.after):
            rows = [[f"{len(document.text):,}", shown_id(document.id), _title(document)] for document in page]
            write_table(rows, right=(0,), whole=2)
    return 0


def _pages(memory: Memory, limit: int | None, after: str | None) -> Iterator[list[Document]]:
    """Documents, some at a time: a memory may be larger than this machine's."""
    while limit is None or limit > 0:
        page = memory.list(limit=_PAGE if limit is None else min(_PAGE, limit), after=after)
        if not page:
            return
        yield page
        after = page[-1].id
        limit = None if limit is None else limit - len(page)


def _title(document: Document) -> str:
    name = str(document.metadata.get("title") or document.metadata.get("path") or "")
    return "" if name == document.id else name


def _no_document(args: argparse.Namespace, ids: list[str]) -> str:
    names = ", ".join(f"'{shown_id(doc_id)}'" for doc_id in ids)
    return f"msa: no document {names} in {args.memory}; see 'msa list {args.memory}'"


def _add_show(commands: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "show",
        run_show,
        summary="show one document: its metadata, how it is stored, and its text",
        examples=["msa show mem/ notes/a.md", "msa show mem/ notes/a.md --json"],
    )
    add_memory_argument(parser)
    add_id_argument(parser, "id", "the document's id")
    add_json_option(parser)


def run_show(args: argparse.Namespace) -> int:
    """Run ``msa show``."""
    with open_memory(args, read_only=True) as memory:
        stored = memory.bank.get(args.id)
    if stored is None:
        write_note(_no_document(args, [args.id]))
        return 1
    if args.json:
        parts = [vars(part) for part in stored.parts]
        write_json({"id": stored.id, "text": stored.text, "metadata": stored.metadata, "parts": parts})
        return 0
    tokens, chunks = (sum(getattr(part, key) for part in stored.parts) for key in ("num_tokens", "num_chunks"))
    stored_as = f"{count(len(stored.parts), 'part')}, {count(tokens, 'token')}, {count(chunks, 'chunk')}"
    own = ("id", "stored as")
    rows = [[f"metadata {key}" if key in own else key, str(value)] for key, value in stored.metadata.items()]
    write_table([["id", shown_id(stored.id)], *rows, ["stored as", stored_as]])
    write_line()
    write_line(shown(stored.text))
    return 0


def _add_delete(commands: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "delete",
        run_delete,
        summary="remove documents from a memory",
        details="They are never found again; 'msa compact' gives their disk space back.",
        examples=["msa delete mem/ notes/a.md notes/b.md"],
    )
    add_memory_argument(parser)
    add_id_argument(parser, "ids", "a document's id", nargs="+")
    add_json_option(parser)


def run_delete(args: argparse.Namespace) -> int:
    """Run ``msa delete``."""
    with open_memory(args, read_only=False) as memory:
        deleted = memory.delete(args.ids)
    unknown = [doc_id for doc_id in dict.fromkeys(args.ids) if doc_id not in set(deleted)]
    if args.json:
        write_json({"deleted": deleted, "unknown": unknown})
    else:
        for doc_id in deleted:
            write_line(f"deleted {shown_id(doc_id)}")
    if unknown:
        write_note(_no_document(args, unknown))
        return 1
    return 0


def _add_stats(commands: Subparsers[ArgumentParser]) -> None:
    _add_plain(commands, "stats", run_stats, "show counts and sizes of a memory, and the model it was made with")


def run_stats(args: argparse.Namespace) -> int:
    """Run ``msa stats``."""
    with open_memory(args, read_only=True) as memory:
        stats = memory.stats()
    if args.json:
        write_json(stats)
        return 0
    fields = {key.replace("_", " "): value for key, value in stats.items()}
    fields["bytes on disk"] = f"{stats['bytes_on_disk']:,} ({size(stats['bytes_on_disk'])})"
    fields["layers"] = ", ".join(map(str, stats["layers"]))
    write_fields(fields)
    return 0


def _add_verify(commands: Subparsers[ArgumentParser]) -> None:
    _add_plain(
        commands,
        "verify",
        run_verify,
        "check every checksum of a memory; exit code 1 and one line per problem if it is damaged",
    )


def run_verify(args: argparse.Namespace) -> int:
    """Run ``msa verify``."""
    from msa.errors import BankCorruptError

    try:
        with open_memory(args, read_only=True) as memory, working("checking every file"):
            problems = memory.verify()
            found = "" if problems else f"sound: {count(len(memory), 'document')}, every checksum is right"
    except BankCorruptError as error:  # too damaged to be opened
        problems, found = [one_line(str(error))], ""
    if args.json:
        write_json({"ok": not problems, "problems": problems})
    else:
        for line in problems or [found]:
            write_line(one_line(line))
    return 1 if problems else 0


def _add_compact(commands: Subparsers[ArgumentParser]) -> None:
    parser = _add_plain(commands, "compact", run_compact, "rewrite a memory without deleted documents")
    parser.add_argument(
        "--drop-damaged",
        action="store_true",
        help="leave out what cannot be read; texts whose latents are lost stay, to be added again",
    )


def run_compact(args: argparse.Namespace) -> int:
    """Run ``msa compact``."""
    with open_memory(args, read_only=False) as memory, working("rewriting the memory"):
        result = memory.compact(drop_damaged=args.drop_damaged)
    if args.json:
        write_json(result)
    else:
        write_line(f"{result['message']}; {size(result['bytes_before'])} before, {size(result['bytes_after'])} now")
    return 0


def _add_backup(commands: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "backup",
        run_backup,
        summary="copy a memory into a new folder, checked, while it may be in use",
        details="The copy is a memory like any other. To restore, copy it back the same way.",
        examples=["msa backup mem/ backups/mem-monday/", "msa backup backups/mem-monday/ mem-restored/"],
    )
    add_memory_argument(parser)
    parser.add_argument("destination", metavar="FOLDER", help="a folder that is empty or does not exist")
    add_json_option(parser)


def run_backup(args: argparse.Namespace) -> int:
    """Run ``msa backup``."""
    from msa.errors import BankError

    place = argparse.Namespace(memory=args.destination)
    folder = memory_folder(place)
    for file in (folder, *folder.parents):
        if file.exists() and not file.is_dir():
            raise BankError(f"{file} is a file. Name a new folder for the copy")
    with open_memory(args, read_only=True) as memory, working("copying the memory"):
        memory.backup(folder)
    with open_memory(place, read_only=True) as copy:
        stats = copy.stats()
    if args.json:
        write_json({"destination": args.destination, **stats})
    else:
        documents = count(stats["documents"], "document")
        write_line(f"copied {documents}, {size(stats['bytes_on_disk'])}, to {one_line(args.destination)}")
    return 0
