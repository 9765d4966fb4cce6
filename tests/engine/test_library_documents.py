"""Documents by number, however many there are and in whatever order they come."""

import time

import numpy as np
import pytest
import torch

from msa import DocumentMemory
from msa.engine.library_documents import LibraryDocuments
from msa.generation.constraint import IdTrie
from msa.ops import Routing


class Numbered(DocumentMemory):
    """As much of a library as looking numbers up needs."""

    chunk_size = 4


def documents(model, numbers):
    library = Numbered({}, {}, {}, torch.arange(len(numbers) + 1))
    library.numbers = np.array(numbers, dtype=np.int64)
    return LibraryDocuments(library, model.protocol)


@pytest.mark.parametrize("numbers", [[1, 2, 3], [2, 5, 17, 900], [17, 2, 900, 5], [5], []])
def test_numbers_are_found_where_they_stand(model, numbers):
    found = documents(model, numbers)
    for number in [-1, 0, 1, 3, 4, 5, 18, 899, 901, 10**18, *numbers]:
        assert found.index(number) == (numbers.index(number) if number in numbers else None)
    asked = [900, 4, 2, 10**18, 17]
    assert found.indices(asked) == [numbers.index(number) for number in asked if number in numbers]


def test_of_equal_scores_the_first_added_goes_first(model):
    """Whatever the number of documents; torch.topk leaves it open."""
    for count in (20, 300, 5000):
        found = documents(model, [*range(1, count + 1)])
        found.hits = lambda indices, scores: indices
        found.best_chunks = lambda hits, chunks: []
        scores = torch.zeros(1, count)
        scores[0, count // 2] = 1.0
        routing = {0: Routing(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), scores, scores)}
        assert found.best(routing, 0, 4)[0] == [count // 2, 0, 1, 2]


def test_two_million_documents_cost_no_seconds(model):
    numbers = np.arange(1, 4_000_001, 2)
    started = time.process_time()
    found = documents(model, numbers)
    trie = IdTrie(numbers)
    assert found.index(3_999_999) == 1_999_999
    assert found.index(4) is None
    assert trie.has("3999999")
    assert not trie.has("4")
    assert time.process_time() - started < 0.5
