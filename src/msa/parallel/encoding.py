"""Stage 1 over several ranks: each encodes its share of the batches.

Axes: N documents, C chunks, Hkv key/value heads, D head_dim.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch

from msa.documents.batching import length_buckets
from msa.encoding import encode_in_batches
from msa.encoding.encoder import batch_tokens_for
from msa.errors import BankMismatchError
from msa.model import DocumentMemory, MSAForCausalLM
from msa.model.bundle import model_fingerprint
from msa.parallel.leading import Attempt, Channel, Leader, follow
from msa.parallel.ranks import Ranks, as_bytes, from_bytes

# a rank may load its model, or rank 0 look through documents that need no encoding, for so long; one that ended is
# noticed at once all the same
ENCODING_TIMEOUT_S = 600.0
_AGREE, _ENCODE = "agree on the model", "encode"


def encode_across_ranks(
    lm: MSAForCausalLM,
    documents: Sequence[Sequence[int]],
    ranks: Ranks,
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DocumentMemory | None:
    """Encode documents on all ranks and bring them together on rank 0.

    The batches are those that one process would make, dealt out in turn, so that the result is
    :func:`msa.encoding.encode_in_batches`'s, bit for bit where the ranks' hardware and number of threads are the same.

    Args:
        lm: the network, the same on every rank.
        documents: token ids of all documents, the same list on every rank, none empty.
        ranks: the processes.
        batch_tokens: tokens per forward pass once padded, the same on every rank. None: what suits the device.
        progress: called after each of this rank's own batches with its number of tokens.

    Returns:
        On rank 0 one :class:`DocumentMemory` of all documents in the order given, on the network's device; None on
        the other ranks.

    Raises:
        ValueError: no documents, or one without tokens.
    """
    lengths = [len(ids) for ids in documents]
    if not lengths or min(lengths) == 0:  # on all ranks alike, before any of them waits for another
        raise ValueError("every document must have tokens" if lengths else "nothing to encode: the list is empty")
    batch_tokens = batch_tokens or batch_tokens_for(lm)
    buckets = length_buckets(lengths, batch_tokens)
    orders = [[i for bucket in buckets[rank :: ranks.world] for i in bucket] for rank in range(ranks.world)]
    mine = orders[ranks.rank]
    local = empty_memory(lm)
    if mine:
        # whole buckets fall into the same buckets again: a length that ended one, or a longer one, still does not fit
        local = encode_in_batches(lm, [documents[i] for i in mine], batch_tokens=batch_tokens, progress=progress)
    parts = _on_first_rank(local, ranks)
    if ranks.rank:
        return None
    order = torch.tensor([i for each in orders for i in each], device=lm.device)
    return DocumentMemory.concatenate(parts).select(order.argsort())


class EncodingLeader(Leader):
    """Rank 0's side of encoding together: what :func:`begin_encoding` starts."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks, ENCODING_TIMEOUT_S)
        self._agreed: MSAForCausalLM | None = None

    def encode(
        self, lm: MSAForCausalLM, documents: Sequence[Sequence[int]], progress: Callable[[int], None] | None
    ) -> DocumentMemory:
        """Encode documents on all ranks, once they have the same model. See :func:`lead_encoding`."""
        if self._agreed is not lm:
            self.command(_AGREE, lambda channel, attempt: None, **_identity(lm))
            self._agreed = lm

        def work(_channel: Channel, _attempt: Attempt) -> DocumentMemory | None:
            self.ranks.gather(torch.tensor([len(ids) for ids in documents]))
            self.ranks.gather(torch.tensor([token for ids in documents for token in ids]))
            return encode_across_ranks(lm, documents, self.ranks, progress=progress)

        memory = self.command(_ENCODE, work)
        assert memory is not None, "only rank 0 leads"
        return memory


def begin_encoding(ranks: Ranks) -> EncodingLeader:
    """On rank 0: let the ranks in :func:`follow_encoding` know every few seconds that there will be work for them.

    :func:`lead_encoding` does it too, but whoever needs long until then should do it at once.
    """
    if ranks.encoding is None:
        ranks.encoding = EncodingLeader(ranks)
    return ranks.encoding


def lead_encoding(
    lm: MSAForCausalLM,
    documents: Sequence[Sequence[int]],
    ranks: Ranks,
    *,
    progress: Callable[[int], None] | None = None,
) -> DocumentMemory:
    """On rank 0: encode documents together with the other ranks, which are in :func:`follow_encoding`.

    Raises:
        ValueError: no documents, or one without tokens.
        BankMismatchError: another rank has another model, or the same one in another dtype.
        ParallelError: a rank was lost.
    """
    if not documents or not all(len(ids) for ids in documents):
        raise ValueError("every document must have tokens" if documents else "nothing to encode: the list is empty")
    return begin_encoding(ranks).encode(lm, documents, progress)


