"""The published checkpoint's words and ours; the only file where the published ones appear.

The published ``config.json`` keeps the method's settings in a dict ``msa_config`` with its own (partly misspelt) keys
and a Qwen3 backbone without saying so. Tensor names are the same in both.
"""

from __future__ import annotations

from typing import Any

from msa.errors import UnsupportedModelError

# published key in msa_config -> our flat field
PUBLISHED_FIELDS = {
    "router_layer_idx": "router_layers",
    "pooling_kernel_size": "chunk_size",
    "top_k_docs": "top_k_docs",
    "decouple_router": "decouple_router",
    "aux_loss_method": "routing_loss",
    "infonce_loss_temp": "routing_temperature",
    "head_reduce_method": "head_reduce",
    "query_reduce_method": "query_reduce",
    "chunk_reduce_method": "chunk_reduce",
    "lmloss_weigth": "lm_loss_weight",
    "auxloss_weight": "routing_loss_weight",
    "ansloss_weight": "answer_loss_weight",
}
# keys that change nothing in what this package computes
_WITHOUT_EFFECT = {"aux_loss", "recloss_weight", "rewrite_position"}


def fields_from_published(msa_config: dict[str, Any]) -> dict[str, Any]:
    """Translate a published ``msa_config`` into our config fields.

    ``routing_similarity`` becomes what the published code does at inference: cosine for ``INFONCE`` exactly,
    dot product times head_dim^-0.5 for every other method.

    Raises:
        UnsupportedModelError: a key or a pooling mode this package does not know.
    """
    known = {*PUBLISHED_FIELDS, *_WITHOUT_EFFECT, "decouple_pooling_mode"}
    unknown = sorted(set(msa_config) - known)
    if unknown:
        raise UnsupportedModelError(
            f"unknown key(s) in msa_config: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    pooling = msa_config.get("decouple_pooling_mode", "mean")
    if pooling != "mean":
        raise UnsupportedModelError(f"decouple_pooling_mode must be 'mean', found {pooling!r}")
    fields = {ours: msa_config[theirs] for theirs, ours in PUBLISHED_FIELDS.items() if theirs in msa_config}
    fields["routing_similarity"] = "cosine" if fields.get("routing_loss") == "INFONCE" else "dot"
    return fields
