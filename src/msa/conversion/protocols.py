"""A transcript for a backbone that was never trained on one: control strings its vocabulary already has."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from msa.documents import ProtocolStrings
from msa.errors import CheckpointError

log = logging.getLogger(__name__)

_READING = "{documents}Using the text above, answer the question in one or two sentences.\nQuestion: {question}"
_NO_REASONING = "<think>\n\n</think>\n\n"
# single tokens of known vocabularies that no ordinary text uses, best first
_SPARE_TOKENS = (
    "<|object_ref_end|>",
    "<file_sep>",
    "<filename>",
    "<|fim_suffix|>",
    "<|reserved_special_token_0|>",
    "<unused0>",
    "[control_8]",
    "<unk>",
)
_SPARE_ENDS = (
    "<issue_closed>",
    "<repo_name>",
    "<|box_end|>",
    "<|fim_middle|>",
    "<|reserved_special_token_1|>",
    "<unused1>",
    "[control_9]",
)
# cosine from which two output vectors are the same one: tokens that a backbone never met in training keep what they
# began with, some of them a vector in common
_SAME = 0.999


def protocol_for(tokenizer: Any, outputs: Tensor | None = None) -> ProtocolStrings:
    """Strings for a tokenizer of a known chat format, in routed mode: the model has not learnt to write ids.

    Args:
        tokenizer: the backbone's.
        outputs: the backbone's output vectors ``[vocabulary, H]``. Tokens that share theirs with another are taken
            last: no training of the layers can make the network write one of them rather than the other.

    Raises:
        CheckpointError: a tokenizer without any token that could end a turn.
    """
    vocabulary = set(tokenizer.get_vocab())
    if {"<|im_start|>", "<|im_end|>"} <= vocabulary:
        opening, end, answer = "<|im_start|>user\n", "<|im_end|>", "<|im_end|>\n<|im_start|>assistant\n"
        document = "<|im_start|>[{id}]. {text}[{id}]<|im_end|>"
    elif {"<|start_header_id|>", "<|eot_id|>"} <= vocabulary:
        opening, end = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"
        answer = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        document = "<|begin_of_text|>[{id}]. {text}[{id}]<|eot_id|>"
    else:
        begin, end = tokenizer.bos_token or "", tokenizer.eos_token
        if not end:
            raise CheckpointError(
                "this tokenizer has neither a chat format's control tokens nor an end-of-sequence token; set eos_token"
            )
        instructed = "[INST]" in vocabulary
        opening, answer = (f"{begin}[INST]", "[/INST]") if instructed else (begin or "\n", "\nAnswer:")
        document = f"{begin}[{{id}}]. {{text}}[{{id}}]{end}"
    reasoning = _NO_REASONING if _thinks(tokenizer, vocabulary) else ""
    spare = _writable(_SPARE_TOKENS, tokenizer, outputs, end)
    return ProtocolStrings(
        document=document,
        prefix=opening,
        question="{question}",
        question_end=answer,
        reference_end=spare,
        end_of_retrieve=_writable(_SPARE_ENDS, tokenizer, outputs, end),
        answer_request=f"{{question}}{spare}",
        answer_lead="",
        answer_end=end,
        route_whole_turn=False,
        retrieval="routed",
        reader_prompt=opening + _READING + answer + reasoning,
        reader_document="{text}\n\n",
        max_document_tokens=512,
    )


def _thinks(tokenizer: Any, vocabulary: set[str]) -> bool:
    """Whether the model reasons first unless its turn begins with reasoning that is done, as Qwen3's does."""
    templates = getattr(tokenizer, "chat_template", None) or ""
    written = " ".join(templates.values()) if isinstance(templates, dict) else templates
    return {"<think>", "</think>"} <= vocabulary and "<think>" in written


def _writable(candidates: Sequence[str], tokenizer: Any, outputs: Tensor | None, otherwise: str) -> str:
    """The first candidate in the vocabulary whose output vector is its own; else the first there is."""
    vocabulary = tokenizer.get_vocab()
    known = [token for token in candidates if token in vocabulary]
    if outputs is None or not known:
        return (known or [otherwise])[0]
    ids = [vocabulary[token] for token in known]
    vectors = nn.functional.normalize(outputs.float(), dim=1)
    shared = ((vectors[ids] @ vectors.T) > _SAME).sum(1) > 1  # each is like itself
    own = [token for token, others in zip(known, shared.tolist(), strict=True) if not others]
    if not own:
        log.warning(
            "%s and other tokens have one output vector in this backbone: it learns to write ids only where all "
            "weights are trained",
            known[0],
        )
    return (own or known)[0]
