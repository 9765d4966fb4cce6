"""Questions over real texts for training and testing retrieval: build the data set out of files on this machine.

    python recipes/build_data.py --out DIR --debian DIR --wordnet DIR --foldoc DIR --python-docs DIR --biographies

Writes corpus.jsonl, train.jsonl, validation.jsonl, test.jsonl and manifest.json. Nothing is downloaded: an option whose
folder lacks files says which Debian package has them. The FOLDOC texts are under the GNU Free Documentation License.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from msa.errors import TrainingDataError
from msa.training.data.build import BuildOptions, build
from msa.training.data.sources import Biographies, DebianPackages, Foldoc, PythonDocs, Source, WordNet
from msa.training.data.sources.text import DOCUMENT_CHARACTERS, DOCUMENT_WORDS

logger = logging.getLogger("build_data")

FILES = {
    "debian": (DebianPackages, "folder with avail.txt (apt-cache dumpavail) and translation-en.txt"),
    "wordnet": (WordNet, "folder of the unpacked package wordnet-base"),
    "foldoc": (Foldoc, "folder of the unpacked package dict-foldoc"),
    "python": (PythonDocs, "folder of the unpacked package python3.x-doc"),
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    for name, (_, help_text) in FILES.items():
        option = "--python-docs" if name == "python" else f"--{name}"
        parser.add_argument(option, dest=name, type=Path, metavar="DIR", help=help_text)
    parser.add_argument("--biographies", action="store_true", help="also made-up people, with questions of two hops")
    parser.add_argument(
        "--documents",
        nargs="+",
        default=["5000"],
        metavar="N",
        help="documents per source, at most: a number, or SOURCE=N for some (default: 5000); "
        f"sources: {', '.join([*FILES, 'biographies'])}",
    )
    parser.add_argument("--words", type=int, default=DOCUMENT_WORDS, help="words of a document, at most")
    parser.add_argument("--characters", type=int, default=DOCUMENT_CHARACTERS, help="characters of one, at most")
    parser.add_argument("--test", type=float, default=BuildOptions.test, help="share of test documents")
    parser.add_argument("--validation", type=float, default=BuildOptions.validation, help="share of validation ones")
    parser.add_argument("--hold-out", nargs="+", default=[], metavar="SOURCE", help="sources that only test")
    parser.add_argument("--unanswerable", type=int, default=0, metavar="N", help="such questions per source, at most")
    parser.add_argument(
        "--unanswerable-answer", default=BuildOptions.unanswerable_answer, help="what to answer to these"
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to count tokens with; otherwise words")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.biographies and not any(getattr(args, name) for name in FILES):
        parser.error("give at least one source: --debian, --wordnet, --foldoc, --python-docs or --biographies")
    try:
        args.documents = document_counts(args.documents)
    except ValueError as error:
        parser.error(str(error))
    return args


def document_counts(given: list[str]) -> dict[str, int]:
    """``["1000", "debian=200"]`` → documents of every source.

    Raises:
        ValueError: an unknown source, or no number.
    """
    counts = dict.fromkeys((*FILES, "biographies"), 5000)
    for item in sorted(given, key=lambda item: "=" in item):
        source, _, number = item.rpartition("=")
        if not number.isdecimal() or (source and source not in counts):
            raise ValueError(f"--documents takes N or SOURCE=N with a source of {', '.join(counts)}; found {item!r}")
        counts |= {source: int(number)} if source else dict.fromkeys(counts, int(number))
    return counts


def token_counter(path: Path) -> Callable[[str], int]:
    """Tokens of a text, counted with a ``tokenizer.json``."""
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text).ids)


def main() -> None:
    """Build the data set and log what it holds."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_arguments()
    sources: list[Source] = [
        make(getattr(args, name), args.words, args.characters)
        for name, (make, _) in FILES.items()
        if getattr(args, name)
    ]
    if args.biographies:
        sources.append(Biographies())
    options = BuildOptions(
        test=args.test,
        validation=args.validation,
        hold_out_sources=args.hold_out,
        unanswerable=args.unanswerable,
        unanswerable_answer=args.unanswerable_answer,
        count_tokens=token_counter(args.tokenizer) if args.tokenizer else None,
    )
    try:
        manifest = build(sources, args.documents, args.seed, args.out, options)
    except (TrainingDataError, ValueError) as error:
        logger.error("%s", error)
        sys.exit(1)
    for name, report in manifest["sources"].items():
        logger.info("%s %s", name, json.dumps({key: value for key, value in report.items() if key != "inputs"}))


if __name__ == "__main__":
    main()
