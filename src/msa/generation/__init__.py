"""Sparse generation (stage 3) and Memory Interleave."""
