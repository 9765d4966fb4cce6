"""Logits → token: greedy, temperature, top-k, top-p; a random generator per row, so rows do not disturb each other."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

_LEAST_TOP_P = 1e-6  # in the precision that tokens are drawn with, much less would leave no token at all


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: smallest set of tokens whose probability reaches this much; 1: all.
        top_k: most probable tokens kept; 0: all.
        seed: for repeatable draws; None: fresh randomness.

    Raises:
        ValueError: a value outside its range.
        TypeError: a value that is no number, or a ``top_k`` or seed that is no whole one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"{name} must be a number, got {value!r}")
        check_whole("top_k", self.top_k)
        if self.seed is not None:
            check_whole("seed", self.seed)
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature must lie in 0..100, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed must have at most 64 bits, got {self.seed}")

    def generator(self) -> torch.Generator | None:
        """A generator for one row; None where nothing is random."""
        if self.temperature == 0:
            return None
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(int(self.seed))
        return generator


def check_whole(name: str, value: object) -> None:
    """Refuse what is no whole number; True and False are none.

    Raises:
        TypeError: that names ``name``.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Draw one token from logits ``[V]``; drawn on the CPU, so a seed gives the same token on every device."""
    if sampling.temperature == 0:
        # numpy finds the largest of 50,000 in a tenth of the time that torch takes on a CPU for bfloat16
        return int(logits.detach().float().numpy().argmax() if logits.device.type == "cpu" else logits.argmax())
    scores = logits.float().cpu()
    scores = (scores - scores.max()) / max(sampling.temperature, 1e-6)
    if sampling.top_k and sampling.top_k < scores.shape[0]:
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], float("-inf"))
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(0) - ordered  # probability of the tokens ahead of each
        probabilities = torch.zeros_like(probabilities).scatter(
            0, order, ordered.masked_fill(before >= max(sampling.top_p, _LEAST_TOP_P), 0)
        )
    return int(torch.multinomial(probabilities, 1, generator=generator))
