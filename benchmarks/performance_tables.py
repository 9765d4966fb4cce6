"""The tables of ``docs/performance.md``, out of the results stored in ``benchmarks/results``.

Nothing is measured here. ``python benchmarks/performance_pictures.py`` puts the tables into the page and draws the
pictures. Two floors were not measured in the run they stand beside and are derived; the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CONCURRENCY, TOP_K = "serving_throughput_2cpu_202611", "top_k_growth_2cpu_202611"
GPU_MEMORY = "gpu_memory_h200_202611"
ANSWERING = "bench_answering_smollm2-135m_2cpu_202611"
FEW_ROWS = "few_row_products_2cpu_202611"
GPU_MEMORY_FORMER = "gpu_memory_former_h200_202611"
COMMANDS = {
    "encode_decode_2cpu_202611": "python benchmarks/encode_decode.py",
    "routing_memory_2cpu_202611": "python benchmarks/routing_memory.py",
    "bank_scale_2cpu_202611": "python benchmarks/bank_scale.py --folder F --tokens 1000000 10000000 100000000",
    CONCURRENCY: "python benchmarks/serving_throughput.py",
}
CPU_SIZE, GPU_SIZE = "4194304 tokens", "100000000 tokens"
LENGTHS = ("8 tokens", "32 tokens", "64 tokens")
CPU_SHAPES = ("default", "published")
CPU_FORMS, GPU_FORMS = ("exact", "half", "int8"), ("exact", "half", "float8", "int8")
WAYS = ("as written", "folded")
PEERS = ("faiss flat", "maxsim-cpu (another score)")  # only where the stored measurement has them
LAYERS, CHUNKS = 15, 65536  # router layers of the default model; chunks of the stored CPU measurement


def load(name: str) -> dict[str, Any]:
    """One stored result."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def stored(name: str) -> bool:
    """Whether there is such a result."""
    return (RESULTS / f"{name}.json").is_file()


def origin(name: str) -> str:
    """Command, machine and date."""
    content = load(name)
    made = content.get("environment", content)
    machine = made["machine"] + (f", {made['threads']} threads" if "threads" in made else "")
    command = content.get("command") or COMMANDS.get(name) or made["command"]
    return f"[`{name}.json`](../benchmarks/results/{name}.json): `{command}`; {machine}; {made['date']}."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; all but the first column to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def ms(seconds: float) -> str:
    """Milliseconds with three digits."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rate(value: float) -> str:
    """Tokens in a second, three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def times(ratio: float) -> str:
    """A ratio with enough digits to be compared with a target."""
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×" if ratio >= 10 else f"{ratio:.2f}×"


def span(values: Iterable[float]) -> str:
    """The least and the greatest of several ratios."""
    ordered = sorted(values)
    return f"{times(ordered[0]).removesuffix('×')}–{times(ordered[-1])}"


def routing_cpu() -> str:
    """Each form of key and question length, for both shapes."""
    name = "routing_scorer_2cpu_202611"
    content, rows = load(name), []
    ways = [*WAYS, *(peer for peer in PEERS if all(peer in content[shape][CPU_SIZE] for shape in CPU_SHAPES))]
    for shape in CPU_SHAPES:
        sizes = content[shape][CPU_SIZE]
        for form in CPU_FORMS:
            for length in LENGTHS:
                ours, stream = sizes[form][length], sizes[form]["stream"]
                rows.append(
                    [
                        f"{shape}, {form}, {length}",
                        ms(ours["best"]),
                        f"{ms(stream)} / {ms(ours['product'])}",
                        times(ours["/ floor"]),
                        *(f"{ms(sizes[way][length]['best'])} ({times(ours[f'{way}: times as long'])})" for way in ways),
                        f"{ours['peak_added_mib']:.1f} / {sizes['as written'][length]['peak_added_mib']:.0f}",
                    ]
                )
    header = ["shape, keys, question", "ms", "floors: read / multiply, ms", "of the larger"]
    header += [*(f"{way}, ms (slower)" for way in ways), "memory added: here / as written, MiB"]
    return f"{table(header, rows)}\n\n{above_the_product()}\n\n{origin(name)}"


