"""Files cut into numbered parts and put together again, for ways that take no large files."""

from __future__ import annotations

from pathlib import Path

PART_BYTES = 16 * 1000 * 1000


def cut(path: Path, folder: Path) -> list[Path]:
    """A file as numbered parts in ``folder``, in place of those of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{path.name}.part-*"):
        old.unlink()
    data = path.read_bytes()
    parts = []
    for number, start in enumerate(range(0, max(len(data), 1), PART_BYTES)):
        part = folder / f"{path.name}.part-{number:03d}"
        part.write_bytes(data[start : start + PART_BYTES])
        parts.append(part)
    return parts


def join(folder: Path) -> list[Path]:
    """Put the parts in ``folder`` together; the files that came of it.

    Raises:
        ValueError: no parts, or one is missing.
    """
    names = sorted({part.name.rsplit(".part-", 1)[0] for part in folder.glob("*.part-*")})
    if not names:
        raise ValueError(f"expected numbered parts in {folder}, found none; train first, or name another --out")
    for name in names:
        parts = sorted(folder.glob(f"{name}.part-*"))
        expected = [f"{name}.part-{number:03d}" for number in range(len(parts))]
        if [part.name for part in parts] != expected:
            raise ValueError(f"a part of {name} is missing in {folder}: found {', '.join(p.name for p in parts)}")
        (folder / name).write_bytes(b"".join(part.read_bytes() for part in parts))
    return [folder / name for name in names]
