"""Answering questions over one memory, through routing, Memory Interleave and sparse generation."""

from msa.engine.batcher import Batcher, answer_together
from msa.engine.engine import Engine

__all__ = ["Batcher", "Engine", "answer_together"]
