"""From records (``{"id", "text", "metadata"}``, in memory or as JSON lines) to checked :class:`Document` objects."""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msa.documents.formats import REPLACED, clean_surrogates, clean_text, decode, wide_encoding
from msa.documents.json_values import json_problem
from msa.documents.types import Document
from msa.errors import DocumentError

_EXAMPLE = '{"id": "a", "text": "..."}'


def documents_from_mappings(
    items: Iterable[Mapping[str, Any] | Document | str], source: str = "add"
) -> Iterator[Document]:
    """Check documents given in memory, one by one as they are asked for.

    A mapping needs ``text`` and may have ``id`` (a string, or an integer, which becomes its string) and ``metadata``;
    any other key goes into the metadata, where a key of ``metadata`` itself wins. Without an id, and for a bare
    string, the id is ``sha256-`` and the first 16 hex digits of the text's SHA-256. Texts are cleaned: line ends become
    LF, NUL characters go, lone surrogates become U+FFFD. The metadata is a copy, as JSON would give it back.

    Args:
        items: mappings, :class:`Document` objects or plain texts, in any mixture.
        source: what to call the input in an error, which also names the item's position, counted from 0.

    Raises:
        DocumentError: an item that is none of these, or has a part of the wrong type.
        TypeError: ``items`` is itself one document.

    >>> [document.id for document in documents_from_mappings([{"id": 7, "text": "seven"}, "a text"])]
    ['7', 'sha256-734194ede5b063e6']
    """
    if isinstance(items, str | Mapping | Document):
        raise TypeError(f"{source}: expected a list of documents, found one {type(items).__name__}; put it into a list")
    return _check_items(items, source)


def _check_items(items: Iterable[Mapping[str, Any] | Document | str], source: str) -> Iterator[Document]:
    for index, item in enumerate(items):
        where = f"{source}: item {index}"
        if isinstance(item, str):
            yield document_from_record({"text": item}, where)
        elif isinstance(item, Document):
            yield document_from_record({"id": item.id, "text": item.text, "metadata": item.metadata}, where)
        else:
            yield document_from_record(item, where)


def document_from_record(record: Any, where: str) -> Document:
    """Check one record and make it a document; ``where`` begins the message of every error."""
    if not isinstance(record, Mapping):
        raise DocumentError(f"{where}: expected an object such as {_EXAMPLE}, found {_kind(record)}")
    if "text" not in record:
        keys = ", ".join(json.dumps(str(key)) for key in list(record)[:8]) or "none"
        raise DocumentError(f'{where}: has no "text" (its keys: {keys}). Write it as {_EXAMPLE}')
    text = record["text"]
    if not isinstance(text, str):
        raise DocumentError(f'{where}: "text" is {_kind(text)}. Give it as a string')
    text = clean_text(text)
    metadata = record.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise DocumentError(f'{where}: "metadata" is {_kind(metadata)}. Give it as an object such as {{"lang": "en"}}')
    other = {key: value for key, value in record.items() if key not in ("id", "text", "metadata")}
    return Document(
        id=_check_id(record.get("id"), text, where),
        text=text,
        metadata=_check_metadata({**other, **(metadata or {})}, where),
    )


_MOST_ID_BITS = 1024  # Python refuses to write out numbers of more than some thousand digits


def text_id(text: str, kind: str = "sha256") -> str:
    """The id of a text that has none: the same text always gets the same id."""
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _check_id(doc_id: Any, text: str, where: str) -> str:
    if doc_id is None:
        return text_id(text)
    if isinstance(doc_id, int) and not isinstance(doc_id, bool):
        if doc_id.bit_length() > _MOST_ID_BITS:
            raise DocumentError(f'{where}: "id" is a number of too many digits. Give it as a string, or leave it out')
        return str(doc_id)
    if not isinstance(doc_id, str):
        raise DocumentError(f'{where}: "id" is {_kind(doc_id)}. Give it as a string, or leave it out')
    if not doc_id:
        raise DocumentError(f'{where}: "id" is an empty string. Give the document a name, or leave "id" out')
    return clean_surrogates(doc_id)


