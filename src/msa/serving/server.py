"""Running the application under uvicorn: signals, draining, slow connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from msa.model.bundle import MSAModel
from msa.serving.app import create_app
from msa.serving.errors import ServingError
from msa.serving.keys import VARIABLE
from msa.serving.services import Services
from msa.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_AFTER_DRAIN_S = 5.0  # for failed requests to be answered, and jobs to see that they should end


class PatientProtocol(H11Protocol):
    """Closes a connection whose next request does not come, or comes too slowly."""

    header_timeout_s = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Something has arrived: the head of a request is complete now, or it is not."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        # between requests uvicorn's own timer runs, until the first byte of the next one comes
        if self.cycle is None or self.cycle.response_complete:
            if self._timer is None:
                self._timer = self.loop.call_later(self.header_timeout_s, self.transport.close)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """A server that finishes or fails every request within the time to drain, and then ends without a signal."""

    def __init__(self, config: uvicorn.Config, app: Any, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let requests end, fail those that take too long."""
        services = self._app.state.services
        services.stop_accepting()
        logger.info("stopping: %.0f s for running requests", self._drain_s)
        timer = asyncio.get_running_loop().call_later(self._drain_s, services.abort)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a stop that was asked for is no failure: the signal is not raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        ServingError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # named as TCP, for asyncio turns delaying of small packets off only where it sees that
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise ServingError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); choose another --port or --host"
        ) from error
    return listening


def make_server(settings: ServerSettings, services: Services) -> Server:
    """A server that has not been started; it closes the services when it ends."""
    app = create_app(settings, services)
    protocol = type("Protocol", (PatientProtocol,), {"header_timeout_s": settings.header_timeout_s})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, int(settings.header_timeout_s)),
        timeout_graceful_shutdown=int(settings.drain_s + _AFTER_DRAIN_S),
    )
    return Server(config, app, settings.drain_s)


def run(settings: ServerSettings, model: MSAModel | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; see :func:`msa.serving.serve`."""
    if not settings.keys and settings.host not in _LOOPBACK:
        logger.warning(
            "no API keys: whoever reaches port %d can read, change and delete every memory; set %s or --keys",
            settings.port,
            VARIABLE,
        )
    with listen(settings) as listening:
        server = make_server(settings, Services(settings, model))
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logger.info("serving %s on http://%s:%d", settings.folder, shown, port)
        server.run(sockets=[listening])
