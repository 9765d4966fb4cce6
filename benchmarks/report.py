"""What was measured, as one page: ``docs/report.md`` out of stored results, each number where a command left it.

    python benchmarks/report.py [--results results] [--out docs/report.md]      # or: make report

Reads every ``results.json`` that ``msa eval`` left below ``--results`` and the files in ``benchmarks/results``. Nothing
is measured here and no number stands in this file: what has no stored result is listed as not shown, with the command
that would make it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stored_runs import Run, not_run, read_runs

from msa.errors import EvaluationError
from msa.evaluation.plots import token_count
from msa.evaluation.report import COLUMNS_NOTE, growth_table, parts_of_ours, ruler_table, tests_section
from msa.evaluation.results import notes_list, read_json
from msa.evaluation.scaling_report import (
    curve_table,
    curve_title,
    encoding_rate,
    fit_sentences,
    measured_steps,
    needles_section,
    parts_section,
    step_costs,
)
from msa.evaluation.summary import Row, declining_table, markdown_table, reasons_list, rows_table

HERE = Path(__file__).parent


class Report:
    """The page in the making.

    Args:
        runs: of ``msa eval``.
        benchmarks: name → content of the files that benchmarks left.
        out: where the page will be; links are relative to its folder.
    """

    def __init__(self, runs: Sequence[Run], benchmarks: dict[str, Any], out: Path) -> None:
        self.runs, self.benchmarks, self.out = list(runs), benchmarks, out
        self.missing: list[str] = []
        self.scaling = self.of_task("scaling")

    def page(self) -> str:
        """All sections; the last says what is not shown."""
        parts = [
            "# Report",
            "What the field did not know about this method, answered by our own measurements. `make report` writes "
            "this page out of stored results; each table says which machine, date and command it is from, and no "
            "number is typed in.",
            *self.section("Does it remember as the memory grows?", self.growth()),
            *self.section("Start against end", self.start_against_end()),
            *self.section("What a question attends to", self.attention_pattern()),
            *self.section("Training", self.training()),
            *self.section("Benchmarks", self.benchmark_scores()),
            *self.section("Compute", self.compute()),
            *self.section("Beside the alternatives", self.comparison()),
            "## What is not shown",
            "\n".join(f"* {text}" for text in (*not_run(self.runs), *self.missing))
            or "Nothing that this page asks for is missing.",
        ]
        return "\n\n".join(parts) + "\n"

    def section(self, title: str, paragraphs: Iterator[str]) -> list[str]:
        """A heading and what was found; a remark where nothing was."""
        found = list(paragraphs)
        return [f"## {title}", *(found or ["No stored result; see the end of this page."])]

    def of_task(self, *tasks: str) -> list[Run]:
        """The runs of some tasks."""
        return [run for run in self.runs if run.task in tasks]

    def benchmark(self, prefix: str, command: str) -> dict[str, Any] | None:
        """The newest file of a benchmark; none is noted as missing."""
        names = sorted(name for name in self.benchmarks if name.startswith(prefix))
        if not names:
            self.missing.append(f"no result of `{command}`")
            return None
        return {**self.benchmarks[names[-1]], "file": names[-1], "command": command}

    def picture(self, run: Run, name: str, text: str) -> str:
        """A link to a run's picture."""
        return f"![{text}]({os.path.relpath(run.folder / name, self.out.parent)})"

    def growth(self) -> Iterator[str]:
        """The degradation curve of every scaling run."""
        for run in self.scaling:
            with run.reading():
                yield f"### {run.title}: {curve_title(run.results['curve'])}"
                yield run.origin
                yield notes_list(run.notes)
                yield curve_table(run.results["curve"])
                yield from needles_section(run.results, "####")
                yield self.picture(run, "curve.png", "Shares of questions over memory size")

    def start_against_end(self) -> Iterator[str]:
        """Answers by where in the memory the needle stands."""
        for run in self.scaling:
            with run.reading():
                yield f"### {run.title}"
                yield run.command
                yield from parts_section(run.results)
                yield self.picture(run, "depth.png", "Share answered, by depth and memory size")
                if run.results["alone"]:
                    yield self.picture(run, "depth-alone.png", "The same, of questions alone in their documents")

    def attention_pattern(self) -> Iterator[str]:
        """How much of the memory a question reaches."""
        for run in self.scaling:
            with run.reading():
                results = run.results
                top_k = results["top_k_docs"]
                cells = [
                    [
                        token_count(cost["tokens"]),
                        f"{cost['documents']:,}",
                        f"{cost['chunks']:,}",
                        f"{min(1.0, top_k / cost['documents']):.4%}",
                        f"{cost['fetch_bytes'] / 1e3:,.1f}",
                    ]
                    for cost in results["costs"]
                ]
                layers = ", ".join(map(str, results["router_layers"]))
                yield f"### {run.title}"
                yield run.command
                yield (
                    f"Every router layer ({layers}) scores all chunks and attends to the chunks of its {top_k} best "
                    "documents, and to nothing else of the memory."
                )
                attended = ["documents attended, a layer", "KB fetched a question"]
                yield markdown_table(["tokens", "documents", "chunks scored", *attended], cells)

    def training(self) -> Iterator[str]:
        """The default model, its routers alone, and what the tiny model needs."""
        adapter = self.benchmark("gpu_run", "recipes/gpu_evaluate.py")
        if adapter is not None:
            yield from _default_model(adapter)
        ids = self.benchmark("written_ids", "benchmarks/written_ids.py --data DATA")
        if ids is not None:
            yield from _written_ids(ids)
        routers = self.benchmark("router_warmup", "recipes/router_warmup.py")
        if routers is not None:
            test = routers["test"]
            recalls = ("recall@1", "recall@5", "recall@16")
            names = {"untrained": "untrained routers", "trained": "trained routers", "bm25": "BM25", "minilm": "MiniLM"}
            cells = [
                [
                    names[key],
                    *(f"{test[key]['mean of sources'][recall]:.3f}" for recall in recalls),
                ]
                for key in names
                if key in test
            ]
            yield f"### Routers of a frozen backbone: {routers['model']}"
            yield _origin(routers) + f", {routers['documents']:,} documents, {routers['questions']['test']:,} questions"
            yield markdown_table(["chosen by", *recalls], cells)
        ablations = self.benchmark("tiny_ablations", "benchmarks/tiny_ablations.py")
        if ablations is not None:
            shown = ("recall@1/mean", "ids_exact", "answer_exact", "copied")
            cells = [
                [name, *(f"{rates.get(key, float('nan')):.2f}" for key in shown)]
                for name, rates in ablations["variants"].items()
            ]
            yield f"### The tiny recipe with one thing left out, {ablations['steps']} steps each"
            yield _origin(ablations)
            yield markdown_table(["left out", "recall@1", "ids exact", "answers exact", "copied tokens"], cells)

    def benchmark_scores(self) -> Iterator[str]:
        """RULER, and needles asked as a user asks."""
        for run in self.of_task("ruler"):
            with run.reading():
                scores = run.results["scores"]
                yield f"### {run.title}"
                yield run.origin
                yield notes_list(run.notes)
                rows = [f"{entry['answerer']}, {token_count(entry['size'])}" for entry in scores]
                yield from ruler_table(scores, rows, "way, size")
        for name in sorted(name for name in self.benchmarks if name.startswith("needles_")):
            needles = self.benchmarks[name]
            kinds = [kind for kind in needles["sizes"][0]["rates"] if kind.split("/")[0] in ("all", "needle")]
            cells = [
                [kind, *(_needle_cell(size["rates"].get(kind, {})) for size in needles["sizes"])] for kind in kinds
            ]
            twins = needles.get("twins")
            beside = "" if twins is None else f"; {twins:.0%} of the keys have a near twin in memory"
            beside += f"; ids {needles['constrain_ids']}; answers held to: {needles.get('constrain_answers', 'none')}"
            beside += f"; rounds at most: {needles['max_rounds']}; {needles['model']}"
            if needles["max_rounds"] == 0:
                beside += "; answered from latents alone: no text is read"
            yield f"### Needles: {_variant(name)}"
            yield f"{_origin({**needles, 'file': name, 'command': 'benchmarks/needles.py'})}{beside}"
            columns = ["ids exact in every round / answer exact", *(token_count(s["tokens"]) for s in needles["sizes"])]
            yield markdown_table(columns, cells)

    def compute(self) -> Iterator[str]:
        """What encoding and routing cost, and whether it grows linearly."""
        for run in self.scaling:
            with run.reading():
                cells = [
                    [
                        token_count(cost["tokens"]),
                        encoding_rate(cost),
                        f"{cost['bytes_on_disk'] / 1e9:.3f}",
                        f"{cost['route_flops'] / 1e9:.2f}",
                        f"{cost['route_bytes'] / 1e6:,.1f}",
                        f"{point['search_seconds']:.3f}",
                    ]
                    for cost, point in zip(run.results["costs"], run.results["curve"], strict=True)
                ]
                yield f"### {run.title}"
                yield run.command
                routing = ["GFLOP to route", "MB read to route", "s to route"]
                yield markdown_table(["tokens", "encoded tokens/s", "GB on disk", *routing], cells)
                yield from step_costs(run.results["costs"])
                yield from measured_steps(run.results["curve"])
                yield from fit_sentences(run.results)
        bank = self.benchmark("bank_scale", "benchmarks/bank_scale.py")
        if bank is not None:
            cells = [
                [
                    f"{token_count(size['tokens'])}, {tier['routing_keys']}",
                    f"{tier['bank_open_seconds'] + tier['view_seconds']:.2f}",
                    f"{tier['resident_bytes'] / 1e9:.2f}",
                    f"{tier['question_seconds']:.3f}",
                ]
                for size in bank["sizes"]
                for tier in size["tiers"]
            ]
            yield f"### Up to 100M tokens: {bank['what']}"
            yield _origin(bank)
            yield markdown_table(["tokens, routing keys", "s to open", "GB resident", "s to route a question"], cells)

    def comparison(self) -> Iterator[str]:
        """Every way of answering on the same backbone and questions."""
        for run in [*self.of_task("compare"), *self.of_task("qa")]:
            with run.reading():
                metric = run.results["metric"]
                yield f"### {run.title}"
                yield run.origin
                yield notes_list(run.notes)
                yield rows_table([Row(**row) for row in run.results["rows"]], metric)
                yield COLUMNS_NOTE
                yield from filter(None, [reasons_list([Row(**row) for row in run.results["rows"]])])
                for compared in run.results["tests"]:
                    yield from tests_section(compared)
                    yield from parts_of_ours(compared)
                if run.results["declining"]:
                    yield declining_table(run.results["declining"])
                if len({row["size_tokens"] for row in run.results["rows"]}) > 1:
                    yield self.picture(run, "ways.png", f"{metric} of every way as the documents grow")
                if run.results.get("growth"):
                    yield "What taking the documents in cost each way:"
                    yield growth_table(run.results["growth"])


