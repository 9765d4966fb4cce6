"""2,000 Debian package descriptions and 1,000 questions about them, for ``benchmarks/retrieval.py``.

    python benchmarks/data/build_package_questions.py TRANSLATION-EN OUT_FOLDER

TRANSLATION-EN is Debian's long-description list (``apt-get -o Acquire::Languages=en update``; then, unpacked,
``/var/lib/apt/lists/*_Translation-en.lz4``; bookworm was used). A question is a package's short description, without
its name, alone or in one of a few phrases; the document is its long description. Deterministic for one list.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

PHRASES = (
    "{}",
    "{}",
    "{}",
    "Which Debian package provides a {}?",
    "I need software for: {}",
    "What can I install to get a {}?",
    "Find a package: {}",
    "Is there a program that is a {}?",
)
STANZA = re.compile(r"Package: (\S+)\nDescription-md5: \S+\nDescription-en: (.*)\n((?: .*\n?)*)")
PREFIX = re.compile(r"^(lib|python3?-|golang-|node-|ruby-|r-cran-|haskell-)")


def main() -> None:
    """Read the list, choose, write ``documents.jsonl`` and ``questions.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("translation", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    drawn = random.Random(1)
    packages: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for block in args.translation.read_text(errors="ignore").split("\n\n"):
        match = STANZA.match(block)
        if not match:
            continue
        name, short, long = match.groups()
        long = re.sub(r"\s+", " ", re.sub(r"^ \.$", "", long, flags=re.M)).strip()
        if len(long) < 120 or re.search(r"(dummy|transitional) package", long + short, re.I):
            continue
        if re.search(r"-(dbg|dbgsym|doc|data|common|dev)$", name) or long[:150] in seen:
            continue
        short = re.sub(re.escape(name), "", re.sub(r"\([^)]*\)", "", short), flags=re.I)
        core = re.sub(r"-?(perl|java|dev|ruby|el)$", "", PREFIX.sub("", name))
        short = re.sub(r"\s+", " ", re.sub(r"\b" + re.escape(core) + r"\b", "", short, flags=re.I)).strip(" -:,")
        if len(short.split()) < 4:
            continue
        seen.add(long[:150])
        packages.append((name, short, long[:800]))
    drawn.shuffle(packages)
    chosen = packages[:2000]
    args.out.mkdir(parents=True, exist_ok=True)
    documents = [json.dumps({"id": name, "text": f"{name}: {long}"}) for name, _, long in chosen]
    questions = [
        json.dumps({"question": drawn.choice(PHRASES).format(short), "document": name}) for name, short, _ in chosen
    ]
    (args.out / "documents.jsonl").write_text("\n".join(documents) + "\n")
    (args.out / "questions.jsonl").write_text("\n".join(questions[:1000]) + "\n")


if __name__ == "__main__":
    main()
