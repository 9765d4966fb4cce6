"""A small network and its tokenizer from nothing: where ``msa-tiny`` begins."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from msa.conversion.routers import tied_routers as tie_routers
from msa.documents import ProtocolStrings
from msa.model import MSAConfig, MSAForCausalLM
from msa.model.bundle import MSAModel
from msa.training.copying_heads import start_copying_heads
from msa.training.data.needles import KINDS, NEEDLE, NOT_IN_MEMORY, QUESTION, TWO_HOP_QUESTION, NeedleWorlds

_CONTROL = ("<|pad|>", "<|doc|>", "<|end|>", "<|user|>", "<|assistant|>", "<|ref_end|>", "<|enough|>", "<|answer|>")

PROTOCOL = ProtocolStrings(
    document="<|doc|>[{id}]. {text}[{id}]<|end|>",
    prefix="<|user|>",
    question="{question}",
    question_end="<|assistant|>",
    reference_end="<|ref_end|>",
    end_of_retrieve="<|enough|>",
    expanded_document="[{id}]. {text}\n",
    answer_request="<|answer|>",
    # so that a value follows "is:" in the answer as it does in a needle, and is cut into the same tokens
    answer_lead="The answer is:",
    answer_end="<|end|>",
    route_whole_turn=False,
    exclude_read=True,
    constrain_ids="selected",
)

# of a network with a reading layer: asked again behind the texts, so that what is quoted goes on from the words before
QUOTING_PROTOCOL = replace(
    PROTOCOL,
    answer_request="<|answer|>{question}",
    answer_lead="",
    quotation_end="<|quoted|>",
    quotation_refusal=" mentioned",
    constrain_answers="quoted",
)

# strong enough from the start that the best document outshines the other selected ones
ROUTING_ALPHA = 3.0


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose digits and square brackets stay single tokens, so that ids are spelt one way."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\[\]]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _CONTROL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=_CONTROL[0], eos_token=PROTOCOL.answer_end)


def tokenizer_texts(worlds: NeedleWorlds, sentences: list[str], seed: int = 0) -> list[str]:
    """Text in the proportions that needles meet it: the haystack, keys, and the sentences around them."""
    rng = random.Random(seed)
    keys = [f"for {worlds.token('word', 7, rng)}" for _ in range(20_000)]
    templates = [NEEDLE.format(kind=kind, key="", value="") for kind in KINDS]
    templates += [QUESTION.format(kind=kind, key="") for kind in KINDS]
    templates += [TWO_HOP_QUESTION.format(kind=kind, via="word", key="") for kind in KINDS] + [NOT_IN_MEMORY]
    return [*sentences, *keys, *(templates * 300)]


def tiny_config(tokenizer: PreTrainedTokenizerFast, **changes: object) -> MSAConfig:
    """The shape of ``msa-tiny``; ``changes`` override its fields."""
    fields: dict[str, object] = {
        "backbone": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "chunk_size": 64,
        "top_k_docs": 8,
        "routing_bias": True,
        "routing_temperature": 0.1,
        "protocol": PROTOCOL.to_config(),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return MSAConfig(**{**fields, **changes})


@torch.no_grad()
def fresh_network(
    config: MSAConfig, *, seed: int, tied_routers: bool = True, copying_heads: bool = True
) -> MSAForCausalLM:
    """Random weights that train fast: embeddings of unit scale, and routers that begin as copies of each other.

    Tied (W_Q = W_K repeated over each group), a word of the question scores highest where the same word is in a
    document, before any training; random routers stay at chance for hundreds of steps. ``copying_heads``: see
    :func:`msa.training.copying_heads.start_copying_heads`.
    """
    lm = MSAForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in lm.named_parameters():
        if parameter.ndim != 2:
            continue
        std = 1.0 if "embed_tokens" in name else parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std *= 0.3
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    if config.tie_word_embeddings:
        # logits of unit scale in spite of the embeddings' size
        lm.model.norm.weight.fill_(config.hidden_size**-0.5)
    assert isinstance(config.router_layers, list)
    for layer in config.router_layers:
        attention = lm.model.layer(layer).self_attn
        if hasattr(attention, "routing_alpha"):
            attention.routing_alpha.fill_(ROUTING_ALPHA)
    if tied_routers:
        tie_routers(lm, seed)
    if copying_heads:
        start_copying_heads(lm, generator)
    return lm


def fresh_model(
    worlds: NeedleWorlds, sentences: list[str], *, vocab_size: int, seed: int, **changes: object
) -> MSAModel:
    """``msa-tiny`` before training: tokenizer, network and transcript."""
    tokenizer = train_tokenizer(tokenizer_texts(worlds, sentences, seed), vocab_size)
    starts = {name: bool(changes.pop(name, True)) for name in ("tied_routers", "copying_heads")}
    lm = fresh_network(tiny_config(tokenizer, **changes), seed=seed, **starts)
    return MSAModel(lm, tokenizer, name="msa-tiny")
