"""``msa eval``: RULER, memory size and depth, question sets, and every alternative beside them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa.cli.console import working, write, write_line, write_table
from msa.cli.options import (
    ArgumentParser,
    Subparsers,
    UsageError,
    add_command,
    add_tier_options,
    non_negative,
    positive,
    tiers_of,
)

if TYPE_CHECKING:
    from msa.evaluation import Answerer
    from msa.evaluation.haystack import Essay
    from msa.evaluation.ruler import GrowingMemory, Sample
    from msa.model.bundle import MSAModel


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
        tasks, "ways", _run_ways, summary="list the ways of answering that --ways takes", examples=["msa eval ways"]
    )


def _register_ruler(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "ruler",
        _run_ruler,
        summary="RULER's needle tasks and variable tracking, each sample a memory of its own",
        details="The context is cut into documents; a needle never straddles a cut. Runs go on where they stopped.",
        examples=[
            "msa eval ruler --sizes 4K 8K --samples 50 --out results/ruler",
            "msa eval ruler --read ruler-data/ --out results/theirs",
        ],
        model=True,
    )
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="such as niah_single_1 vt (default: the eight NIAH)")
    parser.add_argument(
        "--samples", type=positive, default=100, metavar="N", help="per task (default: 100; theirs: 500)"
    )
    parser.add_argument("--read", metavar="DIR", help="ask RULER's own files, DIR/TASK/validation.jsonl, instead")
    parser.add_argument("--write", metavar="DIR", help="write the samples as RULER's JSONL too")
    _add_sizes(parser, "4K")
    _add_haystack(parser)
    _add_ways(parser, ["msa"])
    _add_out(parser)


def _register_scaling(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "scaling",
        _run_scaling,
        summary="the same questions while a memory grows, and needles at every depth of every size",
        details="The memory only grows; it is kept in OUT/memory, and a stopped run goes on without encoding it again.",
        examples=["msa eval scaling --model msa-tiny --sizes 16K 64K 256K 1M 10M --out results/scaling"],
        model=True,
    )
    _add_growing(parser, "16K", "64K", "256K")
    parser.add_argument("--max-rounds", type=non_negative, metavar="N", help="rounds of retrieval, at most")
    add_tier_options(parser)
    _add_out(parser)


def _register_compare(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "compare",
        _run_compare,
        summary="ways of answering side by side on the same needles, as the documents grow",
        examples=["msa eval compare --ways msa full rag-bm25@1 --sizes 2K 8K --out results/ways"],
        model=True,
    )
    _add_growing(parser, "2K", "8K")
    _add_ways(parser, ["msa", "full", "streaming-llm", "rag-bm25@1"])
    _add_out(parser)


def _register_qa(tasks: Subparsers[ArgumentParser]) -> None:
    parser = add_command(
        tasks,
        "qa",
        _run_qa,
        summary="a question set (JSONL, BEIR, HippoRAG, LongBench, LongMemEval, MSA-RAG-BENCHMARKS), every way on it",
        examples=[
            "msa eval qa questions/ --ways msa rag-bm25@5 --out results/qa",
            "msa eval qa 2wikimqa.jsonl --judge",
        ],
        model=True,
    )
    parser.add_argument("set", metavar="PATH", help="the set's file or folder")
    parser.add_argument("--format", default="auto", metavar="NAME", help="its format (default: by its files)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out records that are wrong, and say so")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N questions only")
    parser.add_argument("--separate", action="store_true", help="ask each question over its own documents only")
    parser.add_argument("--metric", default="contains", metavar="NAME", help="of the table (default: contains)")
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N", help="per answer (default: 64)")
    parser.add_argument("--judge", action="store_true", help="0 to 5 points by the model at $MSA_JUDGE_BASE_URL")
    parser.add_argument("--rubric", metavar="FILE", help="the judge's prompt (default: the shipped one)")
    _add_ways(parser, ["msa"])
    _add_out(parser)


def _add_sizes(parser: ArgumentParser, *default: str) -> None:
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=tokens,
        default=[tokens(size) for size in default],
        metavar="TOKENS",
        help=f"growing, such as 16K 1M 100M (default: {' '.join(default)})",
    )


def _add_growing(parser: ArgumentParser, *sizes: str) -> None:
    """What a memory that grows is filled with, and how far."""
    parser.add_argument("--task", default="niah_single_2", metavar="NAME", help="RULER's (default: niah_single_2)")
    parser.add_argument("--questions", type=positive, default=110, metavar="N", help="of the first size (default: 110)")
    _add_sizes(parser, *sizes)
    _add_haystack(parser)


def _add_haystack(parser: ArgumentParser) -> None:
    parser.add_argument("--haystack", nargs="+", metavar="FILE", help="text for the essay tasks (default: shipped)")
    parser.add_argument("--seed", type=non_negative, default=42, metavar="N", help="of all that is drawn (default: 42)")


def _add_ways(parser: ArgumentParser, default: list[str]) -> None:
    parser.add_argument(
        "--ways",
        nargs="+",
        default=default,
        metavar="NAME",
        help=f"ways of answering; 'msa eval ways' lists them (default: {' '.join(default)})",
    )
    parser.add_argument("--encoder", metavar="DIR", help="folder of an all-MiniLM-L6-v2 model, for rag-minilm")


def _add_out(parser: ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="for records, results.json, report.md and pictures")


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


def _run_ways(args: argparse.Namespace) -> int:
    from msa.evaluation.alternatives import ALTERNATIVES

    write_table([[name, way.description] for name, way in ALTERNATIVES.items()])
    return 0


def _model(args: argparse.Namespace) -> MSAModel:
    from msa.cli.opening import quiet_libraries
    from msa.zoo import load

    quiet_libraries(args)
    return load(args.model, device=args.device, dtype=args.dtype)


def _counter(model: MSAModel) -> Callable[[str], int]:
    return lambda text: len(model.protocol.plain_ids(text))


def _essay(args: argparse.Namespace) -> Essay | None:
    from msa.evaluation.haystack import load_essay

    return load_essay([Path(path) for path in args.haystack]) if args.haystack else None


def _maker(args: argparse.Namespace, model: MSAModel) -> Callable[[str], Answerer]:
    from msa.evaluation.alternatives import make

    def way(name: str) -> Answerer:
        options = {"encoder": args.encoder} if name.startswith("rag-minilm") else {}
        return make(name, model, **options)

    return way


def _check_ways(args: argparse.Namespace) -> None:
    from msa.evaluation.alternatives import ALTERNATIVES

    unknown = [name for name in args.ways if name not in ALTERNATIVES]
    if unknown:
        raise UsageError(f"no way of answering is called {unknown[0]!r}; 'msa eval ways' lists them")


def _settings(task: str, args: argparse.Namespace, model: MSAModel, *names: str, **more: Any) -> dict[str, Any]:
    """What decides the results: the model, the options of these names, and what else is given."""
    given = {name: getattr(args, name) for name in names}
    return {"task": task, "model": model.name, "fingerprint": model.fingerprint, **given, **more}


def _show(folder: Path) -> int:
    from msa.evaluation.report import REPORT_NAME

    write((folder / REPORT_NAME).read_text(encoding="utf-8"))
    write_line(f"\nwritten to {folder}")
    return 0


def _run_ruler(args: argparse.Namespace) -> int:
    from msa.errors import EvaluationError
    from msa.evaluation.records import RecordLog
    from msa.evaluation.report import report_ruler
    from msa.evaluation.ruler import NIAH, find_task, sample_sets, write_samples
    from msa.evaluation.runs import run_samples

    _check_ways(args)
    tasks = [find_task(name).name for name in args.tasks or NIAH]
    model, folder = _model(args), Path(args.out)
    count = _counter(model)
    settings = _settings("ruler", args, model, "samples", "seed", "haystack", "read")
    batches = list(_samples(args, tasks, count))  # what cannot be made is said before anything is asked
    records, notes = [], []
    with RecordLog(folder / "records.jsonl", settings) as log, working("preparing the questions") as say:
        for size, samples in batches:
            if args.write:
                samples = list(samples)
                write_samples(Path(args.write) / str(size), samples, count)
            sets = sample_sets(samples, count)
            found, said = run_samples(_maker(args, model), args.ways, sets, log, size_tokens=size, say=say)
            records += found
            notes += said
    if not records:
        raise EvaluationError(f"{args.read} holds no samples of {', '.join(tasks)}. Name others with --tasks")
    report_ruler(folder, {**settings, "ways": args.ways, "tasks": tasks, "sizes": args.sizes}, records, notes)
    return _show(folder)


def _samples(
    args: argparse.Namespace, tasks: Collection[str], count: Callable[[str], int]
) -> Iterator[tuple[int, Iterable[Sample]]]:
    """RULER's samples with their size, 0 for those of files."""
    from msa.evaluation.ruler import SampleMaker, read_folder

    if args.read:
        yield 0, (sample for sample in read_folder(Path(args.read)) if sample.task in tasks)
        return
    essay = _essay(args)
    for size in args.sizes:
        for task in tasks:
            yield size, SampleMaker(task, size, count, seed=args.seed, essay=essay).samples(args.samples)


