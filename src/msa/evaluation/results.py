"""The two files a run ends with: ``results.json``, versioned, and ``report.md`` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.environment import environment, version_stamp
from msa.evaluation.plots import token_count
from msa.evaluation.records import RECORDS_NAME, SCHEMA, Record, read_stretches
from msa.training.files import replace_file

RESULTS_NAME, REPORT_NAME = "results.json", "report.md"
_COUNTS = ("records", "sizes")  # of a stretch, beside its environment


def write_results(
    folder: Path,
    what: str,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    results: Mapping[str, Any],
    page: Sequence[str],
    notes: Sequence[str],
    *,
    made: Mapping[str, Any] | None = None,
) -> None:
    """Write ``results.json`` and ``report.md``, each whole or not at all.

    Args:
        folder: of the run.
        what: its title.
        settings: all that decides the results.
        records: those the results are of; what the folder's file says of where they were measured stands in both files.
        results: numbers, JSON throughout.
        page: paragraphs and tables of the report.
        notes: what a reader of the scores must know; one that is given twice is kept once.
        made: environment of a stored run whose files are written again; None: this is the run, here and now. Records
            that say themselves where they were measured come before both.
    """
    stretches = measured_in(folder, records)
    last = {name: value for name, value in stretches[-1].items() if name not in _COUNTS} if stretches else {}
    stamp = last or made or environment(settings.get("device"))
    content: dict[str, Any] = {"schema": SCHEMA, "what": what, "settings": settings, "environment": stamp}
    content |= {"stretches": stretches, "notes": list(dict.fromkeys(notes)), "results": results}
    origin = [_stamp_line(stamp), f"`{stamp['command']}`"]
    if len(stretches) > 1:
        told = [f"* {_stamp_line(one) if 'date' in one else 'not noted where'} · {count_of(one)}" for one in stretches]
        origin[:1] = [f"Measured in {len(stretches)} stretches, the last by the command below:", "\n".join(told)]
    if made is not None:
        content["written_again"] = version_stamp()
        again = content["written_again"]
        origin.append(f"Tables written again out of the records: {', '.join(filter(None, again.values()))}.")
    how = "Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    text = "\n\n".join([f"# {what}", *origin, how, notes_list(content["notes"]), *page]) + "\n"
    replace_file(folder / RESULTS_NAME, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
    replace_file(folder / REPORT_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def measured_in(folder: Path, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Where records were measured: the environment of each stretch, and how many records of which sizes are of it.

    Empty where the folder's file says so of none of them, as those of earlier versions do not.

    Raises:
        EvaluationError: the file is damaged.
    """
    path = folder / RECORDS_NAME
    shown = {record.key: record.size_tokens for record in records}
    found = []
    for stretch in read_stretches(path) if path.is_file() else ():
        sizes = [shown[key] for key in stretch.keys & shown.keys()]
        if sizes:
            found.append({**stretch.environment, "records": len(sizes), "sizes": sorted(set(sizes))})
    return found if any("date" in one for one in found) else []


def count_of(stretch: Mapping[str, Any]) -> str:
    """How much a stretch, as :func:`measured_in` gives it, holds.

    >>> count_of({"records": 1850, "sizes": [16_000, 64_000, 10_000_000]})
    '1,850 records, 16K to 10M tokens'
    """
    ends = dict.fromkeys(token_count(stretch["sizes"][place]) for place in (0, -1))
    number = stretch["records"]
    return f"{number:,} record{'s' * (number != 1)}, {' to '.join(ends)} tokens"


def _stamp_line(stamp: Mapping[str, Any]) -> str:
    machine = f"{stamp['machine']}, {stamp['threads']} threads, device {stamp['device']}"
    versions = ", ".join(f"{name} {number}" for name, number in stamp["versions"].items())
    commit = f", commit {stamp['commit']}" if stamp["commit"] else ""
    return f"{stamp['date']} · {machine} · {versions}{commit}"


def notes_list(notes: Sequence[str]) -> str:
    """Notes as Markdown."""
    return "\n".join(f"* {note}" for note in notes) or "No notes."


def read_results(folder: Path) -> dict[str, Any]:
    """What ``results.json`` says.

    Raises:
        EvaluationError: it is missing, no JSON (the line is named), or not what :func:`write_results` writes.
    """
    path = folder / RESULTS_NAME
    content = read_json(path)
    parts = {"settings": dict, "environment": dict, "results": dict}
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise EvaluationError(f"{path} is no results file of schema {SCHEMA}; run the evaluation again")
    for name, kind in parts.items():
        if not isinstance(content.get(name), kind):
            raise EvaluationError(f"{path} has no {name!r} as {kind.__name__}; run the evaluation again")
    if not isinstance(content["settings"].get("task"), str):
        raise EvaluationError(f"{path} does not name its task in 'settings'; run the evaluation again")
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        EvaluationError: it is missing or no JSON; the line is named.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path}, line {error.lineno}, is not JSON ({error.msg}); restore it") from error
    except ValueError as error:
        raise EvaluationError(f"{path} is no text in UTF-8 ({error}); restore it") from error


def stored_notes(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """The notes of a run; earlier versions kept them in ``report.md`` only."""
    if "notes" in content:
        return list(content["notes"])
    page = (folder / REPORT_NAME).read_text(encoding="utf-8") if (folder / REPORT_NAME).is_file() else ""
    head = page.partition("\n\nSettings: ")[2].split("\n\n")[1:2]
    return [line.removeprefix("* ") for text in head for line in text.splitlines() if line.startswith("* ")]
