"""Build calibration.jsonl: the text that the routers of a converted model are whitened by.

Each line holds a document and a question that it answers: ``{"text": ..., "question": ...}``. Only second moments of
hidden states are estimated from them, so what counts is breadth: of domains, of words and of ways to ask. Four kinds
are mixed:

* descriptions of Debian packages, each with a question of calibration/packages.txt, none of them among the demo's
  documents;
* entries of WordNet;
* passages of the Python documentation: questions of the FAQ, modules, functions (calibration/functions.txt) and the
  glossary;
* invented notes, biographies, recipes and the like, from templates.

One module of ``calibration/`` makes each kind.

On a Debian 12 machine, after ``apt-get update``::

    apt-get download wordnet-base python3.11-doc
    for deb in wordnet-base_*.deb python3.11-doc_*.deb; do dpkg-deb -x "$deb" unpacked; done
    /usr/lib/apt/apt-helper cat-file /var/lib/apt/lists/*_main_i18n_Translation-en* > translation-en.txt
    python benchmarks/data/build_calibration.py \
        --translation translation-en.txt \
        --wordnet unpacked/usr/share/wordnet \
        --python-docs unpacked/usr/share/doc/python3.11/html

The same inputs and the same seed always give the same file. CALIBRATION-LICENSES.md, beside the file, names the
sources and their licences.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

from calibration.entries import MAX_CHARACTERS, MIN_CHARACTERS, Entry
from calibration.packages import package_entries
from calibration.python_docs import python_entries
from calibration.templates import template_entries
from calibration.words import word_entries

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 330_000


def main() -> None:
    """Write the entries of all sources, shuffled, one JSON object a line."""
    parser = argparse.ArgumentParser(description="Build the shipped calibration text.")
    parser.add_argument("--translation", type=Path, required=True, help="Debian's Translation-en list, decompressed")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun, index.noun, ...")
    parser.add_argument("--python-docs", type=Path, required=True, help="folder with library/, faq/, glossary.html")
    parser.add_argument("--exclude", type=Path, default=ROOT / "examples" / "packages.jsonl", help="demo documents")
    parser.add_argument("--output", type=Path, default=ROOT / "src" / "msa" / "conversion" / "calibration.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    with arguments.exclude.open(encoding="utf-8") as file:
        excluded = {json.loads(line)["id"] for line in file}
    sources = {
        "packages": package_entries(arguments.translation, excluded),
        "words": word_entries(arguments.wordnet, random.Random(arguments.seed)),
        "python": python_entries(arguments.python_docs, random.Random(arguments.seed + 1)),
        "templates": template_entries(random.Random(arguments.seed + 2)),
    }
    entries = []
    for name, source in sources.items():
        found = list(source)
        characters = sum(len(text) for text, _ in found)
        print(f"{name}: {len(found)} entries, {characters / len(found):.0f} characters a text")
        entries += found
    try:
        check(entries)
    except ValueError as error:
        sys.exit(f"build_calibration.py: {error}")
    random.Random(arguments.seed).shuffle(entries)
    lines = [json.dumps({"text": text, "question": question}, ensure_ascii=False) for text, question in entries]
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    if len(data) > MAX_BYTES:
        sys.exit(f"build_calibration.py: {len(data):,} bytes, more than {MAX_BYTES:,}")
    arguments.output.write_bytes(data)
    print(f"{arguments.output.name}: {len(entries)} entries, {len(data):,} bytes")


def check(entries: list[Entry]) -> None:
    """Every text of the right length, and no text or question twice."""
    for text, question in entries:
        if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            raise ValueError(f"{len(text)} characters: {text[:60]!r}")
        if not question.strip():
            raise ValueError(f"no question: {text[:60]!r}")
    for column in zip(*entries, strict=True):
        twice = [value for value, count in Counter(column).items() if count > 1]
        if twice:
            raise ValueError(f"more than once: {twice[:3]}")


if __name__ == "__main__":
    main()
