"""How fast a device reads: documents through the layers that need them, and plain memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import msa
from msa.bench.encoding import BareReader
from msa.bench.floors import reading
from msa.bench.timing import timer_of
from msa.documents.batching import pad_right
from msa.encoding.encoder import batch_tokens_for, batches_of, encode_in_batches

READ_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}
READ_TOKENS = {"cuda": 200_000, "cpu": 3_000}  # that the bare layers are timed over


@torch.inference_mode()
def encoding_speeds(model: msa.MSAModel, documents: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Tokens/s of the bare layers and of the encoder, over the first documents, in the batches that adding makes."""
    lm, device = model.lm, model.device
    sequences: list[list[int]] = []
    tokens = 0
    for number, document in enumerate(documents, start=1):
        sequences.append(model.protocol.document_ids(number, document["text"]))
        tokens += len(sequences[-1])
        if tokens >= READ_TOKENS[device.type]:
            break
    batch_tokens = batch_tokens_for(lm)
    groups = batches_of([len(ids) for ids in sequences], batch_tokens, device)
    batches = [pad_right([sequences[i] for i in group], device)[0] for group in groups]
    last = lm.config.router_layers[-1]

    def bare() -> None:
        for ids in batches:
            lm.model.read_until(ids, torch.arange(ids.shape[1], device=device)[None], BareReader(), last)

    seconds = {
        name: timer_of(device)(work, 3)["median"]
        for name, work in {"bare": bare, "encoder": lambda: encode_in_batches(lm, sequences)}.items()
    }
    return {
        "tokens": tokens,
        "batch_tokens": batch_tokens,
        "padding": sum(ids.numel() for ids in batches) / tokens,
        "tokens_per_s": {name: tokens / each for name, each in seconds.items()},
    }


def bandwidth(device: torch.device) -> float:
    """Bytes/s of reading a tensor on the device once."""
    data = torch.ones(READ_BYTES[device.type], dtype=torch.uint8, device=device)
    return data.nbytes / timer_of(device)(reading(data), 3)["best"]
