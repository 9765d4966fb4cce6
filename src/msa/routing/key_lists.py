"""Routing keys sorted into short lists of like ones, by k-means in two levels.

Axes: C chunks, n lists, d = Hkv·D the length of a chunk's keys, all heads in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msa.ops.route import KeyBlock
from msa.ops.route.blocks import dequantize

# Measured on the routers of SmolLM2-135M over 33,033 chunks: shorter lists cost more centroids than they save keys,
# longer ones hold more keys that no question wants.
CHUNKS_PER_LIST = 40
# each chunk stands in the lists of its two nearest centroids: what lies at a border is found from both sides
LISTS_PER_CHUNK = 2
_GROUPS_TRIED = 3
_ROUNDS = 6
_SAMPLE_PER_CENTROID = 64
_TILE_ELEMENTS = 4 * 1024 * 1024  # distances that exist at a time: 16 MB


@dataclass(frozen=True, eq=False)
class KeyLists:
    """The chunks of one block of routing keys, list after list.

    Attributes:
        centroids: ``[n, d]`` float32, each the mean of the chunks that are nearest to it.
        spread: ``[n]`` float32: how far these are from it, root mean square.
        chunks: ``[E]`` int32: members of all lists in a row, a chunk in up to two of them.
        offsets: ``[n + 1]`` int64: list i holds ``chunks[offsets[i]:offsets[i + 1]]``.
        nearest: ``[C]`` int32: the list whose centroid is nearest to each chunk.
    """

    centroids: Tensor
    spread: Tensor
    chunks: Tensor
    offsets: Tensor
    nearest: Tensor

    @property
    def num_lists(self) -> int:
        """Lists, which is also how many centroids a question is compared with."""
        return len(self.centroids)


def lists_bytes(num_chunks: int, key_length: int) -> int:
    """About what the lists of so many chunks take: members, nearest list, and a centroid for every few of them."""
    return num_chunks * (4 * LISTS_PER_CHUNK + 4) + num_chunks // CHUNKS_PER_LIST * 4 * (key_length + 3)


@torch.no_grad()
def cluster_keys(block: KeyBlock, similarity: str, seed: int = 0) -> KeyLists:
    """Sort the keys of a block into lists of about :data:`CHUNKS_PER_LIST`.

    Groups of about √n lists are found first and split up then, so the work grows as C·√C; keys are float32 meanwhile:
    4·C·d bytes. The same block and seed give the same lists.

    Raises:
        ValueError: a block without chunks, or one prepared for another similarity.
    """
    num_chunks = block.keys.shape[0]
    if num_chunks == 0:
        raise ValueError("a block without chunks has no lists; expected at least one chunk")
    keys = dequantize([block], similarity).flatten(1)
    generator = torch.Generator().manual_seed(seed)
    groups = _means(keys, max(1, round((num_chunks / CHUNKS_PER_LIST) ** 0.5)), generator)
    near, _ = _nearest(keys, groups, _GROUPS_TRIED)
    lists = keys.new_zeros(num_chunks, 0, dtype=torch.int64)
    centroids, distances = [], keys.new_zeros(num_chunks, 0)
    padding = (0, LISTS_PER_CHUNK)
    lists = torch.nn.functional.pad(lists, padding, value=-1)
    distances = torch.nn.functional.pad(distances, padding, value=float("inf"))
    num_lists = 0
    for group in range(len(groups)):
        own = keys[near[:, 0] == group]
        if not len(own):
            continue
        centroids.append(_means(own, max(1, round(len(own) / CHUNKS_PER_LIST)), generator))
        rows = (near == group).any(1).nonzero().squeeze(1)
        local, distance = _nearest(keys[rows], centroids[-1], LISTS_PER_CHUNK)
        both = torch.cat([distances[rows], distance], dim=1)
        names = torch.cat([lists[rows], local + num_lists], dim=1)
        best = both.topk(LISTS_PER_CHUNK, dim=1, largest=False)
        distances[rows], lists[rows] = best.values, names.gather(1, best.indices)
        num_lists += len(centroids[-1])
    return _sorted_lists(keys, torch.cat(centroids), lists)


def _sorted_lists(keys: Tensor, centroids: Tensor, lists: Tensor) -> KeyLists:
    """Lists out of each chunk's own, nearest first ``[C, m]``, −1 where it has fewer."""
    nearest = lists[:, 0]
    counts = nearest.bincount(minlength=len(centroids)).clamp(min=1)
    means = torch.zeros_like(centroids).index_add_(0, nearest, keys) / counts[:, None]
    off = (keys - means[nearest]).square().sum(1)
    spread = (torch.zeros_like(means[:, 0]).index_add_(0, nearest, off) / counts).sqrt()
    chunks, place = (lists >= 0).nonzero(as_tuple=True)
    of = lists[chunks, place]
    order = of.sort(stable=True).indices
    offsets = torch.nn.functional.pad(of.bincount(minlength=len(centroids)).cumsum(0), (1, 0))
    return KeyLists(means, spread, chunks[order].int(), offsets, nearest.int())


def _means(keys: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Lloyd's k-means on a sample: up to ``count`` centroids ``[n, d]``; one that loses all its keys moves to one."""
    num_sampled = min(len(keys), count * _SAMPLE_PER_CENTROID)
    sample = keys[torch.randperm(len(keys), generator=generator)[:num_sampled].to(keys.device)]
    centroids = sample[:count].clone()
    for _ in range(_ROUNDS):
        nearest = _nearest(sample, centroids, 1)[0].squeeze(1)
        counts = nearest.bincount(minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, nearest, sample)
        lost = torch.randint(num_sampled, (len(centroids),), generator=generator).to(keys.device)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], sample[lost])
    return centroids


def _nearest(keys: Tensor, centroids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each key the nearest centroids ``[C, m]``, nearest first, and the squared distances less the key's square."""
    count = min(count, len(centroids))
    lengths = centroids.square().sum(1)
    found = [
        torch.addmm(lengths, tile, centroids.T, alpha=-2).topk(count, dim=1, largest=False)
        for tile in keys.split(max(1, _TILE_ELEMENTS // len(centroids)))
    ]
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])
