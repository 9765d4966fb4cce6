"""The two files a run ends with: ``results.json``, versioned, and ``report.md`` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.environment import environment, version_stamp
from msa.evaluation.records import SCHEMA
from msa.training.files import replace_file

RESULTS_NAME, REPORT_NAME = "results.json", "report.md"


def write_results(
    folder: Path,
    what: str,
    settings: Mapping[str, Any],
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
        results: numbers, JSON throughout.
        page: paragraphs and tables of the report.
        notes: what a reader of the scores must know; one that is given twice is kept once.
        made: environment of a stored run whose files are written again; None: this is the run, here and now.
    """
    stamp = made or environment()
    content: dict[str, Any] = {"schema": SCHEMA, "what": what, "settings": settings, "environment": stamp}
    content |= {"notes": list(dict.fromkeys(notes)), "results": results}
    machine = f"{stamp['machine']}, {stamp['threads']} threads, device {stamp['device']}"
    versions = ", ".join(f"{name} {number}" for name, number in stamp["versions"].items())
    commit = f", commit {stamp['commit']}" if stamp["commit"] else ""
    origin = [f"{stamp['date']} · {machine} · {versions}{commit}", f"`{stamp['command']}`"]
    if made is not None:
        content["written_again"] = version_stamp()
        again = content["written_again"]
        origin.append(f"Tables written again out of the records: {', '.join(filter(None, again.values()))}.")
    how = "Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    text = "\n\n".join([f"# {what}", *origin, how, notes_list(content["notes"]), *page]) + "\n"
    replace_file(folder / RESULTS_NAME, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
    replace_file(folder / REPORT_NAME, lambda path: path.write_text(text, encoding="utf-8"))


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
