"""Stage 1: documents → latents."""

from msa.encoding.encoder import encode_in_batches

__all__ = ["encode_in_batches"]
