"""The table and the picture of ``docs/serving.md``, out of the stored result of ``serving_soak.py``.

    python benchmarks/soak_pictures.py

Rewrites what stands between ``<!-- soak -->`` and ``<!-- end -->`` in the page, and ``docs/images/serving-soak.png``.
Nothing is measured here. Without a stored result there is nothing to show, and the page has nothing there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
from result_tables import load, origin, stored

matplotlib.use("Agg")
from matplotlib import pyplot

RESULT = "serving_soak_2cpu_202611"
DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "serving.md", DOCS / "images" / "serving-soak.png"
PLACE = re.compile(r"(<!-- soak -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = ("ask", "stream", "search", "add", "update", "delete", "refused")
SHARES = ("p50", "p90", "p99")


def block(content: dict[str, Any]) -> str:
    """What the page has to say of the stored result."""
    return block_of(content, origin(RESULT))


def block_of(content: dict[str, Any], source: str) -> str:
    """What was wanted and found, the picture, and where the numbers come from."""
    given, kills = content["arguments"], content["kills"]
    rows = [f"| {each['what']} | {each['wanted']} | {found_of(each)} |" for each in content["verdicts"]]
    lines = [
        f"## Measured: {float(given['minutes']):g} minutes, {given['clients']} clients",
        "",
        "Questions, streams that are left in the middle, searches, additions, updates and deletions in "
        f"{given['memories']} memories of `{given['model']}`:\n{requests_of(content):,} requests.",
        "",
        "| | wanted | found |",
        "|---|---|---|",
        *rows,
        "",
        f"The server was killed {kills['times']} times while documents were added, of which it had acknowledged "
        f"{kills['documents']:,}.\nAfter the clients of the last line had left, the next question was answered in "
        f"{content['departures']['next_answer_s']:.1f} s.",
        "",
        "![Resident memory over the minutes, and seconds by kind of request](images/serving-soak.png)",
        "",
        source,
    ]
    return "\n".join(lines)


def requests_of(content: dict[str, Any]) -> int:
    """All that were answered, with whatever status."""
    return sum(count for name, count in content["counts"].items() if re.search(r" \d{3}$", name))


def found_of(verdict: dict[str, Any]) -> str:
    """What was found; bold where it is not what was wanted."""
    if verdict["met"] is None:
        return f"{verdict['found']}; the run was too short to judge"
    return str(verdict["found"]) if verdict["met"] else f"**{verdict['found']}**"


def draw(content: dict[str, Any]) -> None:
    """Resident memory minute by minute, and how long each kind of request took."""
    figure, (memory, seconds) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    minutes, mib = zip(*content["rss_mib_by_minute"], strict=True)
    memory.plot(minutes, mib, "o-", markersize=3, color="tab:blue", label="all")
    if "own_mib_by_minute" in content:
        memory.plot(
            *zip(*content["own_mib_by_minute"], strict=True), "--", color="tab:blue", label="without mapped files"
        )
    memory.axvspan(0, content["warm_up_minutes"], color="0.93", label="warm-up")
    memory.set_ylim(0, 1.25 * max(mib))
    memory.set(title="resident memory of the server", xlabel="minutes", ylabel="MiB, median of each minute")
    memory.legend(loc="lower right", fontsize=9)
    kinds = [kind for kind in KINDS if kind in content["seconds"]]
    for number, share in enumerate(SHARES):
        places = [place + (number - 1) * 0.27 for place in range(len(kinds))]
        values = [max(content["seconds"][kind][share], 1e-3) for kind in kinds]
        seconds.bar(places, values, width=0.25, label=share, color=("#9ecae1", "#4292c6", "#08519c")[number])
    seconds.set(yscale="log", title="to the end of a response", ylabel="seconds")
    seconds.yaxis.set_major_formatter("{x:g}")
    seconds.set_xticks(range(len(kinds)), kinds, rotation=30)
    seconds.set_ylim(top=6 * seconds.get_ylim()[1])
    seconds.legend(loc="upper right", fontsize=9, ncols=3)
    for axis in (memory, seconds):
        axis.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=110, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    """Draw, and fill the page.

    Raises:
        ValueError: the page has no place for it.
    """
    page = PAGE.read_text(encoding="utf-8")
    if not PLACE.search(page):
        raise ValueError(f"{PAGE.name} has no place for the result: add the lines <!-- soak --> and <!-- end -->")
    text = ""
    if stored(RESULT):
        content = load(RESULT)
        draw(content)
        text = f"{block(content)}\n"
    PAGE.write_text(PLACE.sub(lambda found: found[1] + text + found[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
