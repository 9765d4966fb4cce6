"""What ``msa eval`` runs: each task with the options it was given, its results left in the folder ``--out``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa.cli.console import working, write, write_line, write_table
from msa.cli.evaluation_needles import (
    complete,
    counter,
    growing_memory,
    ruler_samples,
    seen_before,
    untaught,
    whole_document_tokens,
)
from msa.cli.evaluation_settings import ruler_digest, set_digest, settings_of, settings_of_records
from msa.cli.options import UsageError, tiers_of

if TYPE_CHECKING:
    from msa.evaluation import QuestionSet
    from msa.evaluation.alternatives import WayMaker
    from msa.evaluation.judge import JudgeSettings
    from msa.evaluation.records import Record
    from msa.model.bundle import MSAModel

# of the table of a question set, where --metric names none: the first of these that its answers get
_METRICS = ("contains", "longbench", "exact_match", "recall@10", "abstained")
_UNJUDGED = (
    "the judge's points are missing: it was not asked about every answer yet, the same command goes on with that"
)
_COUNTED = (
    "samples of files; their size is that of the longest in this model's tokens: prompt, answer prefix, and what is "
    "kept free for the answer"
)


def run_ways(args: argparse.Namespace) -> int:
    """List the ways of answering."""
    from msa.evaluation.alternatives import ALTERNATIVES

    write_table([[name, way.description] for name, way in ALTERNATIVES.items()])
    return 0


def run_report(args: argparse.Namespace) -> int:
    """Write the reports of stored runs again."""
    from msa.evaluation.rewriting import rewrite_report

    for folder in map(Path, args.folders):
        rewrite_report(folder, args.note)
        write_line(f"written to {folder}")
    return 0


def _model(args: argparse.Namespace) -> MSAModel:
    from msa.cli.opening import quiet_libraries
    from msa.zoo import load

    quiet_libraries(args)
    return load(args.model, device=args.device, dtype=args.dtype)


def _maker(args: argparse.Namespace, model: MSAModel) -> WayMaker:
    from msa.evaluation.alternatives import WayMaker

    return WayMaker(model, Path(args.out), encoder=args.encoder)


def _check_ways(args: argparse.Namespace) -> None:
    from msa.evaluation.alternatives import ALTERNATIVES

    unknown = [name for name in args.ways if name not in ALTERNATIVES]
    if unknown:
        raise UsageError(f"no way of answering is called {unknown[0]!r}; 'msa eval ways' lists them")
    unused = [name for name, _ in getattr(args, "limits", []) if name not in args.ways]
    if unused:
        raise UsageError(f"--limits names {unused[0]!r}, which --ways does not")
    dense = [name for name in args.ways if ALTERNATIVES[name].needs_encoder]
    if dense and not args.encoder:
        raise UsageError(f"{dense[0]} needs --encoder, the folder of an all-MiniLM-L6-v2 model")


def _show(folder: Path) -> int:
    from msa.evaluation.results import REPORT_NAME

    write((folder / REPORT_NAME).read_text(encoding="utf-8"))
    write_line(f"\nwritten to {folder}")
    return 0


def run_ruler(args: argparse.Namespace) -> int:
    """RULER's tasks, each sample a memory of its own."""
    from msa.errors import EvaluationError
    from msa.evaluation.records import RECORDS_NAME, RecordLog
    from msa.evaluation.report import report_ruler
    from msa.evaluation.ruler import NIAH, find_task, sample_sets, write_samples
    from msa.evaluation.runs import run_samples

    _check_ways(args)
    tasks = [find_task(name).name for name in args.tasks or NIAH]
    complete(args, tasks)
    model, folder = _model(args), Path(args.out)
    count = counter(model)
    batches = list(ruler_samples(args, tasks, count))  # what cannot be made is said before anything is asked
    if not batches:
        raise EvaluationError(f"{args.read} holds no samples of {', '.join(tasks)}. Name others with --tasks")
    settings = settings_of("ruler", args, model, **ruler_digest(args))
    kept = settings_of_records(folder, settings, ("samples", "seed") if args.read else ("samples",))
    records: list[Record] = []
    notes = [*([_COUNTED] if args.read else []), *seen_before(args, model, tasks)]
    make = _maker(args, model)
    with RecordLog(folder / RECORDS_NAME, kept) as log, working("preparing the questions") as say:
        for size, samples in batches:
            if args.write:
                samples = list(samples)
                write_samples(Path(args.write) / str(size), samples, count)
            sets = sample_sets(samples, count, document_tokens=whole_document_tokens(model))
            found, said = run_samples(make, args.ways, sets, log, size_tokens=size, say=say)
            records += found
            notes += said
    sizes = list(dict.fromkeys(size for size, _ in batches))
    report_ruler(folder, {**settings, "ways": args.ways, "tasks": tasks, "sizes": sizes}, records, notes)
    return _show(folder)