def _variant(name: str) -> str:
    """``needles_msa-tiny_free-ids_2cpu_202611`` → ``msa-tiny, free ids``."""
    model, *changes = name.split("_")[1:-2]
    return ", ".join([model, *(change.replace("-", " ") for change in changes)])


def _needle_cell(rates: dict[str, float]) -> str:
    return " / ".join(f"{rates[name]:.3f}" if name in rates else "–" for name in ("retrieved", "answered"))


def _origin(found: dict[str, Any]) -> str:
    """Command, machine, date, and the commit where the benchmark kept it."""
    commit = f", commit {found['commit']}" if found.get("commit") else ""
    return f"`{found['command']}`, {found['machine']}, {found['date']}{commit}"


def _default_model(measured: dict[str, Any]) -> Iterator[str]:
    """What recipes/gpu_evaluate.py found: recall, ids, answers."""
    sources = ("debian", "wordnet", "foldoc", "python", "all")
    names = {"trained": "routers and LoRA", "bm25": "BM25", "minilm": "MiniLM"}
    yield "### The default model: routers and LoRA trained on one GPU"
    origin = _origin({**measured, "machine": f"{measured['device']}, torch {measured['torch']}"})
    questions = measured["recall/trained"]["all"]["questions"]
    yield f"{origin}, {questions:,.0f} held-out questions over {measured['documents']:,} documents"
    cells = [
        [shown, *(f"{measured[f'recall/{key}'][source]['recall@16']:.3f}" for source in sources)]
        for key, shown in names.items()
    ]
    yield markdown_table(["recall@16, chosen by", *sources], cells)
    answered = {name.removeprefix("answers/"): part for name, part in measured.items() if name.startswith("answers/")}
    of_each = next(iter(answered.values()))["all"]["questions"]
    yield f"How often the first id written is the right one, of {of_each:,.0f} of these questions:"
    first = "right document among the best 1"
    allowed = {"selected": "of the 16 best documents", "existing": "of any document", "none": "freely"}
    ids = measured["ids"]
    cells = [
        [shown, f"{ids[f'{key}, all']:.3f}", f"{ids[f'{key}, {first}']['first id right']:.3f}"]
        for key, shown in allowed.items()
    ]
    yield markdown_table(["ids", "all questions", "where routing puts the right document first"], cells)
    yield (
        "How many answers contain the expected text, and are nothing else; who alone has it, against the first "
        "row (McNemar). The trained model has learnt answers of this form, the plain backbone has not:"
    )
    ours = next(iter(answered))
    cells = []
    for name, part in answered.items():
        pair = measured["paired"].get(f"answers/{ours} against answers/{name}")
        shown = "" if pair is None else f"{pair['first alone']} against {pair['second alone']}, p = {pair['p']:.1g}"
        cells.append([name, f"{part['all']['contains']:.3f}", f"{part['all']['exact']:.3f}", shown])
    yield markdown_table(["who reads what", "contain it", "exactly it", "alone"], cells)