def above_the_product() -> str:
    """What the scorer takes beside multiplying, by question length."""
    sizes = load("routing_scorer_2cpu_202611")["published"][CPU_SIZE]
    found = {
        form: " / ".join(ms(sizes[form][length]["best"] - sizes[form][length]["product"]) for length in LENGTHS)
        for form in CPU_FORMS
    }
    shown = "; ".join(f"{form} {values}" for form, values in found.items())
    return f"Time beyond multiplying, published shape, 8 / 32 / 64 tokens, ms: {shown}."


def routing_gpu() -> str:
    """Each form of key and question length, 100M tokens of the published shape."""
    name = "routing_scorer_h200_202611"
    sizes, rows = load(name)["published"][GPU_SIZE], []
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
    return f"{table([*header, *others], rows)}\n\n{origin(name)}"


def routing_memory() -> str:
    """What scoring adds to the resident keys."""
    name = "routing_memory_2cpu_202611"
    content = load(name)
    rows = [
        [way, ms(content[way]["seconds"]), f"{content[way]['keys_mib']:.0f}", f"{content[way]['peak_added_mib']:.0f}"]
        for way in ("msa", "folded", "head by head")
    ]
    return f"{table(['scorer', 'median ms', 'keys, MiB', 'added at the peak, MiB'], rows)}\n\n{origin(name)}"


def encoding() -> str:
    """Text to committed segment, and its parts."""
    name = "encoding_msa-tiny_2cpu_202611"
    content = load(name)
    shown = {
        "add": "text to committed segment",
        "encoder": "token ids to latents",
        "bare_forward": "all layers of our network, nothing kept",
        "transformers_forward": "all layers of transformers' model",
        "naive": "batches in document order",
    }
    rates, ratios = content["tokens_per_s"], content["ratios"]
    rows = []
    for key, text in shown.items():
        found = (f"{ours} / {key}" for ours in ("add", "encoder"))
        rows.append([text, f"{rates[key]:,.0f}", *(times(ratios[r]) if r in ratios else "" for r in found)])
    header = ["msa-tiny", "tokens/s", "text to segment: ratio", "ids to latents: ratio"]
    return f"{table(header, rows)}\n\n{origin(name)}"


def encode_decode() -> str:
    """The default model beside transformers."""
    name = "encode_decode_2cpu_202611"
    content = load(name)
    rates, ratios = {**content["encoding"], **content["decoding"]}, content["ratios"]
    pairs = [
        ("encoding", "msa_encode", "transformers_forward_without_logits", "encode / forward without logits"),
        ("", "msa_encode", "transformers_forward", "encode / forward"),
        ("decoding, one row", "msa_decode", "transformers_generate", "decode / generate"),
    ]
    shown = {
        "transformers_forward_without_logits": "bare forward, no logits",
        "transformers_forward": "bare forward, logits",
        "transformers_generate": "generate",
    }
    rows = [[what, rate(rates[a]), f"{shown[b]}: {rate(rates[b])}", times(ratios[r])] for what, a, b, r in pairs]
    floor = f"floor, derived: {rate(1 / decode_floor())}"
    rows.append(["", rate(rates["msa_decode"]), floor, f"{times(decode_of_floor())} the time"])
    return f"{table(['smollm2-135m, tokens/s', 'here', 'beside', 'ratio'], rows)}\n\n{origin(name)}"


def answering() -> str:
    """The default model's answers beside transformers and one at a time, with floors of the same process."""
    rows = []
    for part in load(ANSWERING)["answering"]:
        what = part["what"].removeprefix("answering, ")
        unit = "tokens/s" if "tokens/s" in part else "questions/s"
        beside = next(iter(part["baselines"]))
        others = part[unit] / part["baselines"][beside]["times as fast here"]
        faster = times(part["baselines"][beside]["times as fast here"])
        floor = f"{part['highest floor']}: {times(part['/ floor'])}" if unit == "tokens/s" else ""
        rows.append([f"{what}, {unit}", rate(part[unit]), f"{beside}: {rate(others)}", faster, floor])
    return f"{table(['smollm2-135m', 'here', 'beside', 'ratio', 'of the floor'], rows)}\n\n{origin(ANSWERING)}"


