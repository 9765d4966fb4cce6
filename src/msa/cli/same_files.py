"""What ``msa add`` tells of documents whose id or file is in the memory already, but not the two together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msa.bank import MemoryBank, StoredDocument
    from msa.documents import Document


def other_files(bank: MemoryBank, changed: Iterable[Document]) -> Iterator[str]:
    """A line for each document with a new text whose id the memory has from another file.

    That is what becomes of two folders of the same name. A file that is gone has been moved: nothing is lost with it.
    """
    documents = {document.id: document for document in changed}
    for stored in bank.sound_documents(documents).values():
        before, now = _file_of(stored), _file_of(documents[stored.id])
        if before and now and not os.path.samefile(before, now):
            yield f"{now} replaces {before}, another file, which was added as {stored.id!r} before"


def other_ids(bank: MemoryBank, new: Iterable[Document]) -> Iterator[str]:
    """A line for each file given by its own path that the memory has under another id, from a folder that was given."""
    for document in new:
        path = _file_of(document)
        if not path or path != document.id:
            continue
        parts = PurePath(os.path.abspath(path)).parts
        ids = {"/".join(parts[start:]) for start in range(1, len(parts))} - {document.id}
        for stored in bank.sound_documents(bank.content_hashes(ids)).values():
            before = _file_of(stored)
            if before and os.path.samefile(before, path):
                yield (
                    f"{path} is in the memory as {stored.id!r} too, which stays as it is. "
                    "Give the folder again to update that one, or delete one of them with msa delete"
                )


def _file_of(document: Document | StoredDocument) -> str | None:
    """The file that a document was read from, if it is still there."""
    path = document.metadata.get("path")
    return path if isinstance(path, str) and os.path.isfile(path) else None
