"""Queries and changes of documents and parts, inside a transaction of the catalog.

Everything works in batches: a statement per few hundred rows, never one query per row.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from msa.bank.catalog import read_counter
from msa.bank.schema import Latents, Part, StoredDocument, StoredPart, dump_json
from msa.errors import BankCorruptError

BATCH = 500  # below SQLite's oldest limit of 999 variables in a statement
T = TypeVar("T")
_DOCUMENT_COLUMNS = "row, id, text, metadata, content_hash"


def batches(items: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
    """Cut ``items`` into runs of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def select_in(connection: sqlite3.Connection, query: str, values: Sequence[Any]) -> Iterator[Any]:
    """Run ``query``, whose ``{}`` stands for a list of values, over ``values`` in batches."""
    for batch in batches(values):
        yield from connection.execute(query.format(",".join("?" * len(batch))), batch)


def find(connection: sqlite3.Connection, id_: str) -> tuple[int, str] | None:
    """Return the row and the content hash of a document, or None if it is not there."""
    query = "SELECT row, content_hash FROM documents WHERE id = ?"
    found: tuple[int, str] | None = connection.execute(query, (id_,)).fetchone() if _storable([id_]) else None
    return found


def _storable(ids: Sequence[str]) -> list[str]:
    """Leave out ids that are no valid Unicode: SQLite refuses them, and no document can have one."""
    return [id_ for id_ in ids if not any("\ud800" <= character <= "\udfff" for character in id_)]


