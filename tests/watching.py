"""Attention weights of every layer, as they are written in the definition."""

import torch


class Watching:
    """A reader that attends causally and keeps every layer's attention weights ``[H, T, T]``."""

    def __init__(self):
        self.weights = {}

    def attend(self, attention, hidden, q, k, v):
        group_size = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group_size, 1), v.repeat_interleave(group_size, 1)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        hidden_part = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        weights = logits.masked_fill(hidden_part, float("-inf")).softmax(-1)
        self.weights[attention.layer] = weights[0]
        return (weights @ v).transpose(1, 2)
