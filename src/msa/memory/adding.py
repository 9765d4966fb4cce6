"""Adding documents to a memory: windows of about one commit's size, of which only what is new is encoded."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from msa.bank import BankSpec, Latents, MemoryBank, Part, StoredDocument
from msa.documents import Document
from msa.documents.splitting import split_text
from msa.encoding import encode_in_batches
from msa.model.bundle import MSAModel
from msa.ops.route import quantize_keys
from msa.parallel import Ranks, lead_encoding
from msa.routing.segment_latents import similarity_of

_COMMIT_TOKENS = 65536  # encoded between two commits: what a kill can cost, and what is held in memory
_CHARACTERS_PER_TOKEN = 4  # of English; a text of more for each token of the limit is not tried as a whole


@dataclass(frozen=True, kw_only=True)
class AddProgress:
    """How far an :meth:`Memory.add` has come; all counts since its start.

    Attributes:
        documents: documents read so far, unchanged ones included.
        encoded: documents committed with a new text.
        updated: documents committed with new metadata only.
        unchanged: documents that were already there, or given again before the commit.
        tokens: tokens encoded.
        characters: characters of the documents read.
    """

    documents: int = 0
    encoded: int = 0
    updated: int = 0
    unchanged: int = 0
    tokens: int = 0
    characters: int = 0


def windows(documents: Iterator[Document], ids: list[str]) -> Iterator[list[Document]]:
    """Documents in groups of about one commit's size; notes every id in ``ids``."""
    window: list[Document] = []
    size = 0
    for document in documents:
        ids.append(document.id)
        window.append(document)
        size += len(document.text) // 3 + 16  # tokens, roughly
        if size >= _COMMIT_TOKENS:
            yield window
            window, size = [], 0
    if window:
        yield window


class WindowWriter:
    """Commits windows of documents, one after the other also where several threads add.

    Args:
        bank: open for writing.
        load_model: gives the model, asked only when there is something to encode.
        ranks: processes that help to encode.

    Attributes:
        changing: to be held by whatever else changes the bank. It is free while a window is encoded.
    """

    def __init__(self, bank: MemoryBank, load_model: Callable[[], MSAModel], ranks: Ranks | None) -> None:
        self.changing = threading.Lock()
        self._adding = threading.Lock()
        self._bank = bank
        self._load_model = load_model
        self._ranks = ranks

    def add(
        self, window: Sequence[Document], done: AddProgress, progress: Callable[[AddProgress], None] | None
    ) -> AddProgress:
        """Encode what of a window is new, commit it, and say how far that has come since ``done``."""
        tokens_done = done.tokens

        def report(tokens: int) -> None:
            nonlocal tokens_done
            tokens_done += tokens
            if progress:
                progress(replace(done, tokens=tokens_done))

        with self._adding:  # nobody else may use the next numbers
            new, updates, sequences = self._plan(window)
            latents = self._encode(sequences, report) if sequences else None
            with self.changing:
                # what was deleted while the others were encoded stays so
                there = self._bank.sound_documents(document.id for document in updates)
                kept = [each for each in updates if each.id in there and there[each.id].parts == each.parts]
                if new or kept:
                    self._bank.commit(put=[*new, *kept], latents=latents)
        return AddProgress(
            documents=done.documents + len(window),
            encoded=done.encoded + len(new),
            updated=done.updated + len(updates),
            unchanged=done.unchanged + len(window) - len(new) - len(updates),
            tokens=tokens_done,
            characters=done.characters + sum(len(document.text) for document in window),
        )

    def _plan(self, window: Sequence[Document]) -> tuple[list[StoredDocument], list[StoredDocument], list[list[int]]]:
        """Documents with a new text, those with new metadata alone, and the token ids of the new parts."""
        new: list[StoredDocument] = []
        updates: list[StoredDocument] = []
        sequences: list[list[int]] = []
        number = self._bank.next_number
        distinct = {document.id: document for document in window}
        present = self._bank.sound_documents(distinct)
        for document in distinct.values():
            digest = text_digest(document.text)
            stored = present.get(document.id)
            if stored is None or stored.content_hash != digest:
                parts, token_ids = self._split(document.text, number)
                number += len(parts)
                sequences += token_ids
                new.append(_stored(document, digest, parts))
            elif stored.metadata != document.metadata:
                updates.append(_stored(document, digest, stored.parts))
        return new, updates, sequences

    def _split(self, text: str, number: int) -> tuple[tuple[Part, ...], list[list[int]]]:
        """Parts of a text, numbered from ``number``, and the token ids each is encoded as."""
        protocol, chunk_size = self._load_model().protocol, self._bank.spec.chunk_size
        limit = protocol.strings.max_document_tokens
        if len(text) <= _CHARACTERS_PER_TOKEN * limit:
            ids = protocol.document_ids(number, text)
            # what fits together with its number fits alone: most texts are tokenised once
            if len(ids) <= limit:
                return (_part(number, 0, len(text), ids, chunk_size),), [ids]
        parts, sequences = [], []
        spans = split_text(text, max_tokens=limit, token_starts=protocol.plain_starts)
        for part_number, (start, end) in enumerate(spans, start=number):
            ids = protocol.document_ids(part_number, text[start:end])
            sequences.append(ids)
            parts.append(_part(part_number, start, end, ids, chunk_size))
        return tuple(parts), sequences

    def _encode(self, sequences: Sequence[Sequence[int]], report: Callable[[int], None]) -> Latents:
        """Stage 1 over the new parts, in the order of their numbers, in the bank's dtype on the CPU."""
        lm = self._load_model().lm
        if self._ranks is not None:
            memory = lead_encoding(lm, sequences, self._ranks, progress=report)
        else:
            memory = encode_in_batches(lm, sequences, progress=report)
        spec = self._bank.spec
        dtype = getattr(torch, spec.dtype)
        first = self._bank.next_number

        def stored(states: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
            return {layer: tensor.to("cpu", dtype) for layer, tensor in states.items()}

        routing_keys = stored(memory.routing_keys)
        similarity = similarity_of(spec)
        eight = {layer: quantize_keys(keys, similarity) for layer, keys in routing_keys.items() if spec.int8}
        return Latents(
            routing_keys=routing_keys,
            int8_routing_keys={layer: block.keys for layer, block in eight.items()},
            int8_scales={layer: block.scale for layer, block in eight.items()},
            keys=stored(memory.keys),
            values=stored(memory.values),
            numbers=torch.arange(first, first + len(sequences)),
            chunk_offsets=memory.chunk_offsets.cpu(),
        )


def spec_of(model: MSAModel) -> BankSpec:
    """The shape of the latents that a model makes."""
    config = model.lm.config
    return BankSpec(
        layers=tuple(config.router_layers),
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        chunk_size=config.chunk_size,
        dtype=str(model.lm.dtype).removeprefix("torch."),
        model_name=model.name,
        settings={"routing_similarity": config.routing_similarity},
        int8=True,
    )


def text_digest(text: str) -> str:
    """What tells whether a document's text has changed: SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(document: Document, digest: str, parts: tuple[Part, ...]) -> StoredDocument:
    return StoredDocument(
        id=document.id, text=document.text, metadata=document.metadata, content_hash=digest, parts=parts
    )


def _part(number: int, start: int, end: int, ids: Sequence[int], chunk_size: int) -> Part:
    """The span ``start:end`` of a text, encoded as ``ids``."""
    return Part(number=number, start=start, end=end, num_tokens=len(ids), num_chunks=-(-len(ids) // chunk_size))
