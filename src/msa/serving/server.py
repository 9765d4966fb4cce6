"""Running the application under uvicorn: signals, draining, slow connections."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import resource
import signal
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from msa.model.bundle import MSAModel
from msa.parallel import Leader
from msa.serving.app import create_app
from msa.serving.errors import ApiError, ServingError
from msa.serving.keys import VARIABLE
from msa.serving.middleware import REQUEST_ID, new_request_id
from msa.serving.services import Services
from msa.serving.settings import LOOPBACK, ServerSettings

logger = logging.getLogger(__name__)

_BACKLOG = 128  # also how many connections are taken before those too many are closed
_OPEN_FILES = 65_536  # more would only cost
_SWITCH_S = 0.0005  # the network's thread lets requests in so often; Python's 5 ms add up to many for each
_AFTER_DRAIN_S = 5.0  # for failed requests to be answered, and jobs to see that they should end


class _Closing:
    """A transport that says when it is closed: from then until the client has taken what is left it is still open."""

    def __init__(self, transport: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self._transport, self._on_close = transport, on_close

    def close(self) -> None:
        self._transport.close()
        self._on_close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PatientProtocol(H11Protocol):
    """Closes a connection whose next request does not come, comes too slowly or is none, or that is one too many.

    One whose client does not take what it is sent is cut off.
    """

    header_timeout_s = 30.0
    send_timeout_s = 60.0  # for the next so many bytes of an answer, or the rest of it
    least_bytes = 1 << 18
    max_connections = 512

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection."""
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        super().connection_made(cast(asyncio.Transport, _Closing(transport, self._watch_sending)))
        if len(self.connections) > self.max_connections:
            message = f"{self.max_connections} connections are open, as many as may; try again later"
            self._refuse(ApiError(503, message, "too_many_connections", headers={"retry-after": "1"}))
        else:
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

    def eof_received(self) -> None:
        """The client sends no more: it is answered nothing more either."""
        self.transport.close()  # asyncio would, but tells nobody

    def pause_writing(self) -> None:
        """The client is slower than we are."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_sending()

    def _watch_sending(self) -> None:
        if self._sending is None:
            self._left = self._unconfirmed()
            self._sending = self.loop.call_later(self.send_timeout_s, self._check_sending)

    def _check_sending(self) -> None:
        self._sending = None
        if self._left - self._unconfirmed() < self.least_bytes:
            self.transport.abort()
        else:
            self._watch_sending()

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _unconfirmed(self) -> int:
        """Bytes that the client's system has not confirmed; ours alone go by the megabyte."""
        kept = 0
        with contextlib.suppress(OSError, ValueError):  # it is gone, or a system that does not say
            found = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            kept = int.from_bytes(found, sys.byteorder)
        return kept + self.transport.get_write_buffer_size()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, if an answer can still be sent, and close."""
        # after an answer that did not wait for the body, what comes of it can no longer be answered
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(ApiError(400, "this is not an HTTP request that can be read", "invalid_http"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer without asking the application, and close."""
        body = json.dumps(error.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        headers[REQUEST_ID] = new_request_id()
        response = h11.Response(status_code=error.status, headers=[*(headers | error.headers).items()])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self._stop_sending()


class Server(uvicorn.Server):
    """A server that finishes or fails every request within the time to drain, and then ends without a signal."""

    def __init__(self, config: uvicorn.Config, app: Any, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s

    def stop(self) -> None:
        """Begin to stop, as a signal does; from any thread."""
        self.should_exit = True

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
    limits = {
        "header_timeout_s": settings.header_timeout_s,
        "send_timeout_s": settings.body_timeout_s,
        "max_connections": settings.max_connections,
    }
    config = http_config(
        app,
        type("Protocol", (PatientProtocol,), limits),
        keep_alive_s=max(1, int(settings.header_timeout_s)),
        stop_s=int(settings.drain_s + _AFTER_DRAIN_S),
    )
    return Server(config, app, settings.drain_s)


def http_config(app: Any, protocol: type[PatientProtocol], *, keep_alive_s: int, stop_s: int) -> uvicorn.Config:
    """How uvicorn serves an application of ours: no logs of its own, and nothing that it adds to answers."""
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=stop_s,
    )


def address_of(listening: socket.socket) -> str:
    """The address that a socket listens at, as it stands in a URL."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def allow_open_files() -> None:
    """Let the process open as many files as the system lets it: connections and memories need one each, or several."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@contextlib.contextmanager
def _nothing_to_collect_yet() -> Iterator[None]:
    """Model and libraries stay: looking for garbage among their objects again and again would hold all requests up."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run(settings: ServerSettings, model: MSAModel | None = None, leader: Leader | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; see :func:`msa.serving.serve`."""
    if not settings.keys and settings.host not in LOOPBACK:
        logger.warning(
            "no API keys: whoever reaches port %d can read, change and delete every memory; set %s or --keys",
            settings.port,
            VARIABLE,
        )
    allow_open_files()
    sys.setswitchinterval(_SWITCH_S)
    with listen(settings) as listening:
        server = make_server(settings, Services(settings, model, leader))
        if leader is not None:
            leader.on_lost = server.stop
            if leader.lost is not None:  # while the model was loaded
                raise leader.lost
        logger.info("serving %s on http://%s", settings.folder, address_of(listening))
        with _nothing_to_collect_yet():
            server.run(sockets=[listening])
    if leader is not None and leader.lost is not None:
        raise leader.lost
