"""Memory Sparse Attention as a row of the comparison: the user's :class:`msa.Memory`, nothing else."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msa.evaluation.alternatives.prompts import answer_lead, counting_tokens
from msa.evaluation.types import Prediction, Question
from msa.memory import AddProgress, Memory
from msa.model.bundle import MSAModel
from msa.routing import Tiers


class MemoryAnswerer:
    """Answers from a memory folder, as ``msa ask`` does.

    How the answer begins (``Question.answer_prefix``) is given to it as to the rows that read texts; see
    :func:`msa.evaluation.alternatives.prompts.answer_lead`. ``tokens_seen`` counts every prefill of the question:
    routing, rereading, each round.

    Args:
        name: of the row.
        model: encodes, routes, reads and answers.
        folder: of the memory, new or made with this model; None: a temporary one.
        retrieval: ``generative`` or ``routed``; None: the checkpoint's own.
        interleave: several rounds of generative retrieval (Memory Interleave); False: one.
        max_rounds: rounds at most, with ``interleave``.
        original_text: insert the texts of the documents found; False: answer from the latents of the routed documents
            alone (the paper's ablation); generative retrieval only.
        similarity: ``cosine`` or ``dot``; None: the checkpoint's own. A memory folder made with the other is not to be
            reused.
        read_only: ask a folder that is there as it is; nothing can be taken in.

    Attributes:
        encoded_tokens: tokens that taking documents in has encoded so far.
        routing_keys: their tier, see :class:`msa.routing.Tiers`: ``exact``, ``half``, ``int8`` or ``mapped``.

    Raises:
        ValueError: a setting this retrieval does not have, or an unknown word.
    """

    def __init__(
        self,
        name: str,
        model: MSAModel,
        *,
        folder: str | Path | None = None,
        retrieval: str | None = None,
        interleave: bool = True,
        max_rounds: int = 4,
        original_text: bool = True,
        similarity: str | None = None,
        routing_keys: str = "exact",
        read_only: bool = False,
    ) -> None:
        if similarity not in (None, "cosine", "dot"):
            raise ValueError(f"similarity must be cosine or dot, got {similarity!r}")
        if retrieval not in (None, "generative", "routed"):
            raise ValueError(f"retrieval must be generative or routed, got {retrieval!r}")
        if max_rounds < 1:
            raise ValueError(f"max_rounds must be at least 1, got {max_rounds}; original_text=False reads no text")
        self._retrieval = retrieval or model.protocol.strings.retrieval
        if self._retrieval == "routed" and not original_text:
            raise ValueError(
                "original_text=False needs retrieval='generative': routed mode answers from the texts alone"
            )
        self.name, self.encoded_tokens = name, 0
        self._model = model
        self._similarity = similarity or str(model.lm.config.routing_similarity)
        self._max_rounds = 0 if not original_text else max_rounds if interleave else 1
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if folder is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="msa-evaluation-")
            folder = self._scratch.name
        self._tiers = Tiers(routing_keys=routing_keys)
        with self._scoring():
            self._memory = Memory.open(folder, model, tiers=self._tiers, read_only=read_only)

    def close(self) -> None:
        """Release the folder; a temporary one is removed."""
        self._memory.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def prepare(self, documents: Mapping[str, str]) -> None:
        """See :class:`msa.evaluation.Answerer`: appends to the memory; what it holds already is not encoded again."""
        before = self.encoded_tokens

        def note(done: AddProgress) -> None:
            self.encoded_tokens = before + done.tokens

        with self._scoring():
            self._memory.add(({"id": name, "text": text} for name, text in documents.items()), progress=note)

    def settle(self) -> None:
        """See :class:`msa.evaluation.Answerer`: brings the routing keys where they belong."""
        with self._scoring():
            if len(self._memory):
                self._memory.search("ready", top_k=1)

    def answer(self, question: Question, max_new_tokens: int) -> Prediction:
        """See :class:`msa.evaluation.Answerer`."""
        started = time.perf_counter()
        with self._scoring(), counting_tokens(self._model) as tokens_seen:
            answer = self._memory.ask(
                question.question,
                retrieval=self._retrieval,
                max_rounds=self._max_rounds,
                max_new_tokens=max_new_tokens,
                answer_lead=answer_lead(self._model, question),
            )
            seen = tokens_seen()
        read = tuple(dict.fromkeys(hit.id for hit in answer.sources if hit.read))
        reads_texts = self._retrieval == "routed" or self._max_rounds > 0
        return Prediction(
            text=answer.text,
            retrieved=tuple(dict.fromkeys(hit.id for hit in answer.sources)),
            read=read if reads_texts else None,
            seconds=time.perf_counter() - started,
            first_token_s=answer.timings["first_token"],
            tokens_seen=seen,
            note="; ".join(answer.notes),
        )

    def stats(self) -> dict[str, Any]:
        """See :meth:`msa.Memory.stats`."""
        return self._memory.stats()

    def resident_bytes(self) -> int:
        """Bytes of the routing keys in their tier; texts, content keys and values stay on disk."""
        return sum(self._tiers.needed_bytes(self._memory.bank.spec, self._memory.stats()["chunks"]))

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """The model scores by this row's similarity; other rows share the model, so it is put back."""
        config = self._model.lm.config
        before, config.routing_similarity = config.routing_similarity, self._similarity
        try:
            yield
        finally:
            config.routing_similarity = before
