"""Which memory is offered over MCP, and the limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msa.routing import Tiers
from msa.serving.keys import ApiKey

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class McpSettings:
    """Settings of one MCP server.

    Attributes:
        memory: the memory's folder; made if it is missing, unless ``read_only``.
        model: a name for :func:`msa.load`; None: the one that made the memory, else the default.
        device: where the model runs.
        dtype: what it computes in.
        tiers: where latents live while the memory is asked.
        read_only: offer no tool that changes the memory.
        host: address to listen on; HTTP only, as all below it but ``keys`` are not.
        port: port to listen on; 0: a free one.
        keys: who may do what over HTTP; none: everybody may do everything.
        top_k: documents that a search returns, at most.
        hybrid: rank documents by exact words too.
        max_new_tokens: tokens of an answer, at most.
        max_waiting: calls that may wait for the model; more fail at once.
        call_timeout_s: seconds from a call's arrival to its end.
        max_query_characters: a query or question.
        max_request_bytes: one message over HTTP.
        max_document_bytes: one document that is added.
        max_id_characters: a document's id.
        max_fetched_characters: of a document's text in one reply; what is cut off is said.
    """

    memory: str | Path
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    tiers: Tiers | None = None
    read_only: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[ApiKey, ...] = ()
    top_k: int = 10
    hybrid: bool = False
    max_new_tokens: int = 256
    max_waiting: int = 32
    call_timeout_s: float = 300.0
    max_query_characters: int = 32_000
    max_request_bytes: int = 32 * _MIB
    max_document_bytes: int = 16 * _MIB
    max_id_characters: int = 512
    max_fetched_characters: int = 1_000_000

    @property
    def folder(self) -> Path:
        """``memory`` as an absolute path."""
        return Path(self.memory).absolute()

    @property
    def name(self) -> str:
        """What keys and addresses call the memory: its folder's name."""
        return self.folder.resolve().name