def few_rows() -> str:
    """All products of one token a row, in several ways."""
    name = FEW_ROWS
    content = load(name)
    counts = [key for key in content if key.endswith(" rows")]
    ways = [*content[counts[-1]]]
    rows = [
        [
            way,
            *(ms(content[count][way]) if way in content[count] else "" for count in counts),
            f"{content['off'][way]:.4f}",
        ]
        for way in ways
    ]
    rows.append(["floor: reading bf16 weights", *[ms(content["floor"])] * len(counts), ""])
    return f"{table(['ms', *counts, 'off'], rows)}\n\n{origin(name)}"


def read_speed() -> float:
    """Bytes/s of reading 128 MiB of keys once, as the routing measurement found it on the same machine."""
    exact = load("routing_scorer_2cpu_202611")["published"][CPU_SIZE]["exact"]
    return float(exact["key_mib"]) * 2**20 / float(exact["stream"])


def decode_floor() -> float:
    """Seconds of reading as many bytes as the default model's weights have once, measured in another run."""
    return float(load(FEW_ROWS)["floor"])


def decode_of_floor() -> float:
    """Seconds per token as a multiple of the floor."""
    return 1 / load("encode_decode_2cpu_202611")["decoding"]["msa_decode"] / decode_floor()


def decode_of_streaming() -> float:
    """Seconds per token as a multiple of reading the weights once, both of ``msa bench answering``."""
    return next(float(part["/ floor"]) for part in load(ANSWERING)["answering"] if part["what"].endswith("decode"))


def question_floor(size: Mapping[str, Any], tier: str) -> float:
    """Seconds of routing through all layers at least: reading the keys, or multiplying them with 8 tokens; derived."""
    form = "int8" if tier == "int8" else "half"
    stored_bytes = next(row["routing_key_bytes"] for row in size["tiers"] if row["routing_keys"] == form)
    product = load("routing_scorer_2cpu_202611")["default"][CPU_SIZE][form]["8 tokens"]["product"]
    return max(stored_bytes / read_speed(), product * LAYERS * size["chunks"] / CHUNKS)


def memory_sizes() -> str:
    """A question through all router layers, by memory size and tier."""
    name = "bank_scale_2cpu_202611"
    rows = []
    for size in load(name)["sizes"]:
        for row in size["tiers"]:
            tier, floor = row["routing_keys"], question_floor(size, row["routing_keys"])
            seconds = [row[key] for key in ("view_seconds", "first_question_seconds", "question_seconds")]
            rows.append(
                [
                    f"{size['tokens'] // 10**6}M, {tier}",
                    *map(ms, seconds),
                    ms(floor),
                    times(row["question_seconds"] / floor),
                    ms(row["fetch_seconds"]),
                    f"{row['resident_bytes'] / 1e9:.2f}",
                ]
            )
    header = ["tokens, keys", "load, ms", "first question, ms", "question, ms", "floor, derived, ms", "of the floor"]
    return f"{table([*header, 'fetch winners, ms', 'resident, GB'], rows)}\n\n{origin(name)}"


