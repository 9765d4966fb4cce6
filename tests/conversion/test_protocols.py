"""Control tokens for a backbone that was never trained on a transcript of ours."""

import logging

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from msa.conversion.protocols import protocol_for

WORDS = ("hello", "<|im_start|>", "<|im_end|>", "<file_sep>", "<filename>", "<issue_closed>", "<repo_name>", "<other>")


def tokenizer(*words):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@pytest.fixture
def outputs():
    """Vectors of which no two are alike."""
    return torch.randn(len(WORDS), 64, generator=torch.Generator().manual_seed(0))


def test_the_first_spare_tokens_are_taken(outputs):
    for given in (None, outputs):
        strings = protocol_for(tokenizer(*WORDS), given)
        assert (strings.reference_end, strings.end_of_retrieve) == ("<file_sep>", "<issue_closed>")
        assert strings.answer_request.endswith("<file_sep>")


def test_tokens_with_a_vector_in_common_are_passed_over(outputs):
    """SmolLM2 never met them: one vector for all, up to length and rounding."""
    for word in ("<file_sep>", "<issue_closed>"):
        outputs[WORDS.index(word)] = outputs[-1] * 1.01
    strings = protocol_for(tokenizer(*WORDS), outputs.to(torch.bfloat16))
    assert (strings.reference_end, strings.end_of_retrieve) == ("<filename>", "<repo_name>")


def test_where_no_token_has_a_vector_of_its_own_it_says_so(outputs, caplog):
    outputs[3:] = outputs[-1]
    with caplog.at_level(logging.WARNING):
        strings = protocol_for(tokenizer(*WORDS), outputs)
    assert (strings.reference_end, strings.end_of_retrieve) == ("<file_sep>", "<issue_closed>")
    assert "one output vector" in caplog.text


def test_without_any_spare_token_the_end_of_a_turn_serves(outputs):
    strings = protocol_for(tokenizer(*WORDS[:3]), outputs[:3])
    assert (strings.reference_end, strings.end_of_retrieve) == ("<|im_end|>", "<|im_end|>")


QWEN3 = "{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"


@pytest.mark.parametrize(
    ("words", "template", "is_done"),
    [
        ((*WORDS, "<think>", "</think>"), QWEN3, True),
        ((*WORDS, "<think>", "</think>"), {"default": QWEN3}, True),
        ((*WORDS, "<think>", "</think>"), "{{ messages }}", False),  # one that only shares the vocabulary
        ((*WORDS, "<think>", "</think>"), None, False),
        (WORDS, QWEN3, False),
    ],
)
def test_a_model_that_reasons_first_begins_with_reasoning_that_is_done(words, template, is_done):
    given = tokenizer(*words)
    given.chat_template = template
    strings = protocol_for(given)
    ending = "assistant\n<think>\n\n</think>\n\n" if is_done else "assistant\n"
    assert strings.reader_prompt.endswith(ending)
    assert strings.question_end.endswith("assistant\n")