def _check_metadata(metadata: dict[Any, Any], where: str) -> dict[str, Any]:
    try:
        if problem := json_problem(metadata):
            raise ValueError(problem)
        # through JSON and back: a private copy that is equal to what a reopened memory will return
        return json.loads(clean_surrogates(json.dumps(metadata, ensure_ascii=False)))
    except (TypeError, ValueError) as error:
        reason = str(error).partition(";")[0]  # Python's advice on settings of its own is none for a user
        raise DocumentError(
            f'{where}: "metadata" cannot be stored as JSON ({reason}). Use strings, numbers, lists and objects only'
        ) from error


def _kind(value: Any) -> str:
    """A value's type in the words of JSON, in Python's words if JSON has none."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


def read_jsonl(lines: Iterable[bytes], name: str, max_characters: int | None = None) -> Iterator[Document]:
    """Read JSON lines as they arrive; blank lines are passed over.

    Args:
        lines: a file opened for reading bytes, or lines of one, in UTF-8 or, with a byte order mark, UTF-16 or UTF-32.
            Other bytes are decoded line by line as :func:`decode` says, and the document's metadata then says how under
            ``decoding``.
        name: the file's name, for the message of an error.
        max_characters: of a line of UTF-16 or UTF-32, whose ends are found here; None: no limit.

    Raises:
        DocumentError: a line that is not a document, or is too long; it names the file, the line and what is wrong.
    """
    for _, document, _ in numbered_jsonl(lines, name, max_characters):
        yield document


def numbered_jsonl(
    lines: Iterable[bytes], name: str, max_characters: int | None = None
) -> Iterator[tuple[int, Document, str | None]]:
    """As :func:`read_jsonl`, with each document's line, from 1, and how it was decoded if not as it should be."""
    for number, (line, decoding) in enumerate(_decoded_lines(lines, max_characters), start=1):
        if line is None:
            raise DocumentError(
                f"{name}, line {number}: is longer than {max_characters:,} characters, which is the limit; give the "
                "document in several"
            )
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg} at column {error.colno}"
            else:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DocumentError(f"{where}: not JSON ({reason}). Write one object on each line: {_EXAMPLE}") from error
        document = document_from_record(record, where)
        document.metadata.update(decoding)
        yield number, document, decoding.get("decoding")


def _decoded_lines(lines: Iterable[bytes], most: int | None) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Each line, and how it was decoded; None for one that is too long, after which there are no more."""
    lines = iter(lines)
    first = next(lines, b"")
    if encoding := wide_encoding(first):
        yield from _wide_lines(itertools.chain([first], lines), encoding, most)
        return
    yield decode(first)
    for raw in lines:
        yield decode(raw)


def _wide_lines(
    pieces: Iterable[bytes], encoding: str, most: int | None
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """As :func:`_decoded_lines`; a line end is two bytes or four, so pieces end anywhere."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    begun = io.StringIO()
    for text, final in _wide_texts(pieces, encoding):
        *ends, rest = newlines.decode(text, final).split("\n")
        for end in ends:
            begun.write(end)
            yield _cleaned(begun.getvalue(), encoding)
            begun = io.StringIO()
        begun.write(rest)
        if most is not None and begun.tell() > most:
            yield None, {}
            return
    yield _cleaned(begun.getvalue(), encoding)


def _wide_texts(pieces: Iterable[bytes], encoding: str) -> Iterator[tuple[str, bool]]:
    """The pieces decoded, and whether each is the last; what is no character becomes a lone surrogate."""
    decoder = codecs.getincrementaldecoder(encoding)(_LONE_SURROGATE)
    for piece in pieces:
        yield decoder.decode(piece), False
    yield decoder.decode(b"", final=True), True


def _lone_surrogate(error: UnicodeError) -> tuple[str, int]:
    """What to decode bytes to that are no character: what no valid ones become."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ud800", error.end


_LONE_SURROGATE = "msa.lone_surrogate"
codecs.register_error(_LONE_SURROGATE, _lone_surrogate)


def _cleaned(line: str, encoding: str) -> tuple[str, dict[str, Any]]:
    """A line as :func:`decode` cleans it, and whether it had lone surrogates."""
    whole = clean_surrogates(line)
    return clean_text(whole), {} if whole == line else {"decoding": encoding + REPLACED}
