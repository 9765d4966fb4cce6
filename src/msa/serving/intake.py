"""From what a client sends to checked documents: JSON bodies, JSON lines and uploaded files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any

from msa.documents import Document
from msa.documents.apart import extract_apart
from msa.documents.formats import NotTextError, clean_text, extract, needs_limits
from msa.documents.readers import documents_from_mappings
from msa.documents.records import read_jsonl
from msa.errors import DocumentError
from msa.serving.errors import ApiError
from msa.serving.memories import sync_folder

_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_READ_BYTES = 1 << 20
_BEGINNING_BYTES = 16  # tell a PDF whatever its name
_MAX_METADATA_BYTES = 1 << 18
_MAX_HEADER_BYTES = 1 << 14
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "�")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one document: bytes of its text or file, characters of its id, seconds until a PDF or HTML page is read."""

    max_document_bytes: int
    max_id_characters: int
    pdf_timeout_s: float = 120.0


def checked(documents: Iterator[Document], limits: Limits) -> Iterator[Document]:
    """The same documents, none too large and all metadata storable.

    Raises:
        ApiError: one is too large: 413; an id is too long: 400.
        DocumentError: an id that has no address, or metadata that cannot be stored.
    """
    for document in documents:
        if len(document.id) > limits.max_id_characters:
            raise ApiError(
                400,
                f"the id {document.id[:40]!r}… has {len(document.id)} characters; {limits.max_id_characters} are "
                "allowed",
                "invalid_document",
                param="id",
            )
        if document.id in (".", ".."):  # clients resolve it: DELETE …/documents/.. would be asked of the whole memory
            raise DocumentError(f"the id {document.id!r} cannot stand in an address; give the document another one")
        if len(document.text.encode()) > limits.max_document_bytes:
            raise too_large(f"document {document.id!r}", limits.max_document_bytes)
        if len(json.dumps(document.metadata)) > _MAX_METADATA_BYTES:
            raise too_large(f"the metadata of document {document.id!r}", _MAX_METADATA_BYTES)
        yield document


def too_large(what: str, limit: int) -> ApiError:
    """413."""
    return ApiError(413, f"{what} is larger than {limit:,} bytes, which is the limit; send less at a time", "too_large")


def documents_of_body(body: Any, limits: Limits) -> list[Document]:
    """Documents of a JSON body: ``{"documents": [...]}`` or one ``{"text": ...}``.

    Raises:
        ApiError: neither of them, or a document is too large.
        DocumentError: an item that is no document.
    """
    if isinstance(body, Mapping) and isinstance(body.get("documents"), list):
        items = body["documents"]
    elif isinstance(body, Mapping) and "text" in body and "documents" not in body:
        items = [body]
    else:
        raise ApiError(
            400,
            'expected {"documents": [{"id": "a", "text": "...", "metadata": {}}, ...]} or one {"text": "..."}',
            "invalid_document",
            param="documents",
        )
    return [*checked(documents_from_mappings(items, "documents"), limits)]


def read_upload(raw: Path, content_type: str, limits: Limits) -> Iterator[Document]:
    """Documents of a body that was kept in a file.

    Args:
        raw: the file.
        content_type: the request's header: JSON lines or ``multipart/form-data``.
        limits: of each document.

    Raises:
        DocumentError: a line or file that holds no document; it is named.
        ApiError: a document is too large: 413.
    """
    with open(raw, "rb") as body:
        if media_type(content_type) == "multipart/form-data":
            yield from checked(_files_of(body, content_type, raw.parent, limits), limits)
        else:
            yield from checked(_documents_of_lines(body, "body", limits), limits)


def media_type(content_type: str) -> str:
    """``text/x`` of ``Text/X; charset=utf-8``."""
    return content_type.partition(";")[0].strip().lower()


def _documents_of_lines(body: IO[bytes], name: str, limits: Limits) -> Iterator[Document]:
    """Documents of JSON lines, none longer than a document can be as JSON."""
    most = 2 * limits.max_document_bytes + _MAX_METADATA_BYTES
    return read_jsonl(_lines(body, name, limits, most), name, max_characters=most)


def _lines(body: IO[bytes], name: str, limits: Limits, most: int) -> Iterator[bytes]:
    while line := body.readline(most + 1):
        if len(line) > most:
            raise too_large(f"a line of {name}", limits.max_document_bytes)
        yield line


def _files_of(body: IO[bytes], content_type: str, scratch: Path, limits: Limits) -> Iterator[Document]:
    number_of_files = 0
    for name, file in _parts(body, content_type, scratch):
        number_of_files += 1
        try:
            if name.lower().endswith(_JSONL_SUFFIXES):
                with open(file, "rb") as lines:
                    yield from _documents_of_lines(lines, name, limits)
            else:
                if file.stat().st_size > limits.max_document_bytes:
                    raise too_large(name, limits.max_document_bytes)
                yield _document_of_file(name, file, limits)
        finally:
            file.unlink(missing_ok=True)  # after a failure the whole folder may be gone first
    if not number_of_files:
        raise DocumentError("the form holds no file; send each as a part with a file name: -F file=@report.pdf")


