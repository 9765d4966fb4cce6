"""What ``msa eval`` runs: each task with the options it was given, its results left in the folder ``--out``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa.cli.console import working, write, write_line, write_table
from msa.cli.options import UsageError, tiers_of

if TYPE_CHECKING:
    from msa.evaluation import Answerer, QuestionSet
    from msa.evaluation.haystack import Essay
    from msa.evaluation.records import Record
    from msa.evaluation.ruler import GrowingMemory, Sample
    from msa.model.bundle import MSAModel

# options that change no answer and no score: whom and what is asked, what is shown, where it is kept
_HARMLESS = {
    "run",
    "debug",
    "verbose",
    "out",
    "write",
    "note",
    "ways",
    "limits",
    "tasks",
    "sizes",
    "metric",
    "skip_bad",
}
# options that change answers or scores and are kept by what they come to: the model's, the judge's in its own file
_RESOLVED = {"model", "device", "dtype", "judge", "rubric"}
_DENSE = "rag-minilm"  # how the names of ways that need an encoder begin
# of the table of a question set, where --metric names none: the first of these that its answers get
_METRICS = ("contains", "longbench", "exact_match", "recall@10", "abstained")
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


def _counter(model: MSAModel) -> Callable[[str], int]:
    return lambda text: len(model.protocol.plain_ids(text))


def _essay(args: argparse.Namespace) -> Essay | None:
    from msa.evaluation.haystack import load_essay

    return load_essay([Path(path) for path in args.haystack]) if args.haystack else None


def _maker(args: argparse.Namespace, model: MSAModel) -> Callable[..., Answerer]:
    from msa.evaluation.alternatives import make

    def way(name: str, **options: Any) -> Answerer:
        if name.startswith(_DENSE):
            options["encoder"] = args.encoder
        return make(name, model, **options)

    return way


def _check_ways(args: argparse.Namespace) -> None:
    from msa.evaluation.alternatives import ALTERNATIVES

    unknown = [name for name in args.ways if name not in ALTERNATIVES]
    if unknown:
        raise UsageError(f"no way of answering is called {unknown[0]!r}; 'msa eval ways' lists them")
    unused = [name for name, _ in getattr(args, "limits", []) if name not in args.ways]
    if unused:
        raise UsageError(f"--limits names {unused[0]!r}, which --ways does not")
    dense = [name for name in args.ways if name.startswith(_DENSE)]
    if dense and not args.encoder:
        raise UsageError(f"{dense[0]} needs --encoder, the folder of an all-MiniLM-L6-v2 model")


def _settings(task: str, args: argparse.Namespace, model: MSAModel, **contents: str) -> dict[str, Any]:
    """What decides the results: the model, its device and number format, all options but harmless ones, and contents.

    Args:
        task: of ``msa eval``.
        args: its options.
        model: that answers.
        contents: digests of what the folders and files that options name hold; haystacks and encoders are added.
    """
    options = {name: value for name, value in vars(args).items() if name not in _HARMLESS | _RESOLVED}
    if "task" in options:
        options["ruler_task"] = options.pop("task")
    for name in ("haystack", "encoder"):
        if options.get(name):
            contents[name] = _digest_of(options[name])
    device, dtype = model.lm.device.type, str(model.lm.dtype).removeprefix("torch.")
    stamp = {"task": task, "model": model.name, "fingerprint": model.fingerprint, "device": device, "dtype": dtype}
    return {**stamp, **options, "contents": contents or None}


def _digest_of(paths: str | Sequence[str]) -> str:
    """Digest of files, or of all files in a folder."""
    from msa.evaluation.digests import files_digest

    given = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    folders = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in given]
    return files_digest(path for folder in folders for path in folder if not path.is_dir())


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
    model, folder = _model(args), Path(args.out)
    count = _counter(model)
    batches = list(_samples(args, tasks, count))  # what cannot be made is said before anything is asked
    settings = _settings("ruler", args, model, **_read_digest(args))
    records: list[Record] = []
    notes = [_COUNTED] if args.read else []
    with RecordLog(folder / RECORDS_NAME, settings) as log, working("preparing the questions") as say:
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


def _read_digest(args: argparse.Namespace) -> dict[str, str]:
    """Of RULER's files in ``--read``; whatever else lies there is not looked at."""
    from msa.evaluation.ruler.files import FILE

    return {"read": _digest_of([str(path) for path in sorted(Path(args.read).glob(f"*/{FILE}"))])} if args.read else {}


def _samples(
    args: argparse.Namespace, tasks: Collection[str], count: Callable[[str], int]
) -> Iterator[tuple[int, Iterable[Sample]]]:
    """RULER's samples with their size; that of samples in files is the tokens of the longest."""
    from msa.evaluation.ruler import SampleMaker, read_by_size

    if args.read:
        for size, samples in read_by_size(Path(args.read), count):
            yield size, (sample for sample in samples if sample.task in tasks)
        return
    essay = _essay(args)
    for size in args.sizes:
        for task in tasks:
            maker = SampleMaker(task, size, count, seed=args.seed, essay=essay)
            maker.sample(0)  # raises where none fits
            yield size, maker.samples(args.samples)


def _num_questions(args: argparse.Namespace) -> int:
    """Of the first size: what is asked for, what the run that is gone on from has, or one needle a document."""
    from msa.evaluation.records import RECORDS_NAME, begun_with
    from msa.evaluation.ruler import default_questions

    begun = begun_with(Path(args.out) / RECORDS_NAME) or {}
    number: int | None = args.questions or begun.get("questions")
    return number or default_questions(args.task, args.sizes[0], document_tokens=args.document_tokens)