def _growing(args: argparse.Namespace, model: MSAModel) -> GrowingMemory:
    from msa.evaluation.ruler import GrowingMemory

    return GrowingMemory(
        args.task, args.sizes, _counter(model), num_questions=args.questions, seed=args.seed, essay=_essay(args)
    )


def _run_scaling(args: argparse.Namespace) -> int:
    import torch

    from msa.evaluation.cost import Shape
    from msa.evaluation.records import RecordLog
    from msa.evaluation.report import report_scaling
    from msa.evaluation.scaling import read_growth, run_scaling

    model, folder = _model(args), Path(args.out)
    growing = _growing(args, model)
    names = ("questions", "seed", "haystack", "max_rounds", "routing_keys", "content")
    settings = _settings("scaling", args, model, *names, ruler_task=args.task)
    options = {} if args.max_rounds is None else {"max_rounds": args.max_rounds}
    with RecordLog(folder / "records.jsonl", settings) as log, working("preparing the questions") as say:
        records = run_scaling(
            model,
            growing,
            folder,
            log,
            tiers=tiers_of(args),
            ask_options=options,
            on_growth=lambda size, done: say(f"growing to {size:,} tokens: {done.tokens:,} encoded"),
            on_question=lambda size, number, total: say(f"{size:,} tokens: question {number} of {total}"),
        )
    shape = Shape.of(model.lm.config, getattr(torch, str(model.lm.dtype).removeprefix("torch.")))
    top_k = model.lm.config.top_k_docs
    report_scaling(folder, {**settings, "sizes": args.sizes}, records, growing, read_growth(folder), shape, top_k)
    return _show(folder)


