"""Read files, folders, JSON lines and standard input as a stream of :class:`Document` objects.

Ids of documents that come from files:

* A file in a folder that was given is named ``<folder name>/<path inside the folder>``, with forward slashes. So adding
  ``/home/me/notes`` and, later, a copy at ``backup/notes`` updates the same documents.
* A file given by itself is named by its path as it was given, without a leading ``./``. So ``notes/a.md`` means the
  same document whether ``notes`` or ``notes/a.md`` is given.
* Two different files that would get the same id in one call (two folders called ``docs``) are an error, found before
  anything is read.
* A record of a ``.jsonl`` or ``.ndjson`` file has the id it states, or one made from its text
  (:func:`documents_from_mappings`).
  The same id in two places of one call is no error, as in :meth:`msa.Memory.add`: the last one stays.
* A text on standard input is ``stdin-`` and the first 16 hex digits of the text's SHA-256.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from msa.documents.formats import (
    SNIFFED_BYTES,
    NotTextError,
    clean_surrogates,
    decode,
    extract,
    require_text,
    wide_encoding,
)
from msa.documents.records import documents_from_mappings, numbered_jsonl, text_id
from msa.documents.remarks import Remarks
from msa.documents.types import Document
from msa.errors import DocumentError

__all__ = ["documents_from_mappings", "is_stream", "read_documents"]

logger = logging.getLogger(__name__)

_JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_JUNK_NAMES = frozenset(
    {"node_modules", "bower_components", "__pycache__", "__MACOSX", "lost+found", "$RECYCLE.BIN", "Thumbs.db"}
    | {"System Volume Information", "desktop.ini"}
)
# a folder that holds one of these files is a Python environment, a build cache or itself a memory
_MEMORY_MARKER = "memory.lock"
_JUNK_MARKERS = frozenset({"pyvenv.cfg", "CACHEDIR.TAG", _MEMORY_MARKER})


@dataclass(frozen=True)
class _Source:
    """One file to read: ``shown`` is its path as the user would write it; ``given`` if the user named this file."""

    path: str
    doc_id: str
    shown: str
    given: bool

    @property
    def is_jsonl(self) -> bool:
        return PurePath(self.path).suffix.lower() in _JSONL_SUFFIXES


@dataclass(frozen=True)
class _Found:
    """One document, its line in a file of JSON lines, and how it was decoded if not as it should be."""

    document: Document
    line: int | None = None
    decoding: str | None = None


class _BlankError(NotTextError):
    """A file that holds no text, and so nothing to be lost."""


class _NoDocumentsError(Exception):
    """JSON lines in a folder whose first record is no document; the message is that of its error."""


def read_documents(
    paths: Iterable[str | Path],
    *,
    on_skip: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[Document]:
    """Read documents one by one; the module's head says how they are named.

    Markdown, reStructuredText, source code and any other text are read as they are, HTML as its visible text, PDF as
    its text layer, ``.jsonl`` and ``.ndjson`` as one document a line. Bytes are UTF-8, or UTF-16 or UTF-32 where a
    byte order mark says so; others are Western text, or become U+FFFD, and the metadata says which under ``decoding``
    (:func:`msa.documents.formats.decode`). The metadata of a file holds ``path`` and ``title`` (a heading, else the
    file's name), that of a PDF also ``pages``; a JSON line keeps its own.

    Args:
        paths: files, folders, and ``-`` for standard input, which is JSON lines if it begins with ``{`` and else one
            text. Folders are read in the order of their paths, with their subfolders and through symbolic links (each
            folder once), without hidden files and folders, ``node_modules``, ``__pycache__`` and the like.
        on_skip: called with one line for each file in a folder that is passed over: binary, empty, unreadable; an
            empty one is so too if the user named it. The same line is logged at level info.
        on_note: called, once a file is read, with a line for what is odd about it: it is not UTF-8, a document in it
            has the id of an earlier one and another text. The ids of all documents are kept for that.

    Returns:
        An iterator; each file is read only when its document is asked for.

    Raises:
        DocumentError: at once for a path that does not exist, a memory, and two files with one id; while iterating,
            for a file the user named that cannot be read as text, and for a broken line in a JSON lines file. (One in
            a folder whose first line already is no document is passed over.)
        TypeError: ``paths`` is a single path.
    """
    if isinstance(paths, str | PurePath):
        raise TypeError(f"expected a list of paths, found the single path {str(paths)!r}; put it into a list")

    def skip(message: str) -> None:
        logger.info("skipped: %s", message)
        if on_skip is not None:
            on_skip(message)

    return _read_sources(_unique_sources(paths, skip), skip, Remarks(on_note) if on_note else None)


def is_stream(path: str | Path) -> bool:
    """Whether what :func:`read_documents` reads there can be read only once: standard input, a pipe, a device."""
    return str(path) == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def _unique_sources(paths: Iterable[str | Path], skip: Callable[[str], None]) -> list[_Source]:
    """All files to read, in order: the same file once, two files with the same id refused."""
    seen: dict[str, _Source] = {}
    for path in paths:
        for source in _list_sources(path, skip):
            # the id of a JSON lines file names no document, so there only the file itself counts
            key = f"\0{os.path.realpath(source.path)}" if source.is_jsonl else source.doc_id
            first = seen.setdefault(key, source)
            if first is not source and os.path.realpath(first.path) != os.path.realpath(source.path):
                raise DocumentError(
                    f"{first.shown} and {source.shown} would both be the document {source.doc_id!r}. "
                    "Rename one, or give a folder that contains both"
                )
    return list(seen.values())


def _list_sources(given: str | Path, skip: Callable[[str], None]) -> list[_Source]:
    shown = _printable(Path(given).as_posix())
    if str(given) == "-":
        return [_Source("-", "-", "standard input", True)]
    if os.path.isdir(given):
        return _list_folder(str(given), shown, skip)
    if not os.path.exists(given):
        hint = "Download it first" if "://" in str(given) else f"It was looked for from {_printable(os.getcwd())}"
        if os.path.islink(given):
            hint = "It is a symbolic link to something that is gone"
        raise DocumentError(f"{shown} does not exist. {hint}")
    return [_Source(str(given), shown, shown, True)]


def _list_folder(root: str, shown: str, skip: Callable[[str], None]) -> list[_Source]:
    """The files below a folder, sorted by id. Real folders come before links to folders, each folder once."""

    def on_error(error: OSError) -> None:
        message = f"{_printable(str(error.filename))} cannot be listed ({error.strerror}). Check its permissions"
        if error.filename == root:
            raise DocumentError(message) from error
        skip(message)

    if os.path.isfile(os.path.join(root, _MEMORY_MARKER)) and glob.glob("manifest-*.json", root_dir=root):
        raise DocumentError(f"{shown} is a memory. Give the files or folders that hold the documents themselves")
    name = os.path.basename(os.path.abspath(root))
    sources: list[_Source] = []
    visited: set[str] = set()
    pending = [root]
    while pending:
        links: list[str] = []
        for top in pending:
            for folder, subfolders, files in os.walk(top, onerror=on_error):
                real = os.path.realpath(folder)
                if real in visited or (folder != root and not _JUNK_MARKERS.isdisjoint(files)):
                    subfolders.clear()
                    continue
                visited.add(real)
                subfolders[:] = sorted(filter(_is_wanted, subfolders))
                links += [link for sub in subfolders if os.path.islink(link := os.path.join(folder, sub))]
                for file in filter(_is_wanted, files):
                    path = os.path.join(folder, file)
                    inside = _printable(Path(os.path.relpath(path, root)).as_posix())
                    doc_id = f"{_printable(name)}/{inside}" if name else inside
                    sources.append(_Source(path, doc_id, _printable(Path(path).as_posix()), False))
        pending = sorted(links)
    if not sources:
        skip(f"{shown} holds no files to read")
    return sorted(sources, key=lambda source: source.doc_id)


def _is_wanted(name: str) -> bool:
    return not (name.startswith(".") or name.endswith("~") or name in _JUNK_NAMES)


def _printable(path: str) -> str:
    r"""A path as text: bytes of a file name that are not UTF-8 become ``\xNN``."""
    return clean_surrogates(re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", path))


def _read_sources(sources: list[_Source], skip: Callable[[str], None], remarks: Remarks | None) -> Iterator[Document]:
    for source in sources:
        try:
            for found in _read_source(source):
                if remarks:
                    remarks.look(found.document, source.shown, found.line, found.decoding)
                yield found.document
        except _NoDocumentsError as error:
            skip(str(error))
        except (OSError, NotTextError, MemoryError) as error:
            message = f"{source.shown} {_reason(error)}"
            if source.given and not isinstance(error, _BlankError):
                raise DocumentError(message) from error
            skip(message)
        if remarks:
            remarks.end_file(source.shown)


def _reason(error: OSError | NotTextError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "is too large to be read into memory. Split it into several files"
    if isinstance(error, FileNotFoundError):
        return "is gone, or is a link to something that is"
    if isinstance(error, OSError):
        hint = ". Check its permissions" if isinstance(error, PermissionError) else ""
        return f"cannot be read ({error.strerror or error}){hint}"
    return str(error)


def _read_source(source: _Source) -> Iterator[_Found]:
    if source.path == "-":
        yield from _read_stream(_standard_input(), source)
        return
    is_regular = stat.S_ISREG(os.stat(source.path).st_mode)
    if not is_regular and not source.given:  # opening a named pipe would wait for ever
        raise NotTextError("is not a regular file")
    with open(source.path, "rb") as stream:
        if not is_regular:
            yield from _read_stream(stream, source)
        elif source.is_jsonl:
            yield from _read_jsonl(stream, source)
        else:
            yield _read_file(stream, source)


def _read_jsonl(lines: Iterable[bytes], source: _Source) -> Iterator[_Found]:
    records = numbered_jsonl(lines, source.shown)
    if not source.given:
        try:
            first = next(records, None)
        except DocumentError as error:  # a log, or another program's data, beside the user's notes
            raise _NoDocumentsError(str(error)) from error
        records = itertools.chain([first] if first else [], records)
    for line, document, decoding in records:
        yield _Found(document, line, decoding)


def _read_file(stream: BinaryIO, source: _Source) -> _Found:
    name = PurePath(source.doc_id).name
    head = stream.read(SNIFFED_BYTES)
    require_text(head, name)  # a film is refused before it is in memory
    data = head + stream.read()
    if not data.strip():
        raise _BlankError("is empty")
    found = extract(data, name)
    if not found.text.strip():
        raise _BlankError("holds no text")
    metadata: dict[str, Any] = {"path": source.shown, "title": found.title or name}
    document = Document(id=source.doc_id, text=found.text, metadata=metadata | found.metadata)
    return _Found(document, decoding=found.metadata.get("decoding"))


def _standard_input() -> Iterable[bytes]:
    if sys.stdin is None or sys.stdin.closed:
        raise NotTextError("is closed. Pipe a text into the command, or name a file instead of -")
    if hasattr(sys.stdin, "buffer"):
        return sys.stdin.buffer
    return (line.encode("utf-8", "surrogatepass") for line in sys.stdin)  # a program put its own text stream there


def _read_stream(lines: Iterable[bytes], source: _Source) -> Iterator[_Found]:
    """Read lines that have no file name to tell their format: JSON lines if they begin with ``{``, else one text."""
    lines = iter(lines)
    head = b""
    for line in lines:
        head += line
        if wide_encoding(head):  # no line of it can be decoded alone: a line end is two bytes or four
            head += b"".join(lines)
        if decode(head)[0].strip():
            break
    else:
        raise NotTextError("is empty. Pipe a text or JSON lines into the command, or name a file")
    if decode(head)[0].lstrip().startswith("{"):
        yield from _read_jsonl(itertools.chain(head.splitlines(keepends=True), lines), source)
        return
    data = head + b"".join(lines)
    require_text(data[:SNIFFED_BYTES], "text.txt")
    text, decoding = decode(data)
    metadata = {"path": source.shown, "title": source.shown}
    document = Document(id=text_id(text, "stdin"), text=text, metadata=metadata | decoding)
    yield _Found(document, decoding=decoding.get("decoding"))
