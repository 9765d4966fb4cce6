"""Answering questions over one memory, through routing, Memory Interleave and sparse generation."""

from msa.engine.engine import Engine

__all__ = ["Engine"]
