"""Reorder a few routed documents by the model's own reading: how likely is the question, once a document was read?

For backbones that were not trained with their routers: they tell close candidates apart better than routing does.

Axes: n documents, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msa.documents import Protocol
from msa.documents.batching import length_buckets, pad_right
from msa.model import MSAForCausalLM

_TEXT_TOKENS = 128  # read of each document
_BATCH_TOKENS = 2048


@torch.inference_mode()
def question_likelihoods(lm: MSAForCausalLM, protocol: Protocol, texts: Sequence[str], question: str) -> Tensor:
    """Mean log-probability of the question's tokens after each text, ``[n]`` float32.

    Args:
        lm: the network; it reads plainly, without memory.
        protocol: its ``reread_prompt`` holds ``{text}`` and ends where the question begins.
        texts: what is read, each cut to its first 128 tokens.
        question: the user's words, not empty.
    """
    asked = protocol.plain_ids(question)
    prompts = [protocol.template_ids(protocol.strings.reread_prompt, text=_cut(protocol, text)) for text in texts]
    lengths = [len(prompt) + len(asked) for prompt in prompts]
    scores = torch.zeros(len(texts))
    target = torch.tensor(asked, device=lm.device)
    for bucket in length_buckets(lengths, _BATCH_TOKENS):
        ids, sizes = pad_right([prompts[i] + asked for i in bucket], lm.device)
        # right padding is harmless under causal attention, so no mask is needed
        states = lm(ids, use_cache=False, logits_to_keep=1, output_hidden_states=True).hidden_states[-1]
        for row, i in enumerate(bucket):
            end = int(sizes[row])
            predicted = lm.lm_head(states[row, end - len(asked) - 1 : end - 1]).float().log_softmax(-1)
            scores[i] = predicted.gather(1, target[:, None]).mean()
    return scores


def _cut(protocol: Protocol, text: str) -> str:
    """The first 128 tokens of a text."""
    starts = protocol.plain_starts(text)
    return text if len(starts) <= _TEXT_TOKENS else text[: starts[_TEXT_TOKENS]]
