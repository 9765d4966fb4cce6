"""Pictures of results: curves over memory size, heat maps of depth, and bars side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError

_LEGEND_INSIDE = 6  # curves whose names fit among them


def token_count(tokens: float) -> str:
    """A number of tokens as people say it.

    >>> token_count(16_384), token_count(91_232), token_count(1_000_000), token_count(103_000_000)
    ('16K', '91K', '1M', '103M')
    """
    if tokens >= 1e6:
        return f"{tokens / 1e6:.3g}M"
    return f"{tokens / 1e3:.0f}K" if tokens >= 1e4 or (tokens and tokens % 1000 == 0) else f"{tokens:.0f}"


def draw_curves(
    picture: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    ylabel: str,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
) -> None:
    """Shares of 1 over memory size in tokens, on a logarithmic axis.

    Args:
        picture: PNG to write.
        curves: name → (tokens, share) points.
        title, ylabel: words around the plot.
        bands: name → (tokens, low, high), an interval drawn around the curve of that name.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    crowded = len(curves) > _LEGEND_INSIDE
    size = (10, max(5.5, 0.22 * len(curves))) if crowded else (7.5, 4.5)
    figure, axis = pyplot.subplots(figsize=size, layout="constrained")
    for number, (name, points) in enumerate(curves.items()):
        if not points:
            continue
        # curves that lie on each other stay visible
        style = {"marker": "osD^v"[number % 5], "linestyle": ("-", "--", ":")[number % 3], "markersize": 8 - number % 5}
        (line,) = axis.plot(*zip(*sorted(points), strict=True), label=name, **style)
        if bands and bands.get(name):
            tokens, low, high = zip(*sorted(bands[name]), strict=True)
            axis.fill_between(tokens, low, high, alpha=0.15, color=line.get_color())
    sizes = sorted({tokens for points in curves.values() for tokens, _ in points})
    axis.set_xscale("log")
    axis.set_xticks(sizes, [token_count(tokens) for tokens in sizes])
    axis.minorticks_off()
    axis.set_ylim(-0.02, 1.02)
    axis.set(title=title, xlabel="tokens in memory", ylabel=ylabel)
    axis.grid(alpha=0.3)
    if crowded:
        figure.legend(loc="outside right upper")
    else:
        axis.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def draw_heat_map(
    picture: Path,
    rates: Sequence[Sequence[float | None]],
    questions: Sequence[Sequence[int]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> None:
    """Rates as colours and numbers, and how many questions each is of.

    Args:
        picture: PNG to write.
        rates: one row per depth, one value per memory size, each 0..1; None: not measured.
        questions: how many each of them is of.
        rows, columns: their names.
        title: above it.

    Raises:
        EvaluationError: matplotlib is not installed.
        ValueError: rates that do not fit the names.
    """
    if len(rates) != len(rows) or any(len(row) != len(columns) for row in rates):
        raise ValueError(f"expected {len(rows)} rows of {len(columns)} rates, got {[len(row) for row in rates]}")
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(2.2 + 1.1 * len(columns), 1.8 + 0.42 * len(rows)), layout="constrained")
    values = [[float("nan") if rate is None else rate for rate in row] for row in rates]
    image = axis.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rates):
        for x, rate in enumerate(row):
            if rate is not None:
                told = f"{rate:.2f} ({questions[y][x]})"
                # black on yellow, white on dark red and green
                color = "black" if 0.2 < rate < 0.8 else "white"
                axis.text(x, y, told, ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(title=title, xlabel="tokens in memory", ylabel="where the needle stands (and of how many questions)")
    figure.colorbar(image, ax=axis)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def draw_bars(picture: Path, values: Mapping[str, tuple[float, float, float]], *, title: str, xlabel: str) -> None:
    """One horizontal bar per name, with an interval (value, low, high), all shares of 1.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(7.5, 1.2 + 0.34 * len(values)), layout="constrained")
    names = list(values)[::-1]
    centres = [values[name][0] for name in names]
    errors = [[max(values[name][0] - values[name][1], 0.0) for name in names]]
    errors.append([max(values[name][2] - values[name][0], 0.0) for name in names])
    axis.barh(names, centres, xerr=errors, color="tab:blue", alpha=0.8, ecolor="black", capsize=3)
    axis.set_xlim(0, 1)
    axis.set(title=title, xlabel=xlabel)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise EvaluationError("pictures need matplotlib: pip install 'memory-sparse-attention[eval]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
