"""The tables of ``docs/performance.md``, out of the results stored in ``benchmarks/results``.

Nothing is measured here. ``python benchmarks/performance_pictures.py`` puts the tables into the page and draws the
pictures. Two floors were not measured in the run they stand beside and are derived; the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from performance_routing import (
    CPU,
    CPU_FORMS,
    CPU_SIZE,
    GPU,
    GPU_FORMS,
    GPU_SIZE,
    LENGTHS,
    ratios_again,
    ratios_of,
    routing_again,
    routing_alike,
    routing_cpu,
    routing_gpu,
    routing_memory,
    times_the_memory,
)
from result_tables import load, ms, origin, rate, span, stored, table, times, unnamed

CONCURRENCY, TOP_K = "serving_throughput_2cpu_202611", "top_k_growth_2cpu_202611"
GPU_MEMORY = "gpu_memory_h200_202611"
ANSWERING = "bench_answering_smollm2-135m_2cpu_202611"
FEW_ROWS = "few_row_products_2cpu_202611"
GPU_MEMORY_FORMER = "gpu_memory_former_h200_202611"
LAYERS, CHUNKS = 15, 65536  # router layers of the default model; chunks of the stored CPU measurement


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
        same = str(part.get("texts as one at a time", ""))
        rows.append([f"{what}, {unit}", rate(part[unit]), f"{beside}: {rate(others)}", faster, floor, same])
    header = ["smollm2-135m", "here", "beside", "ratio", "of the floor", "texts as alone"]
    return f"{table(header, rows)}\n\n{origin(ANSWERING)}"


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
    exact = load(CPU)["published"][CPU_SIZE]["exact"]
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


def _of_generate() -> float:
    """Tokens/s as a multiple of transformers' ``generate``, by ``msa bench answering``."""
    part = next(part for part in load(ANSWERING)["answering"] if part["what"].endswith("decode"))
    return float(part["baselines"]["generate"]["times as fast here"])


def question_floor(size: Mapping[str, Any], tier: str) -> float:
    """Seconds of routing through all layers at least: reading the keys, or multiplying them with 8 tokens; derived."""
    form = "int8" if tier == "int8" else "half"
    stored_bytes = next(row["routing_key_bytes"] for row in size["tiers"] if row["routing_keys"] == form)
    product = load(CPU)["default"][CPU_SIZE][form]["8 tokens"]["product"]
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
            f"{made}; {content['date']}{unnamed(content['command'], content.get('commit'))}."
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
    keys = ("questions/s", "tokens/s", "times one at a time", "questions a pass", "texts as alone")
    rows = [
        [
            way,
            f"{row[keys[0]]:.3g}",
            f"{row[keys[1]]:,.0f}",
            times(row[keys[2]]),
            f"{row[keys[3]]:.3g}" if keys[3] in row else "not noted",
            str(row[keys[4]]),
        ]
        for way, row in content["throughput"].items()
    ]
    passes = [[rows_, ms(row["seconds"]), f"{row['tokens/s']:,.0f}"] for rows_, row in content["passes"].items()]
    heading = f"## Questions together\n\n{content['model']}: {content['what']}."
    tables = [table([*("", *keys)], rows), table(["one pass over", "ms", "tokens/s"], passes)]
    picture = "![questions and tokens per second by questions together](images/performance-concurrency.png)"
    return "\n\n".join([heading, *tables, picture, origin(CONCURRENCY)])


def targets() -> str:
    """What was aimed at, what was reached; the worse of two runs decides."""
    coding, decoding = load("encoding_msa-tiny_2cpu_202611")["ratios"], load("encode_decode_2cpu_202611")["ratios"]
    growing = load(GPU_MEMORY)
    reading, added = growing["encoding"]["tokens_per_s"], growing["sizes"][-1]["adding"]["tokens_per_s"]
    lines: list[tuple[str, str, list[float], list[float], float]] = [
        *_routing_targets(),
        ("text to segment, of our bare forward, msa-tiny", "≥", [coding["add / bare_forward"]], [], 0.95),
        ("… of transformers' bare forward", "≥", [coding["add / transformers_forward"]], [], 0.95),
        ("… of batches in document order", "≥", [coding["add / naive"]], [], 1.5),
        ("text to segment on an H200, of the layers needed, default", "≥", [added / reading["bare"]], [], 0.95),
        ("ids to latents, of the bare forward, default", "≥", [decoding["encode / forward without logits"]], [], 0.95),
        ("decoding, of transformers' generate, default", "≥", [decoding["decode / generate"]], [_of_generate()], 2.5),
        ("… × streaming the weights once", "≤", [], [decode_of_streaming()], 1.6),
    ]
    rows = []
    for what, sign, values, again, target in lines:
        met = max(values + again) <= target if sign == "≤" else min(values + again) >= target
        rows.append([what, _shown(values), _shown(again), f"{sign} {target}×", "met" if met else "**missed**"])
    return table(["", "measured", "by `msa bench`", "target", ""], rows)


def _routing_targets() -> list[tuple[str, str, list[float], list[float], float]]:
    gpu = load(GPU)["published"][GPU_SIZE]

    def of_gpu(*forms: str) -> list[float]:
        return [gpu[form][length]["replayed / floor"] for form in forms for length in LENGTHS]

    whole, scored = (
        [gpu[form][length][way]["best"] / gpu[form]["stream"] for form in GPU_FORMS[:2] for length in LENGTHS]
        for way in ("select", "route")
    )

    def both(what: str, sign: str, forms: tuple[str, ...], key: str, target: float) -> Any:
        """By both measurements; speed is compared at 32 tokens, floors at all lengths."""
        lengths = ("32 tokens",) if sign == "≥" else LENGTHS
        found = ratios_of("published", forms, key, lengths), ratios_again(forms, key, lengths)
        return (what, sign, *found, target)

    return [
        both("routing on CPU, exact and half, × floor", "≤", ("exact", "half"), "/ floor", 1.5),
        both("… int8", "≤", ("int8",), "/ floor", 1.5),
        both("… × the floor at peak, exact and half", "≤", ("exact", "half"), "/ peak floor", 1.5),
        both("… int8", "≤", ("int8",), "/ peak floor", 1.5),
        ("… default model's shape, all forms, × floor", "≤", ratios_of("default", CPU_FORMS, "/ floor"), [], 1.5),
        both("… faster than as written, 32 tokens, exact", "≥", ("exact",), "as written: times as long", 30),
        both("… int8", "≥", ("int8",), "as written: times as long", 30),
        ("… less extra memory than as written, 32 tokens", "≥", times_the_memory("32 tokens"), [], 10),
        both("… faster than folded, 32 tokens, exact", "≥", ("exact",), "folded: times as long", 4),
        both("… int8", "≥", ("int8",), "folded: times as long", 4),
        ("routing on an H200 (earlier kernel), exact and half, × floor", "≤", of_gpu("exact", "half"), [], 1.3),
        ("… float8 and int8", "≤", of_gpu("float8", "int8"), [], 1.3),
        ("… exact and half, the whole call", "≤", whole, [], 1.3),
        ("… with all scores, as a memory asks", "≤", scored, [], 1.3),
    ]


def _shown(values: list[float]) -> str:
    return "" if not values else times(values[0]) if len(values) == 1 else span(values)


def blocks() -> dict[str, str]:
    """Name → Markdown of each part of the page that comes from stored results."""
    return {
        "targets": targets(),
        "routing on a cpu": routing_cpu(),
        "routing again": routing_again(),
        "alike": routing_alike(),
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