def gpu_memory() -> str:
    """A memory of real texts on one GPU: taking them in, searching, answering; before the last changes too."""
    rows, sources = [], []
    for name, code in ((GPU_MEMORY_FORMER, "before"), (GPU_MEMORY, "now")):
        content = load(name)
        for size in content["sizes"]:
            exact, eight = (size["tiers"][form] for form in ("exact", "int8"))
            rows.append(
                [
                    f"{code}, {size['tokens'] / 1e6:.1f}M",
                    rate(size["adding"]["tokens_per_s"]),
                    f"{size['bytes_on_disk'] / 1e9:.2f}",
                    f"{exact['search_milliseconds']:.0f} / {eight['search_milliseconds']:.0f}",
                    f"{exact['floor_milliseconds']:.2g} / {eight['floor_milliseconds']:.2g}",
                    ms(size["ask"]["exact"]["first_text_seconds"]),
                    f"{size['asking_gpu_peak_bytes'] / 1e9:.2f}",
                ]
            )
        speeds, machine = content["encoding"]["tokens_per_s"], content["machine"]
        made = f"`{content['command']}`; {machine['gpu']}, {machine['cores']} cores, torch {machine['torch']}"
        sources.append(
            f"* {code}: the encoder alone {rate(speeds['encoder'])} tokens/s; the layers it needs, over batches padded "
            f"beforehand, nothing kept, {rate(speeds['bare'])}. [`{name}.json`](../benchmarks/results/{name}.json): "
            f"{made}; {content['date']}."
        )
    header = ["tokens", "added, tokens/s", "on disk, GB", "search, ms: exact / int8", "floor: read the keys, ms"]
    return f"{table([*header, 'first text, ms', 'GPU memory, GB'], rows)}\n\n" + "\n".join(sources)


def gpu_questions() -> str:
    """The same held-out questions as that memory grows."""
    rows = []
    for size in load(GPU_MEMORY)["sizes"]:
        found = size["questions"]["exact"]
        sources = sorted(name for name in found if name.endswith(", beginning"))
        for name in ("beginning", *sources):
            scores, source = found[name], "all" if name == "beginning" else name.partition(",")[0]
            recalls = [f"{scores[key]:.3f}" for key in ("recall@1", "recall@16")]
            answered = f"{scores['answered']:.2f} of {scores['asked']}" if scores["asked"] else ""
            rows.append([f"{size['tokens'] / 1e6:.1f}M", source, str(scores["questions"]), *recalls, answered])
    return table(["tokens", "source", "questions", "recall@1", "recall@16", "answered"], rows)


def top_k_growth() -> str:
    """A question by documents selected per router layer; empty where it has not been measured."""
    if not stored(TOP_K):
        return ""
    content = load(TOP_K)
    rows = [
        [
            str(row["top_k"]),
            f"{row['columns']:,.0f}",
            f"{row['fetched_bytes'] / 1e6:.2f}",
            ms(row["prefill_seconds"]),
            ms(row["token_seconds"]),
        ]
        for row in content["rows"]
    ]
    header = ["selected per layer", "columns", "fetched, MB", "prefill, ms", "each token, ms"]
    return f"{table(header, rows)}\n\n{origin(TOP_K)}"


def concurrency() -> str:
    """Questions side by side; empty where they have not been measured."""
    if not stored(CONCURRENCY):
        return ""
    content = load(CONCURRENCY)
    keys = ("questions/s", "tokens/s", "times one at a time", "texts as alone")
    rows = [
        [way, f"{row[keys[0]]:.3g}", f"{row[keys[1]]:,.0f}", times(row[keys[2]]), str(row[keys[3]])]
        for way, row in content["throughput"].items()
    ]
    passes = [[rows_, ms(row["seconds"]), f"{row['tokens/s']:,.0f}"] for rows_, row in content["passes"].items()]
    heading = f"## Questions together\n\n{content['model']}: {content['what']}."
    tables = [table([*("", *keys)], rows), table(["one pass over", "ms", "tokens/s"], passes)]
    picture = "![questions and tokens per second by questions together](images/performance-concurrency.png)"
    return "\n\n".join([heading, *tables, picture, origin(CONCURRENCY)])


def ratios_of(shape: str, forms: Iterable[str], key: str) -> list[float]:
    """One ratio of the stored CPU routing measurement, for all lengths."""
    sizes = load("routing_scorer_2cpu_202611")[shape][CPU_SIZE]
    return [sizes[form][length][key] for form in forms for length in LENGTHS]


