"""The tables of ``docs/performance.md`` about routing one layer, on CPUs and on GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from result_tables import load, ms, origin, stored, table, times

CPU, CPU_AGAIN, GPU = "routing_scorer_2cpu_202611", "bench_routing_published_2cpu_202611", "routing_scorer_h200_202611"
PEAKS, ALIKE, MEMORY = "routing_peaks_2cpu_202611", "routing_alike_2cpu_202611", "routing_memory_2cpu_202611"
CPU_SIZE, GPU_SIZE, ALIKE_SIZE = "4194304 tokens", "100000000 tokens", "2097152 tokens"
LENGTHS = ("8 tokens", "32 tokens", "64 tokens")
CPU_SHAPES = ("default", "published")
CPU_FORMS, GPU_FORMS = ("exact", "half", "int8"), ("exact", "half", "float8", "int8")
WAYS = ("as written", "folded")
PEERS = ("faiss flat", "maxsim-cpu (another score)")  # only where the stored measurement has them


def routing_cpu() -> str:
    """Each form of key and question length, for both shapes."""
    content, peaks, rows = load(CPU), load(PEAKS), []
    ways = [*WAYS, *(peer for peer in PEERS if all(peer in content[shape][CPU_SIZE] for shape in CPU_SHAPES))]
    for shape in CPU_SHAPES:
        sizes, added = content[shape][CPU_SIZE], peaks[shape][CPU_SIZE]
        for form in CPU_FORMS:
            for length in LENGTHS:
                ours, stream = sizes[form][length], sizes[form]["stream"]
                mib = [added[way][length]["peak_added_mib"] for way in (form, "as written")]
                rows.append(
                    [
                        f"{shape}, {form}, {length}",
                        ms(ours["best"]),
                        f"{ms(stream)} / {ms(ours['product'])}",
                        times(ours["/ floor"]),
                        *(f"{ms(sizes[way][length]['best'])} ({times(ours[f'{way}: times as long'])})" for way in ways),
                        " / ".join(f"{each:.0f}" for each in mib),
                    ]
                )
    header = [*_header(ways), "memory added: here / as written, MiB"]
    sources = f"Times: {origin(CPU)} Memory, of a fresh process each: {origin(PEAKS)}"
    return f"{table(header, rows)}\n\n{above_the_product()}\n\n{sources}"


def _header(ways: Iterable[str]) -> list[str]:
    first = ["shape, keys, question", "ms", "floors: read / multiply, ms", "of the larger"]
    return [*first, *(f"{way}, ms (slower)" for way in ways)]


def again() -> dict[str, dict[str, dict[str, Any]]]:
    """Form → length → what ``msa bench`` measured of the published shape; ratios as of the other run."""
    found: dict[str, dict[str, dict[str, Any]]] = {form: {} for form in CPU_FORMS}
    for part in load(CPU_AGAIN)["routing"]:
        _, length, form = part["what"].removesuffix(" keys").split(", ")
        floors = {name: seconds["best"] for name, seconds in part["floors"].items()}
        best = part["seconds"]["best"]
        found[form][length] = {
            **{f"{way}: times as long": each["times as fast here"] for way, each in part["baselines"].items()},
            "best": best,
            "floors": floors,
            "others": {way: each["best"] for way, each in part["baselines"].items()},
            "/ floor": best / max(floors["reading"], floors["product"]),
            "/ peak floor": best / max(floors["reading"], floors["peak"]),
        }
    return found


def routing_again() -> str:
    """The published shape once more, by ``msa bench``."""
    found = again()
    ways, rows = [*next(iter(found["exact"].values()))["others"]], []
    for form in CPU_FORMS:
        for length in LENGTHS:
            ours = found[form][length]
            beside = (f"{ms(ours['others'][way])} ({times(ours[f'{way}: times as long'])})" for way in ways)
            floors = f"{ms(ours['floors']['reading'])} / {ms(ours['floors']['product'])}"
            rows.append([f"published, {form}, {length}", ms(ours["best"]), floors, times(ours["/ floor"]), *beside])
    return f"{table(_header(ways), rows)}\n\n{origin(CPU_AGAIN)}"


def above_the_product() -> str:
    """What the scorer takes beside multiplying, by question length."""
    sizes = load(CPU)["published"][CPU_SIZE]
    found = {
        form: " / ".join(ms(sizes[form][length]["best"] - sizes[form][length]["product"]) for length in LENGTHS)
        for form in CPU_FORMS
    }
    shown = "; ".join(f"{form} {values}" for form, values in found.items())
    return f"Time beyond multiplying, published shape, 8 / 32 / 64 tokens, ms: {shown}."


def routing_alike() -> str:
    """Keys and questions that share a direction; empty where they have not been measured."""
    if not stored(ALIKE):
        return ""
    sizes = load(ALIKE)["default"]
    lengths = [length for length in LENGTHS if length in sizes[ALIKE_SIZE]["exact"]]
    rows = []
    for size, forms in sizes.items():
        if size.startswith(ALIKE_SIZE):
            cosine = size.removeprefix(ALIKE_SIZE).removeprefix(", cosine ") or "0 (random)"
            cells = (_beside_random(forms, sizes[ALIKE_SIZE], form, length) for form in CPU_FORMS for length in lengths)
            rows.append([cosine, *cells])
    header = ["mean cosine of two keys", *(f"{form}, {length}" for form in CPU_FORMS for length in lengths)]
    return f"{table(header, rows)}\n\n{origin(ALIKE)}"


def _beside_random(forms: Mapping[str, Any], random: Mapping[str, Any], form: str, length: str) -> str:
    seconds, usual = (each[form][length]["best"] for each in (forms, random))
    return ms(seconds) + ("" if forms is random else f" ({times(seconds / usual)})")


def routing_gpu() -> str:
    """Each form of key and question length, 100M tokens of the published shape."""
    sizes, rows = load(GPU)["published"][GPU_SIZE], []
    for form in GPU_FORMS:
        for length in LENGTHS:
            ours = sizes[form][length]
            ways = ("select", "route", "plain", "select, 65536 chunks", "naive, 65536 chunks")
            seconds = [ours[way]["best"] for way in ways]
            rows.append(
                [
                    f"{form}, {length}",
                    ms(ours["replayed"]["best"]),
                    ms(sizes[form]["stream"]),
                    times(ours["replayed / floor"]),
                    *map(ms, seconds[:3]),
                    f"{ms(seconds[3])} / {ms(seconds[4])}",
                ]
            )
    header = ["keys, question", "kernel, ms", "floor: read, ms", "of the floor", "whole call, ms"]
    others = ["with all scores, ms", "plain torch, ms", "call / naive, 64K chunks, ms"]
    return f"{table([*header, *others], rows)}\n\n{origin(GPU)}"


def routing_memory() -> str:
    """What scoring adds to the resident keys."""
    content = load(MEMORY)
    rows = [
        [way, ms(content[way]["seconds"]), f"{content[way]['keys_mib']:.0f}", f"{content[way]['peak_added_mib']:.0f}"]
        for way in ("msa", "folded", "head by head")
    ]
    return f"{table(['scorer', 'median ms', 'keys, MiB', 'added at the peak, MiB'], rows)}\n\n{origin(MEMORY)}"


def ratios_of(shape: str, forms: Iterable[str], key: str, lengths: Iterable[str] = LENGTHS) -> list[float]:
    """One ratio of the stored CPU measurement."""
    sizes = load(CPU)[shape][CPU_SIZE]
    return [sizes[form][length][key] for form in forms for length in lengths]


def ratios_again(forms: Iterable[str], key: str, lengths: Iterable[str] = LENGTHS) -> list[float]:
    """The same ratio of the published shape as ``msa bench`` measured it."""
    found = again()
    return [found[form][length][key] for form in forms for length in lengths]


def times_the_memory(length: str) -> list[float]:
    """What the scorer as written adds to a fresh process, as a multiple of what each form adds; published shape."""
    added = load(PEAKS)["published"][CPU_SIZE]
    return [added[form][length]["as written: times the memory"] for form in CPU_FORMS]