def _growing(args: argparse.Namespace, model: MSAModel) -> GrowingMemory:
    """The memory that is grown; the number of its questions is an option like the others from here on."""
    from msa.evaluation.ruler import GrowingMemory

    args.questions = _num_questions(args)
    return GrowingMemory(
        args.task,
        args.sizes,
        _counter(model),
        num_questions=args.questions,
        seed=args.seed,
        document_tokens=args.document_tokens,
        essay=_essay(args),
    )


def run_scaling(args: argparse.Namespace) -> int:
    """The same questions while a memory grows."""
    import torch

    from msa.evaluation.cost import Shape
    from msa.evaluation.growth import read_growth
    from msa.evaluation.records import RECORDS_NAME, RecordLog
    from msa.evaluation.scaling import run_scaling as run
    from msa.evaluation.scaling_report import report_scaling, scaling_costs

    model, folder = _model(args), Path(args.out)
    growing = _growing(args, model)
    settings = _settings("scaling", args, model)
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
    report_scaling(folder, settings, records, growing.placement, costs, growing.notes, attention=attention)
    return _show(folder)


def run_compare(args: argparse.Namespace) -> int:
    """Ways side by side over needles, as the documents grow."""
    from msa.evaluation.growth import read_growth
    from msa.evaluation.records import RECORDS_NAME, RecordLog
    from msa.evaluation.report import report_comparison
    from msa.evaluation.side_by_side import SideBySide

    _check_ways(args)
    model, folder = _model(args), Path(args.out)
    growing = _growing(args, model)
    settings = _settings("compare", args, model)
    with RecordLog(folder / RECORDS_NAME, settings) as log, working("preparing the questions") as say:
        comparison = SideBySide(
            make=_maker(args, model), growing=growing, log=log, folder=folder, say=say, limits=dict(args.limits)
        )
        records = comparison.run(args.ways)
    settings |= {"ways": args.ways, "sizes": args.sizes}
    report_comparison(folder, settings, records, "match", growing.notes, read_growth(folder))
    return _show(folder)


def _metric(args: argparse.Namespace, questions: QuestionSet) -> str:
    """What the table shows.

    Raises:
        UsageError: no answer to these questions will have it.
    """
    from msa.evaluation.scoring import metric_names

    known = [*metric_names(questions.questions), *(["judge"] if args.judge else [])]
    metric: str = args.metric or next((name for name in _METRICS if name in known), _METRICS[0])
    if metric not in known:
        raise UsageError(f"no answer to {args.set} is scored by {metric!r}; --metric takes {', '.join(known)}")
    return metric


def _set_digest(questions: QuestionSet, is_growing: bool) -> str:
    """Of the documents, and of the questions where they say which documents come first; else each record keeps its own.

    So further questions about the same documents go on with what is there.
    """
    from msa.evaluation.digests import value_digest

    asked = [[one.id, one.positives] for one in questions.questions] if is_growing else []
    return value_digest([list(questions.documents.items()), asked])


def run_qa(args: argparse.Namespace) -> int:
    """A question set, every way on it."""
    from dataclasses import replace

    from msa.evaluation.growing_set import GrowingSet
    from msa.evaluation.growth import read_growth
    from msa.evaluation.judge import JudgeSettings
    from msa.evaluation.judging import judge_records
    from msa.evaluation.records import RECORDS_NAME, RecordLog
    from msa.evaluation.report import report_comparison
    from msa.evaluation.runs import run_sets
    from msa.evaluation.scoring import score_answer
    from msa.evaluation.sets import read_question_set, separate
    from msa.evaluation.side_by_side import SideBySide

    _check_ways(args)
    if args.documents and args.separate:
        raise UsageError("--documents grows one memory for all questions, --separate gives each its own; choose one")
    rubric = {"rubric": Path(args.rubric).read_text(encoding="utf-8")} if args.rubric else {}
    judge = JudgeSettings.from_environment(**rubric) if args.judge else None
    whole = read_question_set(args.set, args.format, skip_bad=args.skip_bad)
    whole = replace(whole, questions=whole.questions[: args.limit])
    metric = _metric(args, whole)
    model, folder = _model(args), Path(args.out)
    count, make, limits = _counter(model), _maker(args, model), dict(args.limits)
    growing = GrowingSet(whole, args.documents, count) if args.documents else None
    settings = _settings("qa", args, model, set=_set_digest(whole, growing is not None))
    given = {"max_new_tokens": args.max_new_tokens, "limits": limits}
    with RecordLog(folder / RECORDS_NAME, settings) as log, working("preparing the questions") as say:
        if growing:
            comparison = SideBySide(
                make=make, growing=growing, log=log, folder=folder, say=say, scorer=score_answer, **given
            )
            records = comparison.run(args.ways)
        else:
            sets = list(separate(whole)) if args.separate else [whole]
            records = run_sets(make, args.ways, sets, log, count=count, say=say, **given)
    settings["ways"] = args.ways
    if judge is not None:
        records, settings["judge"] = judge_records(records, folder / "judge.jsonl", judge)
    notes = [*(growing.notes if growing else whole.notes), *args.note]
    report_comparison(folder, settings, records, metric, notes, read_growth(folder))
    return _show(folder)