def targets() -> str:
    """What was aimed at, what was reached."""
    at_32 = load("routing_scorer_2cpu_202611")["published"][CPU_SIZE]
    at_32 = {form: at_32[form]["32 tokens"] for form in ("exact", "int8")}
    gpu = load("routing_scorer_h200_202611")["published"][GPU_SIZE]
    coding, decoding = load("encoding_msa-tiny_2cpu_202611")["ratios"], load("encode_decode_2cpu_202611")["ratios"]
    of_gpu = {form: [gpu[form][length]["replayed / floor"] for length in LENGTHS] for form in GPU_FORMS}
    whole, scored = (
        [gpu[form][length][way]["best"] / gpu[form]["stream"] for form in GPU_FORMS[:2] for length in LENGTHS]
        for way in ("select", "route")
    )
    growing = load(GPU_MEMORY)
    reading, added = growing["encoding"]["tokens_per_s"], growing["sizes"][-1]["adding"]["tokens_per_s"]
    memory = [at_32[form]["as written: times the memory"] for form in at_32]
    lines: list[tuple[str, str, list[float], float]] = [
        ("routing on CPU, exact and half, × floor", "≤", ratios_of("published", ("exact", "half"), "/ floor"), 1.5),
        ("… int8", "≤", ratios_of("published", ("int8",), "/ floor"), 1.5),
        ("… × the floor at peak, exact and half", "≤", ratios_of("published", ("exact", "half"), "/ peak floor"), 1.5),
        ("… int8", "≤", ratios_of("published", ("int8",), "/ peak floor"), 1.5),
        ("… default model's shape, all forms, × floor", "≤", ratios_of("default", CPU_FORMS, "/ floor"), 1.5),
        ("… faster than as written, 32 tokens, exact", "≥", [at_32["exact"]["as written: times as long"]], 30),
        ("… int8", "≥", [at_32["int8"]["as written: times as long"]], 30),
        ("… less extra memory than as written, 32 tokens", "≥", memory, 10),
        ("… faster than folded, 32 tokens, exact", "≥", [at_32["exact"]["folded: times as long"]], 4),
        ("… int8", "≥", [at_32["int8"]["folded: times as long"]], 4),
        ("routing on an H200 (earlier kernel), exact and half, × floor", "≤", of_gpu["exact"] + of_gpu["half"], 1.3),
        ("… float8 and int8", "≤", of_gpu["float8"] + of_gpu["int8"], 1.3),
        ("… exact and half, the whole call", "≤", whole, 1.3),
        ("… with all scores, as a memory asks", "≤", scored, 1.3),
        ("text to segment, of our bare forward, msa-tiny", "≥", [coding["add / bare_forward"]], 0.95),
        ("… of transformers' bare forward", "≥", [coding["add / transformers_forward"]], 0.95),
        ("… of batches in document order", "≥", [coding["add / naive"]], 1.5),
        ("text to segment on an H200, of the layers needed, default", "≥", [added / reading["bare"]], 0.95),
        ("ids to latents, of the bare forward, default", "≥", [decoding["encode / forward without logits"]], 0.95),
        ("decoding, of transformers' generate, default", "≥", [decoding["decode / generate"]], 2.5),
        ("… × streaming the weights once", "≤", [decode_of_streaming()], 1.6),
    ]
    rows = []
    for what, sign, values, target in lines:
        met = max(values) <= target if sign == "≤" else min(values) >= target
        rows.append([what, times(values[0]) if len(values) == 1 else span(values), f"{sign} {target}×", _met(met)])
    return table(["", "measured", "target", ""], rows)


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


def blocks() -> dict[str, str]:
    """Name → Markdown of each part of the page that comes from stored results."""
    return {
        "targets": targets(),
        "routing on a cpu": routing_cpu(),
        "memory of routing": routing_memory(),
        "routing on an h200": routing_gpu(),
        "encoding": encoding(),
        "encoding and decoding": encode_decode(),
        "answering": answering(),
        "few rows": few_rows(),
        "memory size": memory_sizes(),
        "gpu memory": gpu_memory(),
        "gpu questions": gpu_questions(),
        "top k": top_k_growth(),
        "concurrency": concurrency(),
    }
