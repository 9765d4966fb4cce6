"""The HTTP server: an OpenAI-compatible API over memories, and the memories' own API. Nothing happens at import.

>>> from msa.serving import ServerSettings
>>> ServerSettings(root="memories").max_waiting
32
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msa.serving.errors import ServingError
from msa.serving.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from msa.model.bundle import MSAModel
    from msa.parallel import Leader

__all__ = ["ServerSettings", "ServingError", "create_app", "serve"]

_EXTRA = "the server needs packages that are not installed ({}). Run: pip install 'memory-sparse-attention[serve]'"


def create_app(settings: ServerSettings, model: MSAModel | None = None) -> FastAPI:
    """Make the application; the folder is opened, and the model loaded if none is given, when it starts.

    Args:
        settings: what to serve and how.
        model: the model that encodes and answers; None: the one that ``settings`` name.

    Raises:
        ServingError: packages of the extra ``serve`` are missing.
    """
    try:
        from msa.serving.app import create_app as create
    except ImportError as error:
        raise ServingError(_EXTRA.format(error.name)) from error
    return create(settings, model)


def serve(settings: ServerSettings, model: MSAModel | None = None, leader: Leader | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; running requests are finished or failed within ``settings.drain_s``.

    Args:
        settings: what to serve and how.
        model: the model that encodes and answers; None: the one that ``settings`` name.
        leader: of processes that share the memories, the others being in :func:`msa.parallel.follow_memories`.

    Raises:
        ServingError: packages are missing, the port is taken, or another process serves the folder.
        ParallelError: one of the processes that share the memories was lost.
    """
    try:
        from msa.serving.server import run
    except ImportError as error:
        raise ServingError(_EXTRA.format(error.name)) from error
    run(settings, model, leader)
