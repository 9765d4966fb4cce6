"""What each part of the method costs, by formula and by count: floating-point operations and bytes read (paper §3.4).

Multiplications and additions count as two operations; norms, activations, softmax and RoPE, a hundredth of the rest,
are left out, as in torch's own counter. Attention counts its full rectangle, which is what the kernels are given.

Axes: T tokens, C chunks, H hidden, I inner, V vocabulary, Hq query heads, Hkv key/value heads, D head_dim, R router
layers, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from msa.model import MSAConfig


@dataclass(frozen=True)
class Cost:
    """Operations and bytes read of one step.

    Attributes:
        flops: floating-point operations.
        bytes: of weights, keys and values read once each.
    """

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes a cost depends on; see the module's axes."""

    hidden: int
    inner: int
    vocabulary: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    router_layers: tuple[int, ...]
    chunk_size: int
    value_bytes: int = 2

    @classmethod
    def of(cls, config: MSAConfig, dtype: torch.dtype = torch.bfloat16) -> Shape:
        """The shape of a model in ``dtype``."""
        assert isinstance(config.router_layers, list)
        assert config.num_key_value_heads is not None
        assert config.head_dim is not None
        return cls(
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            vocabulary=config.vocab_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            num_layers=config.num_hidden_layers,
            router_layers=tuple(config.router_layers),
            chunk_size=config.chunk_size,
            value_bytes=dtype.itemsize,
        )

    @property
    def q_size(self) -> int:
        """Hq·D."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Hkv·D."""
        return self.num_kv_heads * self.head_dim

    @property
    def projections(self) -> int:
        """Weights of q, k and v of one layer."""
        return self.hidden * (self.q_size + 2 * self.kv_size)

    @property
    def layer_weights(self) -> int:
        """Weights of one layer without routers."""
        return self.projections + self.q_size * self.hidden + 3 * self.hidden * self.inner


def encode_cost(shape: Shape, length: int) -> Cost:
    """One document of ``length`` tokens, up to the last router layer's keys and values (stage 1).

    Grows with the corpus, linearly: every document is encoded alone, once.
    """
    chunks = -(-length // shape.chunk_size)
    body = _body(shape, length, length)
    keys = len(shape.router_layers) * shape.hidden * shape.kv_size
    return body + Cost(2 * keys * chunks, keys * shape.value_bytes)


def route_cost(
    shape: Shape,
    tokens: int,
    num_chunks: int,
    *,
    prefix: int = 0,
    key_bytes: int | None = None,
    routing_tokens: int | None = None,
) -> Cost:
    """A question's routing pass: up to the last router layer, and every chunk's score in every router layer (Eq. 2).

    Args:
        shape: of the model.
        tokens: of the question, or of its turn with the template's words.
        num_chunks: chunks of the memory.
        prefix: tokens of the template prefix, attended to.
        key_bytes: bytes of one value of a routing key; None: those of the model's dtype.
        routing_tokens: how many of ``tokens`` route; None: all.
    """
    body = _body(shape, tokens, prefix + tokens)
    routers = len(shape.router_layers)
    queries = routers * shape.hidden * shape.q_size
    scores = routers * num_chunks * shape.kv_size
    stored = shape.value_bytes if key_bytes is None else key_bytes
    routing = tokens if routing_tokens is None else routing_tokens
    return body + Cost(2 * (tokens * queries + routing * scores), queries * shape.value_bytes + scores * stored)


def fetch_cost(shape: Shape, selected_chunks: int) -> Cost:
    """Content keys and values of the selected documents, in every router layer; does not grow with the memory."""
    return Cost(0, len(shape.router_layers) * selected_chunks * 2 * shape.kv_size * shape.value_bytes)


def prefill_cost(shape: Shape, tokens: int, selected_chunks: int, *, prefix: int = 0) -> Cost:
    """The question through all layers over what was selected, and the logits of its last token; routing not counted."""
    layers, routers = shape.num_layers, len(shape.router_layers)
    flops = 2 * tokens * layers * shape.layer_weights
    flops += 4 * tokens * shape.q_size * (layers * (prefix + tokens) + routers * selected_chunks)
    flops += 2 * shape.hidden * shape.vocabulary
    weights = layers * shape.layer_weights + shape.hidden * shape.vocabulary
    context = 2 * shape.kv_size * layers * prefix
    return Cost(flops, (weights + context) * shape.value_bytes)


def decode_cost(shape: Shape, context: int, selected_chunks: int) -> Cost:
    """One further token: weights and the cache of ``context`` tokens, and in router layers what was selected."""
    layers, routers = shape.num_layers, len(shape.router_layers)
    cached = layers * context + routers * selected_chunks
    flops = 2 * (layers * shape.layer_weights + shape.hidden * shape.vocabulary) + 4 * shape.q_size * cached
    weights = layers * shape.layer_weights + shape.hidden * shape.vocabulary
    return Cost(flops, (weights + 2 * shape.kv_size * cached) * shape.value_bytes)


def _body(shape: Shape, tokens: int, context: int) -> Cost:
    """Layers below the last router, and that one's projections: where encoding and routing end."""
    last = shape.router_layers[-1]
    weights = last * shape.layer_weights + shape.projections
    return Cost(2 * tokens * weights + last * 4 * tokens * context * shape.q_size, weights * shape.value_bytes)


def _products() -> dict[Any, Callable[..., int]]:
    """Matrix products that torch's counter does not know, as far as this build has them: of int8, of packed weights."""
    known = (getattr(torch.ops.aten, "_int_mm", None), getattr(torch.ops.mkldnn, "_linear_pointwise", None))
    return {product: _product_flops for product in known if product is not None}


def _product_flops(left: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Of rows ``[…, K]`` and a matrix, for a result ``[…, c]``."""
    return 2 * math.prod(left) * out_shape[-1]


def counted_flops(work: Callable[[], object]) -> int:
    """Operations of ``work`` as torch counts them, on one thread: those of other threads are not seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # the fused attention kernels are not in the counter's table
        counter = FlopCounterMode(display=False, custom_mapping=_products())
        with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            work()
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops()


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """y ≈ intercept + slope · x, by least squares of relative errors.

    Attributes:
        intercept, slope: of the line.
        r_squared: share of y's variance that the line explains.
        worst_residual: largest |y − line| / y.
    """

    intercept: float
    slope: float
    r_squared: float
    worst_residual: float


def linear_fit(sizes: Sequence[float], values: Sequence[float]) -> LinearFit:
    """Fit a line through costs at several memory sizes, each point weighing the same however large it is.

    Raises:
        ValueError: fewer than three points, or a value that is not above 0.

    >>> fit = linear_fit([1, 10, 100], [3.0, 12.0, 102.0])
    >>> round(fit.intercept, 6), round(fit.slope, 6), round(fit.worst_residual, 6)
    (2.0, 1.0, 0.0)
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    if len(x) < 3 or len(x) != len(y) or not (y > 0).all():
        raise ValueError(f"a line needs three or more points above 0, got {list(values)} at {list(sizes)}")
    matrix = np.stack([np.ones_like(x), x], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(matrix / y[:, None], np.ones_like(y), rcond=None)
    residuals = y - (intercept + slope * x)
    spread = float(((y - y.mean()) ** 2).sum())
    return LinearFit(
        intercept=float(intercept),
        slope=float(slope),
        r_squared=1.0 - float((residuals**2).sum()) / spread if spread else 1.0,
        worst_residual=float(np.abs(residuals / y).max()),
    )
