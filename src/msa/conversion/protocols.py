"""A transcript for a backbone that was never trained on one: control strings its vocabulary already has."""

from __future__ import annotations

from typing import Any

from msa.documents import ProtocolStrings
from msa.errors import CheckpointError

_READING = "{documents}Using the text above, answer the question in one or two sentences.\nQuestion: {question}"
# single tokens of known vocabularies that no ordinary text uses, best first
_SPARE_TOKENS = (
    "<|object_ref_end|>",
    "<file_sep>",
    "<|reserved_special_token_0|>",
    "<unused0>",
    "[control_8]",
    "<unk>",
)
_SPARE_ENDS = ("<issue_closed>", "<|box_end|>", "<|reserved_special_token_1|>", "<unused1>", "[control_9]")


def protocol_for(tokenizer: Any) -> ProtocolStrings:
    """Strings for a tokenizer of a known chat format, in routed mode: the model has not learnt to write ids.

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
    spare = next((token for token in _SPARE_TOKENS if token in vocabulary), end)
    return ProtocolStrings(
        document=document,
        prefix=opening,
        question="{question}",
        question_end=answer,
        reference_end=spare,
        end_of_retrieve=next((token for token in _SPARE_ENDS if token in vocabulary), end),
        answer_request=f"{{question}}{spare}",
        answer_lead="",
        answer_end=end,
        route_whole_turn=False,
        retrieval="routed",
        reader_prompt=opening + _READING + answer,
        reader_document="{text}\n\n",
        max_document_tokens=512,
    )
