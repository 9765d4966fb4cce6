"""One measured figure with what stands beside it, as JSON and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msa.bench.timing import Times

HEADER = ("", "here", "beside", "theirs", "faster", "floor", "x floor")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Seconds of some work, of the same work done in other ways, and of what the machine needs at least for it.

    Attributes:
        what: the work.
        times: seconds here.
        baselines: name → seconds of another way.
        floors: name → seconds of what no way can do without.
        amount: tokens or questions that were worked on.
        unit: what ``amount`` counts, such as ``tokens``; empty: only the time is of interest.
        missing: name of another way → why it could not be measured.
        details: more to report, such as sizes.
    """

    what: str
    times: Times
    baselines: Mapping[str, Times]
    floors: Mapping[str, Times]
    amount: float = 1.0
    unit: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def faster(self, baseline: str) -> float:
        """How many times as fast as a baseline, by best times: noise only ever adds."""
        return self.baselines[baseline]["best"] / self.times["best"]

    def highest_floor(self) -> str:
        """The floor that allows least."""
        return max(self.floors, key=lambda name: self.floors[name]["best"])

    def of_floor(self) -> float:
        """Time as a multiple of the highest floor, by best times."""
        return self.times["best"] / self.floors[self.highest_floor()]["best"]

    def to_json(self) -> dict[str, Any]:
        """All numbers; every ratio is one of best times among them."""
        rate = {f"{self.unit}/s": self.amount / self.times["best"]} if self.unit else {}
        return {
            "what": self.what,
            **self.details,
            "seconds": dict(self.times),
            **rate,
            "baselines": {
                name: {**times, "times as fast here": self.faster(name)} for name, times in self.baselines.items()
            },
            **({"not measured": dict(self.missing)} if self.missing else {}),
            "floors": {name: dict(times) for name, times in self.floors.items()},
            "highest floor": self.highest_floor(),
            "/ floor": self.of_floor(),
        }


def table_rows(figures: Iterable[Figure]) -> list[list[str]]:
    """A header, then a row for each baseline of each figure; milliseconds, or what is done in a second.

    What could not be measured follows, once.
    """
    rows, missing = [list(HEADER)], dict[str, str]()
    for figure in figures:
        missing.update(figure.missing)
        first = [
            f"{figure.what}, {figure.unit}/s" if figure.unit else f"{figure.what}, ms",
            _shown(figure, figure.times),
        ]
        last = [figure.highest_floor(), f"{figure.of_floor():.2f}"]
        for name, times in figure.baselines.items():
            rows.append([*first, name, _shown(figure, times), f"{figure.faster(name):.2f}x", *last])
            first, last = ["", ""], ["", ""]
        if not figure.baselines:
            rows.append([*first, "", "", "", *last])
    return rows + [[name, "", why, "", "", "", ""] for name, why in missing.items()]


def _shown(figure: Figure, times: Times) -> str:
    """Three digits, as many as such a measurement is good for."""
    value = figure.amount / times["best"] if figure.unit else 1000 * times["best"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
