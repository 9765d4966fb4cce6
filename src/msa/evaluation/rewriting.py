"""The report of a stored run written again out of its records: nothing is asked, and no model is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.growth import read_growth
from msa.evaluation.records import RECORDS_NAME, Record, read_records
from msa.evaluation.report import report_comparison, report_ruler
from msa.evaluation.results import RESULTS_NAME, read_results, stored_notes
from msa.evaluation.ruler import Placement
from msa.evaluation.scaling_report import report_scaling
from msa.evaluation.summary import as_one_size


def rewrite_report(folder: Path, notes: Sequence[str] = ()) -> None:
    """Write ``results.json``, ``report.md`` and pictures of a finished run as this version does.

    What cannot be told from the records stays as it was: costs, settings, and the stamp of the run, beside which the
    page says when and by which commit it was written again.

    Args:
        folder: of the run.
        notes: to be added to the run's own.

    Raises:
        EvaluationError: a file is missing or damaged, the records are not those of the results, or a judge's points
            belong to them.
    """
    content = read_results(folder)
    path = folder / RESULTS_NAME
    if content["settings"].get("judge"):
        raise EvaluationError(f"{path} has points of a judge, which are not in the records; run the evaluation again")
    _, records = read_records(folder / RECORDS_NAME)
    kept = [*stored_notes(folder, content), *notes]
    write = {"scaling": _scaling, "ruler": _ruler}.get(content["settings"]["task"], _comparison)
    try:
        write(folder, content, records, kept)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{path} is not as an evaluation writes it ({error!r}); run it again") from error


def _scaling(folder: Path, content: Mapping[str, Any], records: Sequence[Record], notes: Sequence[str]) -> None:
    settings, results = content["settings"], content["results"]
    placement = Placement(
        settings["ruler_task"],
        settings["sizes"],
        num_questions=settings["questions"],
        document_tokens=settings["document_tokens"],
    )
    asked = {("msa", size): len(placement.ids(size)) for size in placement.sizes}
    report_scaling(
        folder,
        settings,
        _shown(records, asked),
        placement,
        results["costs"],
        notes,
        attention={name: results[name] for name in ("top_k_docs", "router_layers")},
        made=content["environment"],
    )


def _ruler(folder: Path, content: Mapping[str, Any], records: Sequence[Record], notes: Sequence[str]) -> None:
    scores = content["results"]["scores"]
    asked = {(entry["answerer"], entry["size"]): sum(task["samples"] for task in entry["tasks"]) for entry in scores}
    tasks = {(entry["answerer"], entry["size"]): {task["task"] for task in entry["tasks"]} for entry in scores}
    kept = [one for one in records if one.task in tasks.get((one.answerer, one.size_tokens), ())]
    report_ruler(folder, content["settings"], _shown(kept, asked), notes, made=content["environment"])


def _comparison(folder: Path, content: Mapping[str, Any], records: Sequence[Record], notes: Sequence[str]) -> None:
    results = content["results"]
    metric = results["metric"]
    asked = {(row["answerer"], row["size_tokens"]): row["questions"] for row in results["rows"]}
    if content["settings"].get("separate"):
        records = as_one_size(records)
    shown, growth = _shown(records, asked, metric), read_growth(folder) or results.get("growth", [])
    report_comparison(folder, content["settings"], shown, metric, notes, growth, made=content["environment"])


def _shown(records: Sequence[Record], asked: Mapping[tuple[str, int], int], metric: str | None = None) -> list[Record]:
    """The records that a report was made of, row by row; a folder may hold more.

    Args:
        records: of the folder.
        asked: (way, size) → how many questions it was asked.
        metric: that those counted have.

    Raises:
        EvaluationError: there are other numbers of them.
    """
    shown = []
    for (name, size), number in asked.items():
        found = [record for record in records if (record.answerer, record.size_tokens) == (name, size)]
        counted = sum(metric is None or metric in record.scores for record in found)
        if counted != number:
            raise EvaluationError(
                f"the records hold {counted} answers of {name} at {size:,} tokens, the results {number}; run the "
                "evaluation again"
            )
        shown += found
    return shown
