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
from msa.model.lower_layers import LowerLayers, prefill_after
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
        allowed: generated tokens so far → the token ids that may come next, or these with what is added to their
            logits, or None: all may.
    """

    ids: list[int]
    routes: list[bool] = field(default_factory=list)
    stop_ids: frozenset[int] = frozenset()
    stop_when: Callable[[Sequence[int]], bool] | None = None
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    allowed: Callable[[Sequence[int]], list[int] | dict[int, float] | None] | None = None


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
        earlier: what an earlier decoding, of a prompt that this single one begins with, kept in ``lower``; it is not
            computed again.

    Attributes:
        rows: their state.
        routing: router layer → :class:`msa.ops.Routing` of the prefill.
        tokens: the last token of each row, drawn and not yet in the cache.
        lower: of a single prompt over a memory that went in one pass: for a later one that begins alike.
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
        earlier: LowerLayers | None = None,
    ) -> None:
        if not prompts or any(not prompt.ids for prompt in prompts):
            raise ValueError("every prompt needs at least one token")
        if prefill_tokens < 1:
            raise ValueError(f"prefill_tokens must be at least 1, got {prefill_tokens}")
        self._lm = lm
        self.rows = [Row(prompt, generator=prompt.sampling.generator()) for prompt in prompts]
        self.tokens: list[int] = []
        self.lower: LowerLayers | None = None
        self._cache: KVCache | None
        if (
            memory is not None
            and len(prompts) == 1
            and any(prompts[0].routes)
            and len(prompts[0].ids) <= prefill_tokens
        ):
            done = prefill_after(lm, prompts[0].ids, prompts[0].routes, memory, prefix, doc_mask, earlier)
            self._logits, self._cache, self.routing, self.lower = done.logits, done.cache, done.routing, done.lower
        else:
            self._logits, self._cache, self.routing = self._prefill(memory, prefix, doc_mask, prefill_tokens)
        self._reclaim: Callable[[Decoding], KVCache] | None = None

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
        pending = self.rows[0].generated[-1:]  # drawn, but not yet in the cache
        self._forward([[*pending, *ids]])
        self.rows = [Row(prompt, generator=prompt.sampling.generator())]

    def run(self, cancelled: Callable[[], bool] | None = None) -> Iterator[tuple[int, int]]:
        """Decode until every row has ended; yields (row, token) as they are drawn.

        Closing the iterator, or ``cancelled`` returning True, stops between two tokens.
        """
        for drawn in self.steps(cancelled):
            if drawn is None:
                self.advance()
            else:
                yield drawn

    def steps(self, cancelled: Callable[[], bool] | None = None) -> Iterator[tuple[int, int] | None]:
        """As :meth:`run`, but the passes between tokens are the caller's to make.

        Each None asks for one: :meth:`advance`, or one together with other decodings (:class:`msa.engine.Batcher`).
        """
        while True:
            if cancelled is not None and cancelled():
                for row in self.rows:
                    row.finish_reason = row.finish_reason or "cancelled"
                return
            running = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
            if not running:
                return
            self.tokens = [0] * len(self.rows)
            for i in running:
                self.tokens[i] = self._draw(self.rows[i], self._logits[i])
                self.rows[i].accept(self.tokens[i])
                yield i, self.tokens[i]
            if all(row.finish_reason is not None for row in self.rows):
                return
            yield None

    def advance(self) -> None:
        """The pass between two tokens."""
        self._forward([[token] for token in self.tokens])

    @property
    def cache(self) -> KVCache:
        """Keys and values of all rows; taken back from the batch that they were lent to."""
        if self._cache is None:
            assert self._reclaim is not None
            self._cache, self._reclaim = self._reclaim(self), None
        return self._cache

    def lend(self, reclaim: Callable[[Decoding], KVCache]) -> None:
        """Let go of the cache: a batch has it, makes the passes from now on, and gives it back by ``reclaim``."""
        self._cache, self._reclaim = None, reclaim

    def give(self, logits: Tensor) -> None:
        """Take the logits ``[B, V]`` of a pass that a batch has made."""
        self._logits = logits

    def _forward(self, tokens: list[list[int]]) -> None:
        with torch.inference_mode():
            ids = torch.tensor(tokens, device=self._lm.device)
            out = self._lm(ids, cache=self.cache, logits_to_keep=1)
        self._logits, self._cache = out.logits[:, -1], out.cache

    @staticmethod
    def _draw(row: Row, logits: Tensor) -> int:
        prompt = row.prompt
        choice = None if prompt.allowed is None else prompt.allowed(row.generated)
        if choice is not None:
            allowed = torch.tensor([*choice], device=logits.device)
            logits = logits[allowed]
            if isinstance(choice, dict):
                logits = logits.float() + torch.tensor([*choice.values()], device=logits.device)
            return int(allowed[sample(logits, prompt.sampling, row.generator)])
        return sample(logits, prompt.sampling, row.generator)
