"""A layer put into a trained network, so that one which routes well also learns to read.

Reading an answer out of a text means comparing the asked key with the text's, token by token. Heads that begin as
copiers (copying_heads.py) compare two or three tokens, and what they write soon drowns the tokens themselves: of a
trained ``msa-tiny`` the token at a place can be told from the fourth layer's input in 0.4 of cases. After the first
layer it still can, and the four before it in most. So one layer goes in there, all others as they are: its heads
compare what the first layer knows of the last tokens, without RoPE (at any distance, arXiv 2305.19466), and write what
followed. Its feed-forward part begins as nothing (growing a network without changing it: arXiv 1511.05641).

Axes: H hidden size, D head_dim, V vocabulary, N tokens.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from msa.documents import ProtocolStrings
from msa.model import MSAConfig, MSAForCausalLM
from msa.model.bundle import MSAModel
from msa.training.data.collate import RowBucket

# how many tokens in a row the heads of one key/value head compare, in turn
_ORDERS = (3, 5)
# attention logits that one token in common gives, the current one twice as much
_MATCH = 8.0
# strength of the ridge regressions, as a share of the mean weight of a token
_RIDGE = 10.0
_ROWS_AT_ONCE = 50


@torch.no_grad()
def with_reading_layer(model: MSAModel, rows: RowBucket, protocol: ProtocolStrings, *, seed: int) -> MSAModel:
    """A copy of ``model`` with one more layer behind its first, and another transcript.

    Args:
        model: in float32, its embeddings tied to its head.
        rows: text as it will be read; the layer's heads begin as regressions over it.
        protocol: the transcript; where the end of a quotation is a new token, its embedding begins half as the colon's.
        seed: of what is random.

    Raises:
        ValueError: embeddings that are not tied, or a network without layers below its routers.
    """
    lm, tokenizer = model.lm, copy.deepcopy(model.tokenizer)
    if not lm.config.tie_word_embeddings or lm.config.router_layers[0] == 0:
        raise ValueError("a reading layer needs tied embeddings and a layer below the first router")
    generator = torch.Generator().manual_seed(seed)
    lm.separate_projections()
    known, mean = _known_tokens(lm, rows, max(_ORDERS) + 1)
    if protocol.quotation_end and protocol.quotation_end not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [protocol.quotation_end]})
    grown = MSAForCausalLM(_with_one_more(lm.config, len(tokenizer), protocol))
    weights = grown.state_dict()
    for name, value in lm.state_dict().items():
        weights[_one_higher(name)] = value.clone()
    colon = tokenizer.convert_tokens_to_ids(":")
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"] = _with_new_token(
        lm.model.embed_tokens.weight, colon, len(tokenizer), generator
    )
    weights |= {f"model.layers.1.{name}": value for name, value in _layer(lm.config, known, mean, generator).items()}
    grown.load_state_dict(weights)
    grown.tie_weights()
    return MSAModel(grown, tokenizer, name=model.name)


def _known_tokens(lm: MSAForCausalLM, rows: RowBucket, count: int) -> tuple[list[Tensor], Tensor]:
    """What the second layer's input tells of the last tokens.

    Returns:
        Per distance from 0 the map ``[H, H]`` from centred normed states to the centred embedding of the token so far
        back, by ridge regression in which a token found n times weighs as √n; and the states' mean.
    """
    pieces = zip(rows.input_ids.split(_ROWS_AT_ONCE), rows.attention_mask.split(_ROWS_AT_ONCE), strict=True)
    hidden = torch.cat([_input_of_second_layer(lm, ids, mask) for ids, mask in pieces])
    states = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + lm.config.rms_norm_eps)
    real = rows.attention_mask.bool()
    mean = states[real].mean(0)
    embeddings = lm.model.embed_tokens.weight - lm.model.embed_tokens.weight.mean(0)
    known = []
    for back in range(count):
        asked = real.clone()
        asked[:, :back] = False
        tokens = rows.input_ids.roll(back, 1)[asked]
        weight = tokens.bincount(minlength=len(embeddings)).float()[tokens].rsqrt()[:, None]
        x = states[asked] - mean
        ridge = _RIDGE * weight.mean() * torch.eye(x.shape[1])
        known.append(torch.linalg.solve((x * weight).T @ x + ridge, (x * weight).T @ embeddings[tokens]).T)
    return known, mean


def _input_of_second_layer(lm: MSAForCausalLM, input_ids: Tensor, mask: Tensor) -> Tensor:
    """``[B, T]`` → ``[B, T, H]``."""
    out = lm(input_ids, attention_mask=mask, output_hidden_states=True)
    assert out.hidden_states is not None
    return out.hidden_states[1]


def _with_one_more(config: MSAConfig, vocab_size: int, protocol: ProtocolStrings) -> MSAConfig:
    """The configuration with a second layer without RoPE, and the routers one higher."""
    assert isinstance(config.router_layers, list)
    fields = {name: getattr(config, name) for name in MSAConfig.__annotations__ if name != "model_type"}
    rotated = config.no_rope_layers or [1] * config.num_hidden_layers
    changed = {
        "num_hidden_layers": config.num_hidden_layers + 1,
        "router_layers": [layer + 1 for layer in config.router_layers],
        "no_rope_layers": [rotated[0], 0, *rotated[1:]],
        "vocab_size": vocab_size,
        "protocol": protocol.to_config(),
    }
    return MSAConfig(**{**fields, **changed})


def _one_higher(name: str) -> str:
    """The name that a weight of the network has in the grown one."""
    head, layers, rest = name.partition("model.layers.")
    number, dot, what = rest.partition(".")
    return f"{head}{layers}{int(number) + 1}{dot}{what}" if layers and number != "0" else name


def _with_new_token(embeddings: Tensor, like: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """``[V, H]`` and, if the vocabulary has grown, one more: half a random one, half that of token ``like``."""
    mean = embeddings.mean(0)
    drawn = mean + torch.randn(len(mean), generator=generator) * (embeddings - mean).std()
    new = 0.5 * drawn + 0.5 * embeddings[like]
    return torch.cat([embeddings, new[None]])[:vocab_size].clone()


def _layer(config: MSAConfig, known: list[Tensor], mean: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of the new layer: the heads of all key/value heads but the last compare and copy, the last's are random.

    The states' mean is projected out of what is compared and copied.
    """
    assert config.num_key_value_heads is not None
    assert config.head_dim is not None
    size, dim, inner = config.hidden_size, config.head_dim, config.intermediate_size
    group = config.num_attention_heads // config.num_key_value_heads

    def drawn(rows: int) -> Tensor:
        return torch.randn(rows, size, generator=generator) * size**-0.5

    q, k, v = drawn(config.num_attention_heads * dim), *(drawn(config.num_key_value_heads * dim) for _ in range(2))
    o = torch.zeros(size, config.num_attention_heads * dim)
    for kv in range(config.num_key_value_heads - 1):
        heads = range(kv * group, (kv + 1) * group)
        for back, part in enumerate(torch.randperm(dim, generator=generator).chunk(_ORDERS[kv % len(_ORDERS)])):
            seen = _orthonormal(len(part), size, generator)
            scale = (_MATCH * dim**0.5 / len(part)) ** 0.5
            k[kv * dim + part] = scale * seen @ known[back + 1]
            for head in heads:
                q[head * dim + part] = (2.0 if back == 0 else 1.0) * scale * seen @ known[back]
        copied = _orthonormal(dim, size, generator)
        v[kv * dim : (kv + 1) * dim] = copied @ known[0]
        for head in heads:
            o[:, head * dim : (head + 1) * dim] = copied.T
    unit = mean / mean.norm()
    q, k, v = (rows - (rows @ unit)[:, None] * unit for rows in (q, k, v))
    return {
        "self_attn.q_proj.weight": q,
        "self_attn.k_proj.weight": k,
        "self_attn.v_proj.weight": v,
        "self_attn.o_proj.weight": o,
        "mlp.gate_proj.weight": drawn(inner),
        "mlp.up_proj.weight": drawn(inner),
        "mlp.down_proj.weight": torch.zeros(size, inner),
        "input_layernorm.weight": torch.ones(size),
        "post_attention_layernorm.weight": torch.ones(size),
    }


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q.T
