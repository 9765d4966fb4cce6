"""Ways to spread documents over ranks."""

from collections.abc import Iterator

import torch

from msa.parallel import shard_of

LENGTHS = (5, 17, 1, 9, 4, 8, 30, 3, 12, 2, 16)
NUM_DOCUMENTS = len(LENGTHS)
CONTIGUOUS = {1: [[11]], 2: [[1, 10], [0, 11]], 3: [[4, 0, 7], [3, 4, 4]], 4: [[3, 0, 8, 0], [0, 0, 11, 0]]}


def layouts(world: int, num_documents: int = NUM_DOCUMENTS) -> Iterator[list[list[int]]]:
    """Which documents each rank holds."""
    if num_documents == NUM_DOCUMENTS:
        for sizes in CONTIGUOUS[world]:
            yield [each.tolist() for each in torch.arange(NUM_DOCUMENTS).split(sizes)]
    yield [list(shard_of(range(num_documents), rank, world)) for rank in range(world)]
    yield [list(range(rank, num_documents, world)) for rank in range(world)]  # in turn
    yield [[i for i in range(num_documents) if (i * i) % world == rank] for rank in range(world)]  # uneven, scattered
