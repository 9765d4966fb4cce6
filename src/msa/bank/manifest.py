"""Manifests: one small checksummed file per state of a memory. Renaming it into place is the commit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msa.bank.files import checksum, disk_errors, fsync_folder, remove, written_durably
from msa.bank.schema import BankSpec, dump_json
from msa.errors import BankCorruptError, BankError, BankFormatError

FORMAT = "memory-sparse-attention memory"
FORMAT_VERSION = 2
KNOWN_FEATURES: frozenset[str] = frozenset()
KEPT = 3
_NAME = re.compile(r"manifest-(\d{12})\.json")


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a manifest knows of a file.

    Attributes:
        num_bytes: its size.
        checksum: XXH3-128 in hex; of a latents file's header, which holds the checksum of every tensor, and of the
            whole of any other file.
    """

    num_bytes: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class SegmentInfo:
    """One segment: the documents of one commit or of several merged ones, and the latents of their new parts.

    Attributes:
        name: common to its files.
        documents: of ``<name>.documents.sqlite``.
        latents: of ``<name>.latents.safetensors``.
        num_parts, num_chunks: in the latents.
        num_superseded: documents of older segments that it replaces or deletes.
    """

    name: str
    documents: FileInfo
    latents: FileInfo
    num_parts: int
    num_chunks: int
    num_superseded: int

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        return self.documents.num_bytes + self.latents.num_bytes

    @property
    def file_names(self) -> list[str]:
        """Names of its files inside the folder of segments."""
        return [documents_name(self.name), latents_name(self.name)]


def segment_prefix(version: int) -> str:
    """What the names of a segment begin with that the commit of this version writes."""
    return f"{version:010d}-"


def documents_name(segment: str) -> str:
    """File name of a segment's documents."""
    return f"{segment}.documents.sqlite"


def latents_name(segment: str) -> str:
    """File name of a segment's latents."""
    return f"{segment}.latents.safetensors"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A state of the memory.

    Attributes:
        fingerprint: of the encoding model.
        spec: shape of the latents.
        version: number of commits so far.
        next_number: the smallest part number never used.
        next_place: the smallest place in the listing never used.
        segments: oldest first.
    """

    fingerprint: str
    spec: BankSpec
    version: int = 0
    next_number: int = 1
    next_place: int = 1
    segments: tuple[SegmentInfo, ...] = ()

    @property
    def file_names(self) -> set[str]:
        """Names of all files it refers to inside the folder of segments."""
        return {name for segment in self.segments for name in segment.file_names}


def manifest_file(folder: Path, version: int) -> Path:
    """Where the manifest of a version is."""
    return folder / f"manifest-{version:012d}.json"


def manifest_versions(folder: Path) -> list[int]:
    """Versions whose manifests are in the folder, ascending."""
    found = (_NAME.fullmatch(name) for name in os.listdir(folder))
    return sorted(int(match[1]) for match in found if match)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit a state: from the rename on, readers see it.

    Raises:
        BankError: the disk failed; the previous state is the present one. Only if the disk also refuses to take the
            new manifest back, the new state is; the message says so.
    """
    fields = vars(manifest) | {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "features": [],
        "spec": vars(manifest.spec),
        "segments": [
            vars(segment) | {"documents": vars(segment.documents), "latents": vars(segment.latents)}
            for segment in manifest.segments
        ],
    }
    text = _enclosed(dump_json(fields, "a manifest"))
    file = manifest_file(folder, manifest.version)
    with written_durably(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with disk_errors(file):
        try:
            fsync_folder(folder)
        except BaseException as error:
            remove(file)
            if isinstance(error, OSError) and file.exists():
                raise BankError(
                    f"{file} was written, but not synced ({error.strerror or error}), and cannot be removed: the "
                    "change is made, and a power failure may undo it. Repair the disk"
                ) from error
            raise


def _enclosed(body: str) -> str:
    """The text of a manifest file, canonical JSON as ``body`` is."""
    return f'{{"checksum":"{checksum(body.encode())}","manifest":{body}}}'


def read_manifest(folder: Path, version: int) -> Manifest:
    """Read and check a manifest.

    Raises:
        BankCorruptError: it is missing or damaged.
        BankFormatError: a format or features of another release.
        BankError: it cannot be read.
    """
    file = manifest_file(folder, version)
    try:
        text = file.read_bytes().decode("utf-8")
        body = json.loads(text)["manifest"]
        # every byte counts: a manifest is written in one way only
        sound = isinstance(body, dict) and _enclosed(dump_json(body, "")) == text
    except FileNotFoundError as error:
        raise BankCorruptError(f"{file} is missing: restore it from a copy") from error
    except OSError as error:
        raise BankError(f"{file} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BankCorruptError(f"{file} is damaged: {error}") from error
    if not sound:
        raise BankCorruptError(f"{file} is damaged: its checksum is wrong")
    try:
        _check_format(file, body)
        manifest = _from_json(body)
    except (ValueError, KeyError, TypeError) as error:
        raise BankCorruptError(f"{file} is damaged: {error!r}") from error
    if manifest.version != version:
        raise BankCorruptError(f"{file} is damaged: it says it is version {manifest.version}; do not rename manifests")
    return manifest


def _check_format(file: Path, body: Mapping[str, Any]) -> None:
    if body.get("format") != FORMAT:
        raise BankFormatError(f"{file} is not the manifest of a memory")
    problem = None
    if body.get("format_version") != FORMAT_VERSION:
        problem = f"has format version {body.get('format_version')}, this release reads version {FORMAT_VERSION}"
    elif unknown := sorted(set(map(str, body.get("features", []))) - KNOWN_FEATURES):
        problem = f"uses features this release does not know: {', '.join(unknown)}"
    if problem:
        raise BankFormatError(f"{file} {problem}. Open it with a newer release of memory-sparse-attention")


def _from_json(body: Mapping[str, Any]) -> Manifest:
    segments = tuple(
        SegmentInfo(
            **{**fields, "documents": FileInfo(**fields["documents"]), "latents": FileInfo(**fields["latents"])}
        )
        for fields in body["segments"]
    )
    return Manifest(
        fingerprint=body["fingerprint"],
        spec=BankSpec.from_json(json.dumps(body["spec"])),
        version=body["version"],
        next_number=body["next_number"],
        next_place=body["next_place"],
        segments=segments,
    )
