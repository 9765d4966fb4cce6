"""The products of a decoded token, one row to sixteen, in each way that torch has on this CPU, in one run.

    python benchmarks/few_row_products.py [--rows 1 2 4 8 16] [--repeats 15] [--out benchmarks/results/FILE.json]

All products of one token of the default model's shape, with weights of their own, so that they come from memory: what
decoding does between two tokens, without the rest.

* ``plain``: bf16 weights, torch's own kernels (``msa.model.fusion.OneRowProducts``);
* ``onednn``: bf16 weights, oneDNN as torch calls it;
* ``packed``: bf16 weights packed for oneDNN (``msa.model.token_pass.Product``);
* ``int8 weights``: 8-bit weights, converted as they are read (``torch._weight_int8pack_mm``);
* ``int8``: 8-bit weights and rows, a scale for each, multiplied in 8 bits (``torch._int_mm``), rounding included.

``off`` is how far a product is from that of the bf16 weights in float64: the length of the difference, of the length.
The floor reads the bf16 weights once.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from storing import show_and_store
from torch import Tensor

from msa.bench.floors import reading
from msa.bench.timing import alternated, timed
from msa.evaluation.environment import environment
from msa.model.fusion import OneRowProducts
from msa.model.token_pass import Product

LAYERS, HEAD = 30, (49152, 576)
IN_A_LAYER = {"q, k and v": (960, 576), "output": (576, 576), "gate and up": (3072, 576), "down": (576, 1536)}
Ways = dict[str, Callable[[Tensor], Tensor]]


def int8_weights(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Only the weight is rounded."""
    rounded, scales = rounded_rows(weight.float())
    bf16_scales = scales[:, 0].to(weight.dtype)
    return lambda x: torch._weight_int8pack_mm(x, rounded, bf16_scales)


def int8(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Weight and rows are rounded."""
    rounded, scales = rounded_rows(weight.float())
    turned, turned_scales = rounded.t(), scales.t()

    def multiply(x: Tensor) -> Tensor:
        rows, row_scales = rounded_rows(x.float())
        return torch.mul(torch._int_mm(rows, turned), row_scales).mul_(turned_scales).to(x.dtype)

    return multiply


def rounded_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[n, in]`` in int8 steps of a 127th of their largest value, and the steps ``[n, 1]``."""
    steps = torch.linalg.vector_norm(rows, ord=torch.inf, dim=-1, keepdim=True).mul_(1 / 127).clamp_(min=1e-20)
    return (rows / steps).round_().to(torch.int8), steps


def ways_of(weight: Tensor) -> Ways:
    """Each way to multiply with one weight."""
    plain, packed = Product(weight, None), Product(weight, None)
    packed.pack()
    return {
        "plain": plain,
        "onednn": plain,
        "packed": packed,
        "int8 weights": int8_weights(weight),
        "int8": int8(weight),
    }


def one_token(products: list[tuple[Ways, int]], way: str, inputs: dict[int, Tensor]) -> None:
    """All products of one token a row."""
    with OneRowProducts() if way == "plain" else nullcontext():
        for ways, size in products:
            ways[way](inputs[size])


def off(way: str, rows: int) -> float:
    """How far one product is from that of the bf16 weights."""
    torch.manual_seed(1)
    weight, x = torch.randn(960, 576).bfloat16(), torch.randn(rows, 576).bfloat16()
    exact = x.double() @ weight.double().t()
    return float((ways_of(weight)[way](x).double() - exact).norm() / exact.norm())


@torch.inference_mode()
def measure(rows: list[int], repeats: int) -> dict[str, Any]:
    """Median seconds of each way for each number of rows."""
    torch.manual_seed(0)
    shapes = [*IN_A_LAYER.values()] * LAYERS + [HEAD]
    products = [(ways_of(torch.randn(shape).bfloat16()), shape[1]) for shape in shapes]
    names = list(products[0][0])
    num_bytes = sum(2 * out * size for out, size in shapes)
    found: dict[str, Any] = {
        "bytes": num_bytes,
        "floor": timed(reading(torch.ones(num_bytes, dtype=torch.uint8)), repeats)["median"],
        "off": {name: off(name, 4) for name in names},
    }
    for count in rows:
        inputs = {size: torch.randn(count, size).bfloat16() for size in {size for _, size in products}}
        works = {
            name: lambda name=name, inputs=inputs: one_token(products, name, inputs)
            for name in names
            if name != "packed" or count > 1  # for one row a packed product takes the plain weight
        }
        for work in works.values():
            work()
        seconds = alternated(works, repeats)
        found[f"{count} rows"] = {name: statistics.median(seconds[name]) for name in seconds}
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        parser.error("this CPU has no bf16 products to compare")
    result = {
        "what": "seconds of all products of one token a row, SmolLM2-135M's shape, random weights; medians",
        "environment": environment("cpu"),
        **measure(args.rows, args.repeats),
    }
    show_and_store(result, args.out)


if __name__ == "__main__":
    main()