def _run_compare(args: argparse.Namespace) -> int:
    from msa.evaluation.records import RecordLog
    from msa.evaluation.report import report_comparison
    from msa.evaluation.runs import run_growing

    _check_ways(args)
    model, folder = _model(args), Path(args.out)
    growing = _growing(args, model)
    settings = _settings("compare", args, model, "questions", "seed", "haystack", ruler_task=args.task)
    with RecordLog(folder / "records.jsonl", settings) as log, working("preparing the questions") as say:
        records = run_growing(_maker(args, model), args.ways, growing, log, say)
    report_comparison(folder, {**settings, "ways": args.ways, "sizes": args.sizes}, records, "match", growing.notes)
    return _show(folder)


def _run_qa(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from msa.evaluation.judge import JudgeSettings
    from msa.evaluation.judging import judge_records
    from msa.evaluation.records import RecordLog
    from msa.evaluation.report import report_comparison
    from msa.evaluation.runs import run_sets
    from msa.evaluation.sets import read_question_set, separate

    _check_ways(args)
    rubric = {"rubric": Path(args.rubric).read_text(encoding="utf-8")} if args.rubric else {}
    judge = JudgeSettings.from_environment(**rubric) if args.judge else None
    whole = read_question_set(args.set, args.format, skip_bad=args.skip_bad)
    whole = replace(whole, questions=whole.questions[: args.limit])
    sets = list(separate(whole)) if args.separate else [whole]
    model, folder = _model(args), Path(args.out)
    settings = _settings("qa", args, model, "set", "format", "limit", "separate", "max_new_tokens")
    with RecordLog(folder / "records.jsonl", settings) as log, working("preparing the questions") as say:
        records = run_sets(
            _maker(args, model),
            args.ways,
            sets,
            log,
            count=_counter(model),
            max_new_tokens=args.max_new_tokens,
            say=say,
        )
    settings["ways"] = args.ways
    if judge is not None:
        records, settings["judge"] = judge_records(records, folder / "judge.jsonl", judge)
    report_comparison(folder, settings, records, args.metric, whole.notes)
    return _show(folder)
