"""The pictures and tables of ``docs/performance.md``, out of the results stored in ``benchmarks/results``.

    python benchmarks/performance_pictures.py

Rewrites what stands between ``<!-- name -->`` and ``<!-- end -->`` in the page, and ``docs/images/performance-*.png``.
Nothing is measured here. What has no stored result is left out of the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
from performance_routing import CPU, CPU_SIZE, GPU, GPU_FORMS, GPU_SIZE, LENGTHS, WAYS
from performance_tables import CONCURRENCY, TOP_K, blocks, question_floor
from result_tables import load, stored

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).parents[1] / "docs"
PAGE, IMAGES = DOCS / "performance.md", DOCS / "images"
TOKENS = [int(length.split()[0]) for length in LENGTHS]
TARGET_OF_FLOOR_ON_A_GPU = 1.3


def with_blocks(page: str, parts: dict[str, str]) -> str:
    """The page with every part in its place.

    Raises:
        ValueError: it has no place for a part.
    """
    for name, text in parts.items():
        pattern = rf"<!-- {re.escape(name)} -->\n.*?<!-- end -->"
        if not re.search(pattern, page, re.DOTALL):
            raise ValueError(f"{PAGE.name} has no place for {name!r}: add the lines <!-- {name} --> and <!-- end -->")
        filled = f"<!-- {name} -->\n{text}\n<!-- end -->" if text else f"<!-- {name} -->\n<!-- end -->"
        page = re.sub(pattern, lambda _, filled=filled: filled, page, flags=re.DOTALL)  # type: ignore[misc]
    return page


def save(figure: Any, name: str) -> None:
    """Write one picture, the same bytes every time."""
    figure.savefig(IMAGES / f"performance-{name}.png", dpi=110, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)


def draw_question_length() -> None:
    """Routing on a CPU by question length: both shapes, the plain scorers and the floors."""
    content = load(CPU)
    figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained")
    for axis, shape in zip(axes, ("default", "published"), strict=True):
        sizes = content[shape][CPU_SIZE]
        for way, style in zip(WAYS, ("s-", "^-"), strict=True):
            points = [1000 * sizes[way][length]["best"] for length in LENGTHS]
            axis.plot(TOKENS, points, style, color="tab:gray", label=f"{way}, bf16")
        for form, colour in zip(("exact", "int8"), ("tab:blue", "tab:orange"), strict=True):
            ours = [1000 * sizes[form][length]["best"] for length in LENGTHS]
            floor = [1000 * max(sizes[form]["stream"], sizes[form][length]["product"]) for length in LENGTHS]
            axis.plot(TOKENS, ours, "o-", color=colour, label=f"here, {form}")
            axis.plot(TOKENS, floor, ":", color=colour, label=f"floor, {form}")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(TOKENS)
        axis.set_ylim(bottom=0.5 * min(floor))
        axis.set(title=content[shape]["heads"], xlabel="question tokens", ylabel="ms per layer, 64K chunks")
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    save(figure, "question-length")


def draw_gpu() -> None:
    """The kernel as a multiple of its floor."""
    sizes = load(GPU)["published"][GPU_SIZE]
    figure, axis = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    for number, length in enumerate(LENGTHS):
        ratios = [sizes[form][length]["replayed / floor"] for form in GPU_FORMS]
        places = [place + (number - 1) * 0.27 for place in range(len(GPU_FORMS))]
        axis.bar(places, ratios, width=0.25, label=f"{length}", color=("#9ecae1", "#4292c6", "#08519c")[number])
        for place, ratio in zip(places, ratios, strict=True):
            axis.text(place, 0.1, f"{ratio:.2f}", ha="center", fontsize=9, color="white" if number else "black")
    axis.axhline(1, color="black", linewidth=1)
    axis.axhline(TARGET_OF_FLOOR_ON_A_GPU, color="tab:red", linestyle="--", label="target, 1.3")
    axis.set_xticks(range(len(GPU_FORMS)), [f"{form}\n{sizes[form]['key_mib'] / 1024:.1f} GiB" for form in GPU_FORMS])
    axis.set(title="H200, one layer of 100M tokens, 8 × 4 heads × 128", ylabel="time / reading the keys once")
    axis.set_ylim(0, 4.2)
    axis.legend(fontsize=9, ncols=2)
    save(figure, "routing-h200")


def draw_memory_size() -> None:
    """A question through all layers, by memory size."""
    sizes = load("bank_scale_2cpu_202611")["sizes"]
    figure, axis = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    tokens = [size["tokens"] for size in sizes]
    for number, tier in enumerate(("int8", "half", "mapped")):
        rows = [next(row for row in size["tiers"] if row["routing_keys"] == tier) for size in sizes]
        seconds = [row["question_seconds"] for row in rows]
        axis.plot(tokens, seconds, "os^"[number] + "-", label=f"{tier} keys", markersize=10 - 2 * number)
    for tier, colour in (("int8", "tab:blue"), ("half", "tab:orange")):
        floor = [question_floor(size, tier) for size in sizes]
        axis.plot(tokens, floor, ":", color=colour, label=f"floor, {tier} (derived)")
    axis.set(xscale="log", yscale="log", xlabel="tokens in memory", ylabel="seconds per question")
    axis.set_xticks(tokens, [f"{count // 10**6}M" for count in tokens])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_title("A question of 12 tokens through 15 layers, two cores, before the scorer's rewrite", fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    save(figure, "memory-size")


def draw_concurrency() -> None:
    """Questions and tokens per second by questions together."""
    throughput = load(CONCURRENCY)["throughput"]
    rows = {int(name.split()[0]): row for name, row in throughput.items() if name.endswith("concurrent")}
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    for axis, key in zip(axes, ("questions/s", "tokens/s"), strict=True):
        axis.plot(list(rows), [row[key] for row in rows.values()], "o-", label="together")
        axis.axhline(throughput["one at a time"][key], color="tab:gray", linestyle="--", label="one at a time")
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(rows), [str(count) for count in rows])
        axis.set(xlabel="questions together", ylabel=key)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    save(figure, "concurrency")


def draw_top_k() -> None:
    """Prefill and decoding by documents selected."""
    rows = load(TOP_K)["rows"]
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    numbers = [row["top_k"] for row in rows]
    for axis, key, label in zip(axes, ("prefill_seconds", "token_seconds"), ("prefill", "each token"), strict=True):
        milliseconds = [1000 * row[key] for row in rows]
        axis.plot(numbers, milliseconds, "o-")
        axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, [str(number) for number in numbers])
        axis.set(xlabel="documents selected per router layer", ylabel=f"{label}, ms")
        axis.set_ylim(0, 1.1 * max(milliseconds))
        axis.grid(alpha=0.3)
    save(figure, "top-k")


def main() -> None:
    """Draw everything and fill the page."""
    draw_question_length()
    draw_gpu()
    draw_memory_size()
    if stored(CONCURRENCY):
        draw_concurrency()
    if stored(TOP_K):
        draw_top_k()
    PAGE.write_text(with_blocks(PAGE.read_text(encoding="utf-8"), blocks()), encoding="utf-8")


if __name__ == "__main__":
    main()
