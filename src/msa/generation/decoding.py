"""Prefill and decode: batches of prompts over one memory, token by token.

Rows of a batch are left padded and masked; each row routes, attends and draws exactly as it would alone.

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msa.documents.batching import pad_left
from msa.generation.sampling import Sampling, sample
from msa.model import KVCache, MemoryView, MSAForCausalLM, PrefixMemory
from msa.ops import Routing


@dataclass(kw_only=True)
class Prompt:
    """One row to continue.

    Attributes:
        ids: token ids after the template prefix.
        routes: for each token whether it routes; empty: none does.
        stop_ids: tokens that end the row; the one that did is the last of ``generated``.
        stop_when: asked after every token; True ends the row.
        max_new_tokens: bound on ``generated``.
        sampling: how tokens are drawn.
        allowed: generated tokens so far → the token ids that may come next; None: all may.
    """

    ids: list[int]
    routes: list[bool] = field(default_factory=list)
    stop_ids: frozenset[int] = frozenset()
    stop_when: Callable[[Sequence[int]], bool] | None = None
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    allowed: Callable[[Sequence[int]], list[int]] | None = None


@dataclass
class Row:
    """A prompt and what has been generated for it.

    Attributes:
        finish_reason: ``stop`` (a stop token), ``length`` (the bound), ``cancelled``; None while it runs.
    """

    prompt: Prompt
    generated: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    generator: torch.Generator | None = None

    def accept(self, token: int) -> None:
        """Append one token and notice the end."""
        self.generated.append(token)
        if token in self.prompt.stop_ids or (self.prompt.stop_when and self.prompt.stop_when(self.generated)):
            self.finish_reason = "stop"
        elif len(self.generated) >= self.prompt.max_new_tokens:
            self.finish_reason = "length"


class Decoding:
    """Rows being decoded together over one memory.

    Args:
        lm: the network.
        prompts: one per row, none empty.
        memory: what to route over; None: nothing.
        prefix: the template prefix; None: none.
        doc_mask: documents that may be selected, bool ``[N]`` or ``[B, N]``.
        prefill_tokens: tokens per forward pass of the prefill. Everything up to the last routing token goes in one
            pass whatever it is, because a router layer needs the whole question; the result is the same.

    Attributes:
        rows: their state.
        routing: router layer → :class:`msa.ops.Routing` of the prefill.
    """

    def __init__(
        self,
        lm: MSAForCausalLM,
        prompts: Sequence[Prompt],
        *,
        memory: MemoryView | None = None,
        prefix: PrefixMemory | None = None,
        doc_mask: Tensor | None = None,
        prefill_tokens: int = 4096,
    ) -> None:
        if not prompts or any(not prompt.ids for prompt in prompts):
            raise ValueError("every prompt needs at least one token")
        if prefill_tokens < 1:
            raise ValueError(f"prefill_tokens must be at least 1, got {prefill_tokens}")
        self._lm = lm
        self.rows = [Row(prompt, generator=prompt.sampling.generator()) for prompt in prompts]
        self._logits, self._cache, self.routing = self._prefill(memory, prefix, doc_mask, prefill_tokens)

    def _prefill(
        self, memory: MemoryView | None, prefix: PrefixMemory | None, doc_mask: Tensor | None, prefill_tokens: int
    ) -> tuple[Tensor, KVCache, dict[int, Routing]]:
        prompts = [row.prompt for row in self.rows]
        ids, mask = pad_left([prompt.ids for prompt in prompts], self._lm.device)
        routes, _ = pad_left([[int(r) for r in p.routes] or [0] * len(p.ids) for p in prompts], self._lm.device)
        routing_columns = routes.bool().any(0).nonzero()
        last_routing = int(routing_columns[-1]) + 1 if routing_columns.numel() else 0
        first = min(ids.shape[1], max(prefill_tokens, last_routing))
        with torch.inference_mode():
            out = self._lm(
                ids[:, :first],
                attention_mask=mask[:, :first],
                routing_mask=routes[:, :first],
                memory=memory,
                prefix=prefix,
                doc_mask=doc_mask,
                use_cache=True,
                logits_to_keep=1,
            )
            routing = out.routing
            for start in range(first, ids.shape[1], prefill_tokens):
                piece = slice(start, start + prefill_tokens)
                out = self._lm(ids[:, piece], attention_mask=mask[:, piece], cache=out.cache, logits_to_keep=1)
        return out.logits[:, -1], out.cache, routing

    def extend(self, ids: Sequence[int], prompt: Prompt) -> None:
        """Append tokens to a single finished row and let it go on under ``prompt``'s limits; nothing is routed."""
        if len(self.rows) != 1:
            raise ValueError(f"only a single row can be extended, this batch has {len(self.rows)}")
        with torch.inference_mode():
            pending = self.rows[0].generated[-1:]  # drawn, but not yet in the cache
            tokens = torch.tensor([[*pending, *ids]], device=self._lm.device)
            out = self._lm(tokens, cache=self._cache, logits_to_keep=1)
        self._logits, self._cache = out.logits[:, -1], out.cache
        self.rows = [Row(prompt, generator=prompt.sampling.generator())]

    def run(self, cancelled: Callable[[], bool] | None = None) -> Iterator[tuple[int, int]]:
        """Decode until every row has ended; yields (row, token) as they are drawn.

        Closing the iterator, or ``cancelled`` returning True, stops between two tokens.
        """
        while True:
            if cancelled is not None and cancelled():
                for row in self.rows:
                    row.finish_reason = row.finish_reason or "cancelled"
                return
            running = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
            if not running:
                return
            tokens = [0] * len(self.rows)
            for i in running:
                tokens[i] = self._draw(self.rows[i], self._logits[i])
                self.rows[i].accept(tokens[i])
                yield i, tokens[i]
            if all(row.finish_reason is not None for row in self.rows):
                return
            with torch.inference_mode():
                step = torch.tensor(tokens, device=self._lm.device)[:, None]
                out = self._lm(step, cache=self._cache)
            self._logits, self._cache = out.logits[:, -1], out.cache

    @staticmethod
    def _draw(row: Row, logits: Tensor) -> int:
        prompt = row.prompt
        if prompt.allowed is not None:
            allowed = torch.tensor(prompt.allowed(row.generated), device=logits.device)
            return int(allowed[sample(logits[allowed], prompt.sampling, row.generator)])
        return sample(logits, prompt.sampling, row.generator)