def documents_by_id(connection: sqlite3.Connection, ids: Sequence[str]) -> list[StoredDocument]:
    """Return the documents among ``ids``, in insertion order."""
    rows = list(select_in(connection, f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE id IN ({{}})", _storable(ids)))
    return _with_parts(connection, sorted(rows))


def documents_after(connection: sqlite3.Connection, row: int, limit: int) -> list[StoredDocument]:
    """Return up to ``limit`` documents inserted after ``row``; a negative limit means all."""
    query = f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE row > ? ORDER BY row LIMIT ?"
    return _with_parts(connection, connection.execute(query, (row, limit)).fetchall())


def _with_parts(connection: sqlite3.Connection, rows: Sequence[Any]) -> list[StoredDocument]:
    parts: dict[int, list[Part]] = {row[0]: [] for row in rows}
    query = (
        "SELECT document, number, start, stop, num_tokens, num_chunks FROM parts "
        "WHERE document IN ({}) ORDER BY document, position"
    )
    for document, *fields in select_in(connection, query, list(parts)):
        parts[document].append(_part(fields))
    return [
        StoredDocument(
            id=id_,
            text=text,
            metadata=_metadata(metadata, id_),
            content_hash=content_hash,
            parts=tuple(parts[row]),
        )
        for row, id_, text, metadata, content_hash in rows
    ]


def _metadata(text: str, id_: str) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise BankCorruptError(
            f"the metadata of document {id_!r} is damaged ({error}). Delete it and add it again"
        ) from error
    return metadata


def _part(fields: Sequence[int]) -> Part:
    number, start, end, num_tokens, num_chunks = fields
    return Part(number=number, start=start, end=end, num_tokens=num_tokens, num_chunks=num_chunks)


def parts_by_number(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, StoredPart]:
    """Return the parts among ``numbers``; each document's text is read once and cut."""
    rows: dict[int, list[tuple[int, Part]]] = {}
    query = "SELECT document, position, number, start, stop, num_tokens, num_chunks FROM parts WHERE number IN ({})"
    for document, position, *fields in select_in(connection, query, numbers):
        rows.setdefault(document, []).append((position, _part(fields)))
    query = (
        "SELECT row, id, text, metadata, (SELECT count(*) FROM parts WHERE document = documents.row) "
        "FROM documents WHERE row IN ({})"
    )
    found: dict[int, StoredPart] = {}
    for row, id_, text, metadata, num_parts in select_in(connection, query, list(rows)):
        for position, part in rows[row]:
            found[part.number] = StoredPart(
                part=part,
                document_id=id_,
                index=position,
                num_parts=num_parts,
                text=text[part.start : part.end],
                metadata=_metadata(metadata, id_),
            )
    return found


def live_numbers(connection: sqlite3.Connection) -> NDArray[np.int64]:
    """Return the numbers of all present parts, ascending ``[n]``."""
    return np.fromiter(
        (number for (number,) in connection.execute("SELECT number FROM parts ORDER BY number")), dtype=np.int64
    )


def matching_numbers(connection: sqlite3.Connection, where: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the numbers of the parts whose document fulfils every condition of ``where``, ascending ``[n]``."""
    rows: set[int] | None = None
    for key, value in where.items():
        digests = [_term(key, each) for each in (value if isinstance(value, list | tuple) else [value])]
        query = "SELECT document FROM terms WHERE digest IN ({})"
        matches = {row for (row,) in select_in(connection, query, digests)}
        rows = matches if rows is None else rows & matches
    if rows is None:
        return live_numbers(connection)
    query = "SELECT number FROM parts WHERE document IN ({})"
    return np.array(sorted(n for (n,) in select_in(connection, query, list(rows))), dtype=np.int64)


def stored_segments(
    connection: sqlite3.Connection, put: Sequence[StoredDocument], latents: Latents | None
) -> dict[int, int]:
    """Return the segment row of every part of ``put`` that is stored, after checking that the others come now.

    Raises:
        ValueError: a part without latents, latents without a part, or a number that may have been used before.
    """
    expected = {part.number: (document.id, part.num_chunks) for document in put for part in document.parts}
    if latents is not None:
        next_number = read_counter(connection, "next_number")
        if int(latents.numbers[0]) < next_number:
            raise ValueError(
                f"part number {int(latents.numbers[0])} may have been used before: numbers are never reused, "
                f"the next free one is {next_number}"
            )
        for number, num_chunks in zip(latents.numbers.tolist(), latents.chunk_offsets.diff().tolist(), strict=True):
            _, found = expected.pop(number, (None, None))
            if found != num_chunks:
                raise ValueError(f"part {number} has {num_chunks} chunks in the latents, {found} in the documents")
    query = (
        "SELECT number, segment, id, parts.num_chunks FROM parts JOIN documents ON documents.row = parts.document "
        "WHERE number IN ({})"
    )
    stored = {number: (segment, (id_, n)) for number, segment, id_, n in select_in(connection, query, list(expected))}
    for number, (id_, num_chunks) in expected.items():
        if number not in stored:
            raise ValueError(f"part {number} of document {id_!r} has no latents, given or stored")
        if stored[number][1] != (id_, num_chunks):
            raise ValueError(
                f"part {number} was put with {num_chunks} chunks for document {id_!r}, it is stored with "
                f"{stored[number][1][1]} chunks for document {stored[number][1][0]!r}"
            )
    return {number: segment for number, (segment, _) in stored.items()}


def apply_changes(
    connection: sqlite3.Connection,
    put: Sequence[StoredDocument],
    delete: Sequence[str],
    segment_of: Mapping[int, int],
) -> None:
    """Delete and put documents; ``segment_of`` gives the segment row of every part of ``put``."""
    connection.executemany("DELETE FROM documents WHERE id = ?", ((id_,) for id_ in _storable(delete)))
    query = "SELECT id, row FROM documents WHERE id IN ({})"
    rows: dict[str, int] = dict(select_in(connection, query, [document.id for document in put]))
    replaced = [(row,) for row in rows.values()]
    connection.executemany("DELETE FROM parts WHERE document = ?", replaced)
    connection.executemany("DELETE FROM terms WHERE document = ?", replaced)
    next_row = connection.execute("SELECT coalesce(max(row), 0) + 1 FROM documents").fetchone()[0]
    for document in put:
        if document.id not in rows:
            rows[document.id] = next_row
            next_row += 1
    # An update keeps the row, and with it the document's place in the listing.
    connection.executemany(
        "INSERT INTO documents (row, id, text, metadata, content_hash, checksum) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (row) DO UPDATE SET text = excluded.text, metadata = excluded.metadata, "
        "content_hash = excluded.content_hash, checksum = excluded.checksum",
        ((rows[document.id], *_document_values(document)) for document in put),
    )
    connection.executemany(
        "INSERT INTO parts (number, document, position, start, stop, num_tokens, num_chunks, segment) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (p.number, rows[d.id], i, p.start, p.end, p.num_tokens, p.num_chunks, segment_of[p.number])
            for d in put
            for i, p in enumerate(d.parts)
        ),
    )
    connection.executemany(
        "INSERT INTO terms (digest, document) VALUES (?, ?)",
        ((digest, rows[document.id]) for document in put for digest in document_terms(document.metadata)),
    )


def _document_values(document: StoredDocument) -> tuple[str, str, str, str, str]:
    metadata = dump_json(document.metadata, f"the metadata of document {document.id!r}")
    return document.id, document.text, metadata, document.content_hash, document_checksum(document)


def document_checksum(document: StoredDocument) -> str:
    """Return the SHA-256, in hex, of everything stored of a document but its latents."""
    parts = [[p.number, p.start, p.end, p.num_tokens, p.num_chunks] for p in document.parts]
    metadata = dump_json(document.metadata, f"the metadata of document {document.id!r}")
    return hashlib.sha256(
        json.dumps([document.id, document.text, metadata, document.content_hash, parts]).encode()
    ).hexdigest()


def check_documents(connection: sqlite3.Connection, file: Path) -> Iterator[str]:
    """Yield a line for every document of the catalog ``file`` that fails its checksum."""
    row = 0
    while rows := connection.execute(
        "SELECT row, id, checksum FROM documents WHERE row > ? ORDER BY row LIMIT ?", (row, BATCH)
    ).fetchall():
        terms: dict[int, set[bytes]] = {}
        query = "SELECT document, digest FROM terms WHERE document IN ({})"
        for document, digest in select_in(connection, query, [each[0] for each in rows]):
            terms.setdefault(document, set()).add(digest)
        for number, id_, checksum in rows:
            if not _is_sound(connection, id_, checksum, terms.get(number, set())):
                yield f"{file}: document {id_!r} fails its checksum; delete it and add it again"
        row = rows[-1][0]


def _is_sound(connection: sqlite3.Connection, id_: str, checksum: str, terms: set[bytes]) -> bool:
    try:
        (document,) = documents_by_id(connection, [id_])
        return document_checksum(document) == checksum and set(document_terms(document.metadata)) == terms
    except (BankCorruptError, ValueError, TypeError, AttributeError, sqlite3.Error):
        return False


def document_terms(metadata: Mapping[str, Any]) -> set[bytes]:
    """Return a digest of every key with its value, by which filters find documents."""
    return {_term(key, value) for key, value in metadata.items()}


def _term(key: str, value: Any) -> bytes:
    text = dump_json([key, _whole_floats_as_int(value)], f"the value of metadata key {key!r}")
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _whole_floats_as_int(value: Any) -> Any:
    # JSON has one kind of number: 1 and 1.0 are equal.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_floats_as_int(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_floats_as_int(each) for each in value]
    return value


def affected_ids(connection: sqlite3.Connection, segment: int, limit: int = 5) -> str:
    """Describe the documents with latents in a segment, for the message that it is damaged."""
    query = "SELECT DISTINCT id FROM parts JOIN documents ON documents.row = document WHERE segment = ? ORDER BY id"
    ids = [id_ for (id_,) in connection.execute(query, (segment,))]
    if not ids:
        return "no document needs it; compact the memory"
    shown = ", ".join(map(repr, ids[:limit])) + (", ..." if len(ids) > limit else "")
    return f"it holds {len(ids)} document{'s' * (len(ids) > 1)}: {shown}"