def _document_of_file(name: str, file: Path, limits: Limits) -> Document:
    with open(file, "rb") as stream:
        beginning = stream.read(_BEGINNING_BYTES)
    try:
        apart = needs_limits(beginning, name)
        found = extract_apart(file, name, limits.pdf_timeout_s) if apart else extract(file.read_bytes(), name)
    except NotTextError as error:
        raise DocumentError(f"{name} {error}") from error
    title = found.title or PurePosixPath(name).name
    return Document(id=name, text=found.text, metadata={"path": name, "title": title} | found.metadata)


class _PartReceiver:
    """Callbacks of the form parser: writes each part that has a file name to a file of its own."""

    def __init__(self, scratch: Path) -> None:
        self.finished: list[tuple[str, Path]] = []
        self._scratch = scratch
        self._count = 0
        self._header = [bytearray(), bytearray()]
        self._disposition = ""
        self._file: IO[bytes] | None = None
        self._name = ""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._header, self._disposition, self._file = [bytearray(), bytearray()], "", None

    def _add(self, which: int, data: bytes) -> None:
        self._header[which] += data
        if len(self._header[which]) > _MAX_HEADER_BYTES:
            raise DocumentError("a part of the form has a header that is too long")

    def _end_header(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = bytes(self._header[1]).decode("utf-8", "replace")
        self._header = [bytearray(), bytearray()]

    def _end_headers(self) -> None:
        self._name = _file_name(self._disposition)
        if self._name:
            self._count += 1
            self._path = self._scratch / f"part-{self._count}"
            self._file = open(self._path, "wb")  # noqa: SIM115 - closed at the part's end

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self.finished.append((self._name, self._path))
            self._file = None

    def close(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
        for _, path in self.finished:
            path.unlink(missing_ok=True)


def _parts(body: IO[bytes], content_type: str, scratch: Path) -> Iterator[tuple[str, Path]]:
    """File name and a file of each part that has a file name, one after another."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    boundary = boundary_of(content_type)
    if not boundary:
        raise DocumentError("multipart/form-data needs a boundary in its content type; let your client set the header")
    receiver = _PartReceiver(scratch)
    try:
        parser = MultipartParser(boundary, receiver.callbacks())  # type: ignore[arg-type]
        while block := body.read(_READ_BYTES):
            parser.write(block)
            while receiver.finished:
                yield receiver.finished.pop(0)
        parser.finalize()
        yield from receiver.finished
        receiver.finished = []
    except FormParserError as error:
        raise DocumentError(f"the form cannot be read ({error}). Send it as multipart/form-data") from error
    finally:
        receiver.close()


def boundary_of(content_type: str) -> bytes:
    """What parts the parts of a form with this content type; empty: it is none, or says nothing that can be read.

    >>> boundary_of('multipart/form-data; boundary="a b"')
    b'a b'
    """
    from python_multipart.multipart import parse_options_header

    try:
        return parse_options_header(content_type)[1].get(b"boundary", b"")
    # parsers of parameters, Python's own among them, meet odd ones with almost any exception
    except Exception:
        return b""


def _file_name(disposition: str) -> str:
    """The file name of a part, as an id; empty: it is no file.

    Raises:
        DocumentError: it has one that cannot be read.

    >>> _file_name('form-data; name="file"; filename="notes/a.md"')
    'notes/a.md'
    """
    message = Message()
    message["content-disposition"] = disposition.replace("\r", " ").replace("\n", " ")
    try:
        given = message.get_filename() or ""
    # a part that is passed over would be lost without a word
    except Exception as error:
        raise DocumentError(
            'a part of the form has a file name that cannot be read; send it as filename="..."'
        ) from error
    return clean_text(given).replace("\\", "/").translate(_CONTROL).strip().removeprefix("./")


def write_lines(documents: Iterator[Document], file: Path) -> tuple[int, int]:
    """Write documents as JSON lines to a new file, whole and synced or not at all.

    Returns:
        How many, and their characters.
    """
    temporary = file.with_suffix(".tmp")
    number = characters = 0
    with open(temporary, "w", encoding="utf-8") as lines:
        for document in documents:
            record = {"id": document.id, "text": document.text, "metadata": document.metadata}
            lines.write(json.dumps(record) + "\n")
            number += 1
            characters += len(document.text)
        lines.flush()
        os.fsync(lines.fileno())
    temporary.replace(file)
    sync_folder(file.parent)
    return number, characters


def holds_lines(file: Path, number: int) -> bool:
    """Whether a file is there that :func:`write_lines` wrote so many documents to, and it has them all."""
    try:
        with open(file, "rb") as lines:
            return sum(block.count(b"\n") for block in iter(lambda: lines.read(_READ_BYTES), b"")) == number
    except FileNotFoundError:
        return False


def read_lines(file: Path) -> Iterator[Document]:
    """What :func:`write_lines` wrote."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            yield Document(**json.loads(line))
