"""The documents of a library as the engine handles them: by number, as hits, and as texts that fit a prompt.

Axes: N documents, C chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from msa.documents import Protocol
from msa.generation.budget import Candidate, Fitted, fit_documents
from msa.generation.types import Hit
from msa.ops import Routing
from msa.ops.route import best_documents
from msa.routing import Library
from msa.routing.ranking import WORD_RANKS, fused_scores, mean_over_layers


class LibraryDocuments:
    """Looks documents up in one library.

    Args:
        library: the memory to answer from.
        protocol: the checkpoint's transcript.
    """

    def __init__(self, library: Library, protocol: Protocol) -> None:
        self.library = library
        self._protocol = protocol
        self._numbers: np.ndarray = np.asarray(library.numbers)  # [N]
        # a folder's numbers ascend; those of folders put together need not
        self._order = None
        if bool((self._numbers[1:] < self._numbers[:-1]).any()):
            self._order = self._numbers.argsort(kind="stable")
            self._numbers = self._numbers[self._order]

    def index(self, number: int) -> int | None:
        """The index of the document of this number; None: there is none."""
        row = int(np.searchsorted(self._numbers, number))
        if row == len(self._numbers) or self._numbers[row] != number:
            return None
        return row if self._order is None else int(self._order[row])

    def indices(self, numbers: Sequence[int]) -> list[int]:
        """The indices of documents by number, in the order asked; numbers of none are left out."""
        found = (self.index(number) for number in numbers)
        return [index for index in found if index is not None]

    def best(
        self, routing: dict[int, Routing], row: int, top_k: int, words: str | None = None
    ) -> tuple[list[Hit], list[int]]:
        """The ``top_k`` best documents of one row by the mean over layers, and the best chunk of each.

        ``words`` is a question whose exact words rank them too.
        """
        if not routing:
            return [], []
        scores, chunks = mean_over_layers(routing, row)
        if words is not None:
            selectable = self.library.numbers[(scores > float("-inf")).cpu().numpy()]
            scores = fused_scores(scores, self.indices(self.library.matches(words, WORD_RANKS, selectable)))
        indices = best_documents(scores[None], top_k)[0]
        chosen = indices[scores[indices] > float("-inf")].tolist()
        hits = self.hits(chosen, scores)
        if words is not None:
            hits = [replace(hit, ranking="hybrid") for hit in hits]
        return hits, self.best_chunks(hits, chunks)

    def votes(self, routing: dict[int, Routing], row: int) -> dict[int, list[int]]:
        """Per router layer the numbers of the documents it selected for one row, best first."""
        return {
            layer: [int(self.library.numbers[index]) for index in found.doc_indices[row].tolist() if index >= 0]
            for layer, found in routing.items()
        }

    def best_chunks(self, hits: Sequence[Hit], chunk_scores: Tensor) -> list[int]:
        """Which of its own chunks scores best, for each hit; ``chunk_scores`` ``[C]``."""
        best = []
        for index in self.indices([hit.number for hit in hits]):
            first, end = self.library.chunk_offsets[index : index + 2].tolist()
            best.append(int(chunk_scores[first:end].argmax()) if end > first else 0)
        return best

    def hits(self, indices: Sequence[int], scores: Tensor) -> list[Hit]:
        """Documents by index with their ``scores`` ``[N]``; one that is no longer there is left out."""
        numbers = [int(self.library.numbers[index]) for index in indices]
        hits = []
        for index, part in zip(indices, self.library.parts(numbers), strict=True):
            if part is None:  # deleted since this view of the memory was taken
                continue
            hits.append(
                Hit(
                    id=part.document_id,
                    text=part.text,
                    score=float(scores[index]),
                    metadata={**part.metadata},
                    number=part.part.number,
                    part=part.index + 1,
                    parts=part.num_parts,
                    offset=part.part.start,
                )
            )
        return hits

    def fit(self, hits: Sequence[Hit], best: Sequence[int], template: str, budget: int) -> Fitted:
        """What of the hits' texts fits ``budget`` tokens, by the best chunk of each."""
        candidates = [
            Candidate(number=hit.number, name=hit.title, text=hit.text, best_chunk=chunk)
            for hit, chunk in zip(hits, best, strict=True)
        ]
        return fit_documents(self._protocol, candidates, template, budget, self.library.chunk_size)
