"""One memory as tools for other programs' models (Model Context Protocol). Nothing happens at import.

>>> from msa.serving.mcp import McpSettings
>>> McpSettings(memory="notes").name
'notes'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msa.serving.errors import ServingError
from msa.serving.mcp.settings import McpSettings

if TYPE_CHECKING:
    from msa.model.bundle import MSAModel

__all__ = ["McpSettings", "serve_http", "serve_stdio"]

_EXTRA = "MCP needs packages that are not installed ({}). Run: pip install 'memory-sparse-attention[mcp]'"


def serve_stdio(settings: McpSettings, model: MSAModel | None = None) -> None:
    """Talk to one client over standard input and output until it closes them.

    The memory is opened first; the model is loaded while the client connects.

    Raises:
        ServingError: packages of the extra ``mcp`` are missing.
        BankError: the memory cannot be opened.
    """
    try:
        from msa.serving.mcp.running import run_stdio
    except ImportError as error:
        raise ServingError(_EXTRA.format(error.name)) from error
    run_stdio(settings, model)


def serve_http(settings: McpSettings, model: MSAModel | None = None) -> None:
    """Serve any number of clients over streamable HTTP, path ``/mcp``, until SIGTERM or Ctrl-C.

    Raises:
        ServingError: packages are missing, or the port is taken.
        MSAError: the memory cannot be opened, or the model cannot be loaded.
    """
    try:
        from msa.serving.mcp.running import run_http
    except ImportError as error:
        raise ServingError(_EXTRA.format(error.name)) from error
    run_http(settings, model)