def end_encoding(ranks: Ranks) -> None:
    """On rank 0: let the other ranks return from :func:`follow_encoding`; does nothing if one of them was lost."""
    begin_encoding(ranks).close()
    ranks.encoding = None


def follow_encoding(lm: MSAForCausalLM | Callable[[], MSAForCausalLM], ranks: Ranks) -> None:
    """On all other ranks: help rank 0 encode until it calls :func:`end_encoding`.

    Args:
        lm: the network, or what loads it, which rank 0 need not wait for.
        ranks: the processes.

    Raises:
        BankMismatchError: rank 0 has another model, or the same one in another dtype.
        ParallelError: rank 0 ended without a word.
        KeyboardInterrupt: this rank was interrupted while it encoded, or rank 0 has ended after that.
    """
    channel = Channel(ranks, ENCODING_TIMEOUT_S)
    network = lm if isinstance(lm, MSAForCausalLM) else lm()
    nothing = torch.zeros(0, dtype=torch.int64)
    differences: list[Exception] = []

    def agree(_: Channel, attempt: Attempt, command: dict[str, Any]) -> None:
        with attempt():
            _check_identity(network, command, ranks.rank)
        differences.extend(filter(None, [attempt.problem]))

    def encode(_channel: Channel, _attempt: Attempt, _command: dict[str, Any]) -> None:
        lengths, tokens = ranks.gather(nothing)[0], ranks.gather(nothing)[0]
        documents = [ids.tolist() for ids in tokens.split(lengths.tolist())]
        encode_across_ranks(network, documents, ranks, progress=end_if_interrupted)

    def end_if_interrupted(_: int) -> None:
        # rank 0, which was interrupted too, is gone: nobody waits for the rest of a window
        if signal.SIGINT in channel.signals:
            raise KeyboardInterrupt

    follow(ranks, {_AGREE: agree, _ENCODE: encode}, lambda numbers: None, channel=channel)
    if differences:
        raise differences[0]


def _identity(lm: MSAForCausalLM) -> dict[str, str]:
    """What all ranks must have alike for their latents to be one model's."""
    return {"fingerprint": model_fingerprint(lm), "dtype": str(lm.dtype).removeprefix("torch.")}


def _check_identity(lm: MSAForCausalLM, first: dict[str, Any], rank: int) -> None:
    """Compare with rank 0's.

    Raises:
        BankMismatchError: both are named.
    """
    mine = _identity(lm)
    if any(first[key] != value for key, value in mine.items()):
        raise BankMismatchError(
            f"the ranks would encode with different models: rank 0 with {first['fingerprint']} in {first['dtype']}, "
            f"rank {rank} with {mine['fingerprint']} in {mine['dtype']}. Start all of them in the same folder, with "
            "the same --model, --dtype and $MSA_MODEL"
        )


def empty_memory(lm: MSAForCausalLM) -> DocumentMemory:
    """A memory of no documents with this network's layers, shapes ``[0, Hkv, D]``, dtype and device."""
    shape = (0, lm.config.num_key_value_heads, lm.config.head_dim)

    def tables() -> dict[int, torch.Tensor]:
        return {layer: torch.zeros(shape, dtype=lm.dtype, device=lm.device) for layer in lm.config.router_layers}

    return DocumentMemory(tables(), tables(), tables(), torch.zeros(1, dtype=torch.int64, device=lm.device))


def _on_first_rank(local: DocumentMemory, ranks: Ranks) -> list[DocumentMemory]:
    """Every rank's memory on rank 0, one tensor at a time; on the others only shapes without rows."""
    counts = ranks.gather(local.chunk_offsets.diff())
    rows = [int(each.sum()) for each in counts]
    offsets = [torch.nn.functional.pad(each.cumsum(0), (1, 0)) for each in counts]
    parts = [DocumentMemory({}, {}, {}, each) for each in offsets]
    for name in ("keys", "values", "routing_keys"):
        for layer, tensor in getattr(local, name).items():
            row_bytes = tensor.shape[1:].numel() * tensor.element_size()
            pieces = ranks.exchange(as_bytes(tensor), [count * row_bytes for count in rows], first_only=True)
            if ranks.rank == 0:
                for part, piece, count in zip(parts, pieces, rows, strict=True):
                    getattr(part, name)[layer] = from_bytes(piece, tensor.dtype, (count, *tensor.shape[1:]))
    return parts
