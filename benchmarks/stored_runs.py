"""What ``msa eval`` left below a folder, where it was measured, and what it was not asked to measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.plots import token_count
from msa.evaluation.results import RESULTS_NAME, count_of, read_results, stored_notes

LARGEST = 100_000_000  # tokens that each shipped model's memory is to be asked at
_RULER_LARGEST = 128_000  # of the sizes that RULER is published with
SCALING_SIZES = "--sizes 16K 64K 256K 1M 4M 10M 100M"
# what each shipped model is to be asked: tasks of which one will do → model → the command that does it
WANTED = {
    ("scaling",): {
        "msa-tiny": f"msa eval scaling --model msa-tiny {SCALING_SIZES} --out results/scaling-msa-tiny",
        "smollm2-135m": f"msa eval scaling --model smollm2-135m --questions 55 {SCALING_SIZES} "
        "--out results/scaling-smollm2-135m",
    },
    ("ruler",): {
        model: f"msa eval ruler --model {model} --sizes 4K 16K --samples 100 --ways msa rag-bm25@1 "
        f"--out results/ruler-{model}"
        for model in ("msa-tiny", "smollm2-135m")
    },
    ("compare", "qa"): {
        "msa-tiny": "msa eval compare --model msa-tiny --document-tokens 128 --sizes 12K 128K 1M --questions 55 "
        "--ways msa rag-bm25@1 full --out results/compare-msa-tiny",
        "smollm2-135m": "python benchmarks/real_documents.py --data DATA --encoder MINILM",
    },
}


@dataclass(frozen=True)
class Run:
    """One run of ``msa eval``: its folder and what ``results.json`` says."""

    folder: Path
    content: dict[str, Any]

    @property
    def task(self) -> str:
        """``scaling``, ``ruler``, ``compare`` or ``qa``."""
        return str(self.content["settings"]["task"])

    @property
    def model(self) -> str:
        """Its name."""
        return str(self.content["settings"].get("model"))

    @property
    def results(self) -> dict[str, Any]:
        """The numbers."""
        return dict(self.content["results"])

    @property
    def title(self) -> str:
        """The model, what it was asked, and what else the folder is named after: ``scaling-msa-tiny-…``."""
        settings = self.content["settings"]
        _, _, more = self.folder.name.partition(f"{self.task}-{self.model}-")
        asked = settings.get("ruler_task") or settings.get("set") or "RULER"
        return f"{settings['model']}, {asked}" + (f" ({more.replace('-', ' ')})" if more else "")

    @property
    def command(self) -> str:
        """What made the run, for tables behind the first one."""
        return f"`{self.content['environment']['command']}`; machine, date and commit as above."

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores must know."""
        return stored_notes(self.folder, self.content)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Name the run where its results are not as this version writes them."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"{self.folder / RESULTS_NAME} is not as this version writes it ({error!r}); "
                f"write it again: msa eval report {self.folder}"
            ) from error

    @property
    def origin(self) -> str:
        """Command, machine, date and commit; of each stretch where there are several."""
        made, settings = self.content["environment"], self.content["settings"]
        hidden = ("task", "fingerprint")
        given = [f"{name} {value}" for name, value in settings.items() if name not in hidden and value is not None]
        stretches = self.content.get("stretches", [])
        where = [f"{_where(one)}: {count_of(one)}" for one in stretches] if len(stretches) > 1 else [_where(made)]
        return f"`msa eval {self.task}`: {', '.join(given)} ({'; '.join(where)})"


def read_runs(folder: Path) -> list[Run]:
    """Every run below a folder, in the order of its path."""
    return [Run(path.parent, read_results(path.parent)) for path in sorted(folder.rglob(RESULTS_NAME))]


def not_run(runs: Sequence[Run]) -> Iterator[str]:
    """What a shipped model was not asked, and whose memory was not asked at its largest."""
    for tasks, commands in WANTED.items():
        for model, command in commands.items():
            found = [run for run in runs if run.task in tasks and run.model == model]
            if not found:
                yield f"{model}: no `msa eval {'` or `msa eval '.join(tasks)}` was run: `{command}`"
            elif tasks == ("scaling",):
                yield from _below_largest(model, found, command)
    yield from _never_asked(runs)


def _never_asked(runs: Sequence[Run]) -> Iterator[str]:
    """What ``msa eval`` can do and no run has done."""
    settings = [run.content["settings"] for run in runs]
    ruler = [each for each in settings if each["task"] == "ruler"]
    if not any("vt" in each.get("tasks", ()) for each in ruler):
        yield "RULER's variable tracking: asked of no model; `msa eval ruler --tasks vt`"
    largest = max((max(each.get("sizes", [0])) for each in ruler), default=0)
    if largest < _RULER_LARGEST:
        yield f"RULER at {token_count(_RULER_LARGEST)} tokens: asked at up to {token_count(largest)}"
    if not any(each["task"] == "qa" and "real-documents" not in str(each.get("set")) for each in settings):
        yield (
            "LongBench, LongMemEval, BEIR and the authors' MSA-RAG-BENCHMARKS: read and scored (`msa eval qa`), but "
            "they cannot be shipped, and no run over them is stored"
        )
    if not any(each.get("judge") for each in settings):
        yield "answers judged by a model (`msa eval qa --judge`): none"


def _below_largest(model: str, runs: Sequence[Run], command: str) -> Iterator[str]:
    """A remark where no memory of these runs was asked at :data:`LARGEST` tokens."""
    sizes = []
    for run in runs:
        with run.reading():
            sizes.append(max(point["size"] for point in run.results["curve"]))
    if max(sizes) < LARGEST:
        asked = f"its memory was asked at up to {token_count(max(sizes))} tokens, not at {token_count(LARGEST)}"
        yield f"{model}: {asked}: `{command}`"


def _where(made: Mapping[str, Any]) -> str:
    """Machine, date and commit; records of earlier versions may not have them."""
    if "date" not in made:
        return "not noted where"
    commit = f", commit {made['commit']}" if made.get("commit") else ""
    return f"{made['machine']}, {made['threads']} threads, {made['device']}, {made['date']}{commit}"
