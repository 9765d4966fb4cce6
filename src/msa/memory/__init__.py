"""The user's memory: a folder of documents with the model that reads it."""

from msa.memory.adding import AddProgress
from msa.memory.memory import Memory

__all__ = ["AddProgress", "Memory"]
