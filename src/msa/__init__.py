"""Memory Sparse Attention: language models with a memory inside their attention."""