def _written_ids(measured: dict[str, Any]) -> Iterator[str]:
    """What benchmarks/written_ids.py found."""
    shown = {
        "existing": "of any document",
        "none": "freely",
        "selected": "of documents that a layer selected",
        "weighed": "of these, weighed by routing scores",
        "routed": "the routers' best, without writing",
    }
    made = measured["environment"]
    rates, tests = measured["rates"], measured["p against the own"]
    cells = []
    for name, text in shown.items():
        rate = next(rate for kind, rate in rates[name].items() if kind.endswith("right"))
        p = f"p = {tests[name]:.1g}" if name in tests else ""
        cells.append([text, f"{rate:.3f}", p])
    yield "### Ids that the default model writes, by what it may write"
    yield f"{_origin(made)}, {measured['questions']} test questions over {measured['documents']:,} real documents"
    own = shown[measured["own"]]
    yield markdown_table(["ids", "first one right", f"against those {own} (McNemar)"], cells)


def write_report(results: Path, benchmarks: Path, out: Path) -> None:
    """Write the page ``out``."""
    found = {path.stem: read_json(path) for path in sorted(benchmarks.glob("*.json"))}
    out.write_text(Report(read_runs(results), found, out).page(), encoding="utf-8")


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "report.md")
    args = parser.parse_args()
    try:
        write_report(args.results, HERE / "results", args.out)
    except EvaluationError as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
