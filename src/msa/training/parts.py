"""Files cut into numbered parts and put together again, for ways that take no large files.

A list beside the parts says how many there are and what they make together, so that a cut that was cut off is noticed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from msa.training.files import replace_file

PART_BYTES = 16 * 1000 * 1000


def cut(path: Path, folder: Path) -> list[Path]:
    """A file as numbered parts in ``folder``, in place of those of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes()
    parts = []
    for number, start in enumerate(range(0, max(len(data), 1), PART_BYTES)):
        part = folder / f"{path.name}.part-{number:03d}"
        _write(part, data[start : start + PART_BYTES])
        parts.append(part)
    told = {"parts": len(parts), "sha256": hashlib.sha256(data).hexdigest()}
    _write(_list_of(folder, path.name), json.dumps(told).encode())
    for old in set(folder.glob(f"{path.name}.part-*")) - set(parts):
        old.unlink()
    return parts


def join(folder: Path) -> list[Path]:
    """Put the parts in ``folder`` together; the files that came of it.

    Raises:
        ValueError: no parts, one is missing, or they do not belong together.
    """
    names = sorted({part.name.rsplit(".part-", 1)[0] for part in folder.glob("*.part-[0-9]*")})
    if not names:
        raise ValueError(f"expected numbered parts in {folder}, found none; train first, or name another --out")
    for name in names:
        if not _list_of(folder, name).is_file():
            raise ValueError(f"{_list_of(folder, name)} is missing: the parts of {name} were not all written")
        told = json.loads(_list_of(folder, name).read_text(encoding="utf-8"))
        parts = [folder / f"{name}.part-{number:03d}" for number in range(told["parts"])]
        missing = [part.name for part in parts if not part.is_file()]
        if missing:
            raise ValueError(f"a part of {name} is missing in {folder}: {', '.join(missing)}")
        data = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            raise ValueError(f"the parts of {name} in {folder} do not belong together: fetch them again")
        _write(folder / name, data)
    return [folder / name for name in names]


def _write(path: Path, data: bytes) -> None:
    replace_file(path, lambda where: where.write_bytes(data))


def _list_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.parts.json"
