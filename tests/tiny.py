"""A tiny random model and a byte-level tokenizer: everything the method does, in milliseconds and without a download."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from msa.model import MSAConfig, MSAForCausalLM
from msa.model.bundle import MSAModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|object_ref_end|>")
NOT_SPECIAL = ("<think>",)  # added to the vocabulary, but not special
READER_PROMPT = "{documents}\nQuestion: {question}<|im_end|>\n<|im_start|>"
VOCABULARY = 256 + len(SPECIAL) + len(NOT_SPECIAL)


def tiny_tokenizer(merges: tuple[tuple[str, str], ...] = ()) -> PreTrainedTokenizerFast:
    """All 256 bytes, optionally a few merges, special tokens, and one added token that is not special."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def tiny_lm(backbone: str = "qwen3", *, seed: int = 0, **settings: Any) -> MSAForCausalLM:
    """A random decoder in float32; biases and norms are random too, so that none of them can be forgotten unseen."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "attention_bias": backbone in ("llama", "qwen2"),
        # a lower layer and a router
        "no_rope_layers": [1, 0, 1, 0] if backbone == "smollm3" else None,
        "router_layers": [2, 3],
        "chunk_size": 4,
        "top_k_docs": 3,
    }
    lm = MSAForCausalLM(MSAConfig(backbone=backbone, **{**fields, **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name != "temperature":
                centre = 1.0 if "norm" in name or "routing_alpha" in name else 0.0
                parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    return lm.eval()


def tiny_model(backbone: str = "qwen3", protocol: dict[str, Any] | None = None, **settings: Any) -> MSAModel:
    """The tiny network with its tokenizer and the default transcript, and a prompt to read from in routed mode."""
    strings = {"reader_prompt": READER_PROMPT, **(protocol or {})}
    return MSAModel(tiny_lm(backbone, protocol=strings, **settings), tiny_tokenizer(), name="tiny")


def random_tokens(*lengths: int, seed: int = 0) -> list[list[int]]:
    """One list of random byte tokens per length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]
