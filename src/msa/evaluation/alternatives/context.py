"""All documents in the prompt, under an attention pattern: the backbone without memory and without retrieval."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from msa.evaluation.alternatives.pattern_attention import PatternCache, PatternRun
from msa.evaluation.alternatives.patterns import FullAttention, Longformer, StreamingLLM
from msa.evaluation.alternatives.prompts import ReadingPrompt, Writing, reading_prompt, stop_ids
from msa.evaluation.types import Prediction, Question
from msa.model.bundle import MSAModel
from msa.routing.tiers import free_host_bytes


class ContextAnswerer:
    """The backbone reads every document, then answers; an attention pattern decides which tokens see which.

    The whole prompt is processed for each question. With ``reuse_documents`` the documents' keys and values are
    computed in :meth:`settle` and kept: the strong version, possible where documents stand before the question (not
    in the transcript of a checkpoint trained for the memory, whose question comes first). What is kept is exactly the
    tokens that prompts of any two questions share. :meth:`settle` computes them anew after further documents.

    A prompt that does not fit is a prediction with a note: positions beyond the context (patterns that count positions
    in the text), or a KV cache beyond the memory.

    Args:
        name: of the row.
        model: the backbone.
        pattern: what sees what; the question's tokens are filled in where they matter.
        reuse_documents: keep the documents' keys and values between questions.
        allow_extrapolation: go on beyond the context the backbone was trained for.
        max_cache_bytes: bound on the KV cache; None: what is free when a question is asked.

    Raises:
        ValueError: ``reuse_documents`` with a checkpoint whose question stands before the documents.
    """

    def __init__(
        self,
        name: str,
        model: MSAModel,
        pattern: FullAttention,
        *,
        reuse_documents: bool = False,
        allow_extrapolation: bool = False,
        max_cache_bytes: int | None = None,
    ) -> None:
        self.name = name
        self._model, self._pattern = model, pattern
        self._extrapolate, self._max_cache_bytes = allow_extrapolation, max_cache_bytes
        self._texts: dict[str, str] = {}
        self._kept: list[int] = []
        self._cache: PatternCache | None = None
        self._stale = False
        self._reuse = reuse_documents
        if reuse_documents and len(self._shared_ids({"": "text"})) == len(self._shared_ids({})):
            raise ValueError(
                f"reuse_documents needs documents before the question, and the transcript of {model.name} puts the "
                "question first; leave it out"
            )

    def prepare(self, documents: Mapping[str, str]) -> None:
        """See :class:`msa.evaluation.Answerer`."""
        self._texts.update(documents)
        self._stale = self._stale or bool(self._reuse and documents)

    def settle(self) -> None:
        """See :class:`msa.evaluation.Answerer`."""
        if not self._stale:
            return
        self._stale = False
        self._kept, self._cache = [], None
        shared = self._shared_ids(self._texts)
        if not self._refusal(len(shared)):
            run = PatternRun(self._model.lm, self._pattern)
            run.read(shared)
            self._kept, self._cache = shared, run.cache

    def answer(self, question: Question, max_new_tokens: int) -> Prediction:
        """See :class:`msa.evaluation.Answerer`."""
        self.settle()
        # the documents are the same for every question: cutting them into tokens is not the question's time
        prompt = self._prompt(self._texts, question)
        started = time.perf_counter()
        refusal = self._refusal(len(prompt.ids) + max_new_tokens)
        if refusal:
            return Prediction(text="", note=refusal, seconds=time.perf_counter() - started)
        run = PatternRun(self._model.lm, self._pattern_for(prompt))
        num_kept = len(self._kept)
        if self._cache is not None and num_kept < len(prompt.ids) and prompt.ids[:num_kept] == self._kept:
            run.cache = self._cache.fork()
        new = prompt.ids[run.cache.length :]
        writing, stops = Writing(self._model, prompt.opening), stop_ids(self._model)
        logits, written_ids = run.read(new), list[int]()
        for count in range(max_new_tokens):
            choice = None if prompt.allowed is None else prompt.allowed(written_ids)
            token = int(logits.argmax()) if choice is None else choice[int(logits[choice].argmax())]
            written_ids.append(token)
            writing.push(token)
            if token in stops or count + 1 == max_new_tokens:
                break
            logits = run.read([token])
        written = writing.finish()
        return Prediction(
            text=written.text,
            seconds=time.perf_counter() - started,
            first_token_s=written.first_token - started,
            tokens_seen=len(new),
        )

    def resident_bytes(self) -> int:
        """Bytes of the documents' text, and of their keys and values where those are kept."""
        cached = 0 if self._cache is None else self._cache.num_bytes()
        return cached + sum(len(text.encode()) for text in self._texts.values())

    def _prompt(self, texts: Mapping[str, str], question: Question) -> ReadingPrompt:
        return reading_prompt(self._model, list(enumerate(texts.values())), question)

    def _shared_ids(self, texts: Mapping[str, str]) -> list[int]:
        """Tokens that the prompts of any two questions begin with."""
        pair = [self._prompt(texts, Question(id="", question=words, answers=())).ids for words in ("What?", "0")]
        num_shared = next((i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), min(map(len, pair)))
        return pair[0][:num_shared]

    def _pattern_for(self, prompt: ReadingPrompt) -> FullAttention:
        if isinstance(self._pattern, Longformer):
            return replace(self._pattern, global_ranges=prompt.asked)
        return self._pattern

    def _refusal(self, num_tokens: int) -> str:
        """Why so many tokens, prompt and answer together, cannot be read; empty if they can."""
        config = self._model.lm.config
        context = config.max_position_embeddings
        if not self._extrapolate and not self._pattern.renumbers and num_tokens > context:
            return f"prompt and answer take {num_tokens} tokens, the context ends at {context}"
        held = num_tokens
        if isinstance(self._pattern, StreamingLLM):
            held = min(held, self._pattern.sinks + self._pattern.window)
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        needed = held * per_token * self._model.lm.dtype.itemsize
        free = self._max_cache_bytes
        if free is None:
            on_gpu = self._model.device.type == "cuda"
            free = torch.cuda.mem_get_info(self._model.device)[0] if on_gpu else free_host_bytes()
        if needed > free:
            return f"the keys and values of {held} tokens take {needed:,} bytes, {free:,} may be used"
        return ""
