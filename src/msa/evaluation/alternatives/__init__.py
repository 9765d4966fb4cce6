"""What Memory Sparse Attention is compared with: other ways to answer with the same backbone, and memory networks."""

from msa.evaluation.alternatives.maker import WayMaker
from msa.evaluation.alternatives.registry import ALTERNATIVES, Alternative, make

__all__ = ["ALTERNATIVES", "Alternative", "WayMaker", "make"]