def run_scaling(args: argparse.Namespace) -> int:
    """The same questions while a memory grows."""
    import torch

    from msa.evaluation.cost import Shape
    from msa.evaluation.growth import read_growth
    from msa.evaluation.records import RECORDS_NAME, RecordLog
    from msa.evaluation.scaling import run_scaling as run
    from msa.evaluation.scaling_report import report_scaling, scaling_costs

    model, folder = _model(args), Path(args.out)
    growing = growing_memory(args, model)
    settings = settings_of("scaling", args, model)
    options = {} if args.max_rounds is None else {"max_rounds": args.max_rounds}
    with RecordLog(folder / RECORDS_NAME, settings) as log, working("preparing the questions") as say:
        records = run(
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
    costs = scaling_costs(growing.sizes, read_growth(folder), shape, top_k)
    attention = {"top_k_docs": top_k, "router_layers": list(shape.router_layers)}
    settings |= {"sizes": args.sizes}
    notes = [*growing.notes, *seen_before(args, model, [args.task])]
    report_scaling(folder, settings, records, growing.placement, costs, notes, attention=attention)
    return _show(folder)


def run_compare(args: argparse.Namespace) -> int:
    """Ways side by side over needles, as the documents grow."""
    from msa.evaluation.growth import read_growth
    from msa.evaluation.records import RECORDS_NAME, RecordLog
    from msa.evaluation.report import report_comparison
    from msa.evaluation.side_by_side import SideBySide

    _check_ways(args)
    model, folder = _model(args), Path(args.out)
    growing = growing_memory(args, model)
    settings = settings_of("compare", args, model)
    with RecordLog(folder / RECORDS_NAME, settings) as log, working("preparing the questions") as say:
        comparison = SideBySide(
            make=_maker(args, model), growing=growing, log=log, folder=folder, say=say, limits=dict(args.limits)
        )
        records = comparison.run(args.ways)
    settings |= {"ways": args.ways, "sizes": args.sizes}
    notes = [*growing.notes, *seen_before(args, model, [args.task])]
    report_comparison(folder, settings, records, "match", notes, read_growth(folder))
    return _show(folder)


def _metric(args: argparse.Namespace, questions: QuestionSet, *, judged: bool) -> str:
    """What the table shows, of answers that the judge has been asked about or not.

    Raises:
        UsageError: no answer to these questions will have it.
    """
    from msa.evaluation.scoring import metric_names

    known = [*metric_names(questions.questions), *(["judge"] if args.judge else [])]
    metric: str = args.metric or next((name for name in _METRICS if name in known), _METRICS[0])
    if metric not in known:
        raise UsageError(f"no answer to {args.set} is scored by {metric!r}; --metric takes {', '.join(known)}")
    if metric == "judge" and not judged:
        return next((name for name in _METRICS if name in known), known[0])
    return metric


def _question_set(args: argparse.Namespace) -> QuestionSet:
    """The set as it is asked.

    Raises:
        UsageError: options that exclude each other.
    """
    from dataclasses import replace

    from msa.evaluation.sets import read_question_set

    if args.documents and args.separate:
        raise UsageError("--documents grows one memory for all questions, --separate gives each its own; choose one")
    whole = read_question_set(args.set, args.format, corpus=args.corpus, split=args.split, skip_bad=args.skip_bad)
    return replace(whole, questions=whole.questions[: args.limit])


def run_qa(args: argparse.Namespace) -> int:
    """A question set, every way on it."""
    from msa.evaluation.growing_set import GrowingSet
    from msa.evaluation.judge import JudgeSettings
    from msa.evaluation.judging import JUDGE_NAME, unjudged
    from msa.evaluation.records import RECORDS_NAME, RecordLog
    from msa.evaluation.runs import run_sets
    from msa.evaluation.scoring import score_answer
    from msa.evaluation.sets import separate
    from msa.evaluation.side_by_side import SideBySide

    _check_ways(args)
    rubric = {"rubric": Path(args.rubric).read_text(encoding="utf-8")} if args.rubric else {}
    judge = JudgeSettings.from_environment(**rubric) if args.judge else None
    if judge is not None:  # a file of another judge is refused before anything is asked
        unjudged((), Path(args.out) / JUDGE_NAME, judge)
    whole = _question_set(args)
    metric = _metric(args, whole, judged=True)
    model, folder = _model(args), Path(args.out)
    count, make, limits = counter(model), _maker(args, model), dict(args.limits)
    growing = GrowingSet(whole, args.documents, count) if args.documents else None
    settings = settings_of("qa", args, model, set=set_digest(whole, growing is not None))
    # which documents come first depends on the questions, so where documents grow their number is not extended
    kept = settings_of_records(folder, settings, () if growing else ("limit",))
    given = {"max_new_tokens": args.max_new_tokens, "limits": limits}
    with RecordLog(folder / RECORDS_NAME, kept) as log, working("preparing the questions") as say:
        if growing:
            comparison = SideBySide(
                make=make, growing=growing, log=log, folder=folder, say=say, scorer=score_answer, **given
            )
            records = comparison.run(args.ways)
        else:
            sets = list(separate(whole)) if args.separate else [whole]
            records = run_sets(make, args.ways, sets, log, count=count, say=say, **given)
    settings["ways"] = args.ways
    notes = [*(growing.notes if growing else whole.notes), *untaught(args.ways), *args.note]
    if judge is None:
        return _report_set(folder, settings, records, metric, notes)
    plain = _metric(args, whole, judged=False)
    return _report_judged(folder, settings, records, (plain, metric), notes, judge)


def _report_set(
    folder: Path, settings: Mapping[str, Any], records: Sequence[Record], metric: str, notes: Sequence[str]
) -> int:
    from msa.evaluation.growth import read_growth
    from msa.evaluation.report import report_comparison

    report_comparison(folder, settings, records, metric, notes, read_growth(folder))
    return _show(folder)


def _report_judged(
    folder: Path,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    metrics: tuple[str, str],
    notes: Sequence[str],
    judge: JudgeSettings,
) -> int:
    """Report first without the judge's points, so that nothing else is lost where it fails, and then with them.

    Args:
        folder, settings, records, notes: of the run.
        metrics: of the table without its points, and with them.
        judge: who it is.
    """
    from msa.errors import JudgeError
    from msa.evaluation.growth import read_growth
    from msa.evaluation.judging import JUDGE_NAME, judge_records, unjudged
    from msa.evaluation.report import report_comparison

    path = folder / JUDGE_NAME
    if unjudged(records, path, judge):
        report_comparison(folder, settings, records, metrics[0], [*notes, _UNJUDGED], read_growth(folder))
    try:
        judged, stamp = judge_records(records, path, judge)
    except JudgeError as error:
        raise JudgeError(f"{error}. All answers are reported in {folder}, without its points") from error
    return _report_set(folder, {**settings, "judge": stamp}, judged, metrics[1], notes)
