"""Text of a file whose reading may take any time and memory: read in a process of its own, within limits.

A PDF is a program for a page, and a parser of HTML mends what is broken; one made to be slow holds whoever reads it.
:mod:`msa.serving` reads uploads of both here, where a reader can be ended; files that a user names on the command line
are read in place (:mod:`msa.documents.readers`).

The process runs this file. It loads formats.py by its path: the whole package would take seconds, for torch.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msa.documents.formats import FileText

MAX_BYTES = 2 << 30  # that the process may address
_FORMATS = Path(__file__).with_name("formats.py")
_PDF_INSTEAD = "Send its text instead: pdftotext IN.pdf OUT.txt"
_HTML_INSTEAD = "Send its text instead: pandoc -t plain -o OUT.txt IN.html"


def extract_apart(file: Path, name: str, seconds: float) -> FileText:
    """What :func:`msa.documents.formats.extract` finds in a file.

    Args:
        file: with the bytes.
        name: of the file, as its user knows it; only the suffix is looked at.
        seconds: that it may take.

    Raises:
        NotTextError: it holds no text that can be read, or not within the limits.
    """
    from msa.documents.formats import HTML_SUFFIXES, FileText, NotTextError

    instead = _HTML_INSTEAD if PurePath(name).suffix.lower() in HTML_SUFFIXES else _PDF_INSTEAD
    command = [sys.executable, "-P", __file__, str(file), name, str(MAX_BYTES), str(int(seconds) + 1)]
    try:
        # what libraries write to standard error may quote the document
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise NotTextError(f"took longer than {seconds:g} s to read. {instead}") from error
    if done.returncode:
        raise NotTextError(f"could not be read within {MAX_BYTES >> 20:,} MiB of memory. {instead}")
    found = json.loads(done.stdout)
    if "reason" in found:
        raise NotTextError(found["reason"])
    return FileText(**found)


def _main(file: str, name: str, max_bytes: str, max_seconds: str) -> None:
    """In the process; it ends itself where nobody is left to end it."""
    import importlib.util

    _limit(resource.RLIMIT_AS, int(max_bytes))
    _limit(resource.RLIMIT_CPU, int(max_seconds))
    spec = importlib.util.spec_from_file_location("formats", _FORMATS)
    assert spec is not None
    assert spec.loader is not None
    formats = importlib.util.module_from_spec(spec)
    sys.modules["formats"] = formats  # dataclasses look their module up
    spec.loader.exec_module(formats)
    try:
        found = formats.extract(Path(file).read_bytes(), name)
        content = {"text": found.text, "title": found.title, "metadata": found.metadata}
    except formats.NotTextError as error:
        content = {"reason": str(error)}
    sys.stdout.write(json.dumps(content))


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    _main(*sys.argv[1:])
