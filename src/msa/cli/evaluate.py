"""``msa eval``: RULER, memory size and depth, question sets, and every alternative beside them."""

from __future__ import annotations

import argparse
import re
import sys

from msa.cli import evaluating
from msa.cli.options import ANY_MODEL, ArgumentParser, Subparsers, add_command, add_tier_options, non_negative, positive


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command and its tasks."""
    parser = add_command(
        commands,
        "eval",
        lambda args: _no_task(parser),
        summary="measure a model with its memory, and the alternatives on the same backbone and questions",
        examples=["msa eval scaling --sizes 16K 64K 1M --out results/scaling", "msa eval ways"],
    )
    tasks = parser.add_subparsers(metavar="TASK", title="tasks", parser_class=ArgumentParser)
    _register_ruler(tasks)
    _register_scaling(tasks)
    _register_compare(tasks)
    _register_qa(tasks)
    add_command(
        tasks,
        "ways",
        evaluating.run_ways,
        summary="list the ways of answering that --ways takes",
        examples=["msa eval ways"],
    )
    _register_report(tasks)


def _register_ruler(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "ruler",
        evaluating.run_ruler,
        summary="RULER's needle tasks and variable tracking, each sample a memory of its own",
        details="The context is cut into documents; a needle never straddles a cut. Runs go on where they stopped.",
        examples=[
            "msa eval ruler --sizes 4K 8K --samples 50 --out results/ruler",
            "msa eval ruler --read ruler-data/ --out results/theirs",
        ],
        model=ANY_MODEL,
    )
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="such as niah_single_1 vt (default: the eight NIAH)")
    parser.add_argument(
        "--samples",
        type=positive,
        metavar="N",
        help="the first N of each task and size (default: 100, of --read all; theirs: 500); more of them later go on",
    )
    parser.add_argument("--read", metavar="DIR", help="ask RULER's own files, DIR/TASK/validation.jsonl, instead")
    parser.add_argument("--write", metavar="DIR", help="write the samples as RULER's JSONL too")
    _add_sizes(parser, "4K")
    _add_haystack(parser)
    parser.set_defaults(sizes=None, seed=None)  # so that what --read has no use for is seen to be given
    _add_ways(parser, ["msa"])
    _add_out(parser)


def _register_scaling(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "scaling",
        evaluating.run_scaling,
        summary="the same questions while a memory grows, and needles at every depth of every size",
        details="The memory only grows; it is kept in OUT/memory, and a stopped run goes on without encoding it again.",
        examples=["msa eval scaling --model msa-tiny --sizes 16K 64K 256K 1M 10M --out results/scaling"],
        model=ANY_MODEL,
    )
    _add_growing(parser, "16K", "64K", "256K")
    parser.add_argument("--max-rounds", type=non_negative, metavar="N", help="rounds of retrieval, at most")
    add_tier_options(parser)
    _add_out(parser)


def _register_compare(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "compare",
        evaluating.run_compare,
        summary="ways of answering side by side on the same needles, as the documents grow",
        examples=["msa eval compare --ways msa full --document-tokens 128 --sizes 8K 64K --out results/ways"],
        model=ANY_MODEL,
    )
    _add_growing(parser, "8K", "32K")
    _add_ways(parser, ["msa", "full", "streaming-llm", "rag-bm25@1"])
    _add_limits(parser)
    _add_out(parser)


def _register_qa(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "qa",
        evaluating.run_qa,
        summary="a question set (JSONL, BEIR, HippoRAG, LongBench, LongMemEval, MSA-RAG-BENCHMARKS), every way on it",
        examples=[
            "msa eval qa questions/ --ways msa rag-bm25@5 --out results/qa",
            "msa eval qa questions/ --documents 50 500 5000 --ways msa full --limits full=20 --out results/qa",
            "msa eval qa 2wikimqa.jsonl --judge --out results/qa",
            "msa eval qa fever/ --split dev --ways msa rag-bm25@10 --out results/fever",
        ],
        model=ANY_MODEL,
    )
    parser.add_argument("set", metavar="PATH", help="the set's file or folder")
    parser.add_argument("--format", default="auto", metavar="NAME", help="its format (default: by its files)")
    parser.add_argument("--split", metavar="NAME", help="of a BEIR folder: qrels/NAME.tsv (default: test)")
    parser.add_argument(
        "--corpus",
        nargs="+",
        default=[],
        metavar="FILE",
        help="documents of a set of our JSONL (default: its corpus.jsonl)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out records that are wrong, and say so")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N questions only; more later go on")
    parser.add_argument(
        "--documents", nargs="+", type=positive, metavar="N", help="over N documents, growing (default: all at once)"
    )
    parser.add_argument("--separate", action="store_true", help="ask each question over its own documents only")
    parser.add_argument(
        "--metric", metavar="NAME", help="of the table (default: contains, or what the set has instead)"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N", help="per answer (default: 64)")
    parser.add_argument("--judge", action="store_true", help="0 to 5 points by the model at $MSA_JUDGE_BASE_URL")
    parser.add_argument("--rubric", metavar="FILE", help="the judge's prompt (default: the shipped one)")
    _add_ways(parser, ["msa"])
    _add_limits(parser)
    _add_note(parser)
    _add_out(parser)


def _register_report(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "report",
        evaluating.run_report,
        summary="write the reports of finished runs again out of their records; nothing is asked",
        examples=["msa eval report results/scaling"],
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder that a run was given as --out")
    _add_note(parser)


def _add_note(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="for the report: what a reader of it must know"
    )


def _add_sizes(parser: ArgumentParser, *default: str) -> None:
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=tokens,
        default=[tokens(size) for size in default],
        metavar="TOKENS",
        help=f"growing, such as 16K 1M 100M; K is 1,000, so RULER's 4K is 4096 (default: {' '.join(default)})",
    )


def _add_growing(parser: ArgumentParser, *sizes: str) -> None:
    """What a memory that grows is filled with, and how far."""
    parser.add_argument("--task", default="niah_single_2", metavar="NAME", help="RULER's (default: niah_single_2)")
    parser.add_argument(
        "--questions",
        type=positive,
        metavar="N",
        help="of the first size (default: as many as the run in OUT, or for one needle a document; 11 to 110)",
    )
    parser.add_argument(
        "--document-tokens",
        type=positive,
        metavar="N",
        help="about how many tokens a document has (default: 512, or what the model reads in one piece); eleven "
        "documents are the smallest memory",
    )
    _add_sizes(parser, *sizes)
    _add_haystack(parser)


def _add_haystack(parser: ArgumentParser) -> None:
    parser.add_argument("--haystack", nargs="+", metavar="FILE", help="text for the essay tasks (default: shipped)")
    parser.add_argument("--seed", type=non_negative, default=42, metavar="N", help="of all that is drawn (default: 42)")
    parser.add_argument(
        "--held-out-words",
        action="store_true",
        default=None,
        help="make keys of words that msa-tiny and the default model were not trained on, a tenth of RULER's",
    )


def _add_ways(parser: ArgumentParser, default: list[str]) -> None:
    parser.add_argument(
        "--ways",
        nargs="+",
        default=default,
        metavar="NAME",
        help=f"ways of answering; 'msa eval ways' lists them (default: {' '.join(default)})",
    )
    parser.add_argument("--encoder", metavar="DIR", help="folder of an all-MiniLM-L6-v2 model, for rag-minilm")


def _add_limits(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--limits", nargs="+", type=limit, default=[], metavar="NAME=N", help="ask some ways the first N questions only"
    )


def _add_out(parser: ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="for records, results.json, report.md and pictures")


def limit(text: str) -> tuple[str, int]:
    """A way of answering and how many questions it gets, ``NAME=N``.

    >>> limit("map-reduce=20")
    ('map-reduce', 20)
    """
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"expected a way and a number of questions such as full=20, got {text!r}")
    return name, int(number)


def tokens(text: str) -> int:
    """A number of tokens: ``16K``, ``1M`` or plain digits; K is 1,000.

    >>> tokens("16K"), tokens("1.5M"), tokens("4096")
    (16000, 1500000, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip(), flags=re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected tokens such as 16K, 1M or 4096, got {text!r}")
    return int(float(match[1]) * 1000 ** " KMB".index(match[2].upper() or " "))


def _no_task(parser: ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return 2
