"""What the server serves and its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from msa.routing import Tiers
from msa.serving.keys import ApiKey

LOOPBACK = ("127.0.0.1", "::1", "localhost")  # addresses and names of this machine
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


def check_public_url(url: str) -> str:
    """An address that others can be put behind, as it is.

    Raises:
        ValueError: it is none.

    >>> check_public_url("https://memories.example/msa")
    'https://memories.example/msa'
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address
        usable = False
    if not usable or re.search(r"[\s?#@\\]", url):
        raise ValueError(
            "a public URL begins with http:// or https:// and a host and has no user, query or fragment, such as "
            f"https://memories.example/msa; got {url!r}"
        )
    return url


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Raises:
        ValueError: ``public_url`` is no such address.

    Attributes:
        root: the folder whose subfolders are the memories; made if it is missing, unless ``read_only``.
        host: address to listen on.
        port: port to listen on; 0: a free one.
        model: a name for :func:`msa.load`; None: the one that made the memories, else the default.
        device: where the model runs.
        dtype: what it computes in.
        tiers: where latents live while a memory is asked.
        read_only: serve a folder that another process writes; every change is refused.
        keys: who may do what; none: everybody may do everything.
        public_url: where clients reach the server, for addresses in answers; None: where the request says it came to.
        cors_origins: web origins whose pages may call the server; none by default.
        allowed_hosts: values of the ``Host`` header that are answered; empty: any.
        max_connections: open at a time; more are answered 503 and closed.
        max_concurrent: questions that are answered side by side, decoded in one pass a token; 1: one after the other.
        max_batch_bytes: keys and values of the questions side by side; None: a quarter of the memory that is free.
        max_waiting: questions and searches that may wait for the model; more are answered 429.
        max_waiting_writes: changes that may wait; more are answered 429.
        max_operations: unfinished operations and uploads that are arriving; more are answered 429.
        max_large_bodies: JSON bodies above ``max_request_bytes`` read or answered at a time; more are answered 429.
        request_timeout_s: seconds from a request's arrival to its end.
        body_timeout_s: seconds that a JSON body, the next piece of an upload, or an event of a stream may take, and the
            next 256 KiB of another answer, or its rest, to be taken.
        upload_timeout_s: seconds that a whole upload may take to arrive.
        header_timeout_s: seconds that the head of a connection's next request may take to arrive.
        drain_s: seconds that running requests have when the server is stopped.
        ping_s: seconds of silence after which a stream says that it is alive.
        max_request_bytes: body of a question, a search or another small request.
        max_json_bytes: body of a JSON request with documents.
        max_upload_bytes: body of JSON lines or files.
        max_document_bytes: one document or file in an upload.
        max_id_characters: a document's id.
        pdf_timeout_s: seconds that a PDF or an HTML page may take to read.
        background_bytes: a larger body is answered 202 and worked on in the background.
        max_memory_bytes: size of a memory's folder; None: no limit.
        max_new_tokens: what ``max_tokens`` may ask for.
        default_new_tokens: tokens of an answer where the request does not say.
        history_tokens: tokens of the system message and of earlier turns that are given with a question; 0: none.
        routed_history_tokens: of the earlier turns so many tokens, the last ones, choose documents together with the
            question; 0: the question alone does.
        max_open_memories: memories held open; the longest unused are closed beyond that.
        kept_keys: idempotency keys remembered, the newest ones.
        kept_operations: finished operations remembered, the newest ones.
    """

    root: str | Path
    host: str = "127.0.0.1"
    port: int = 8000
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    tiers: Tiers | None = None
    read_only: bool = False
    keys: tuple[ApiKey, ...] = ()
    public_url: str | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_connections: int = 512
    max_concurrent: int = 8
    max_batch_bytes: int | None = None
    max_waiting: int = 32
    max_waiting_writes: int = 64
    max_operations: int = 64
    max_large_bodies: int = 8
    request_timeout_s: float = 300.0
    body_timeout_s: float = 60.0
    upload_timeout_s: float = 3600.0
    header_timeout_s: float = 30.0
    drain_s: float = 30.0
    ping_s: float = 15.0
    max_request_bytes: int = _MIB
    max_json_bytes: int = 32 * _MIB
    max_upload_bytes: int = 4 * _GIB
    max_document_bytes: int = 64 * _MIB
    max_id_characters: int = 512
    pdf_timeout_s: float = 120.0
    background_bytes: int = 256 * _KIB
    max_memory_bytes: int | None = None
    max_new_tokens: int = 8192
    default_new_tokens: int = 256
    history_tokens: int = 512
    routed_history_tokens: int = 64
    max_open_memories: int = 32
    kept_keys: int = 10_000
    kept_operations: int = 1_000

    def __post_init__(self) -> None:
        if self.public_url is not None:
            check_public_url(self.public_url)

    @property
    def folder(self) -> Path:
        """``root`` as an absolute path."""
        return Path(self.root).absolute()
