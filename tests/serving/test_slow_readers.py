"""Clients that do not take what they are sent: cut off after a while, over real sockets with little room."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn
from serving_helpers import until

from msa.serving import ServerSettings
from msa.serving.server import PatientProtocol, http_config, listen

ROOM = 4096  # bytes that the system keeps for each side; it doubles them
KIB = 1024
# path → pieces of the answer; the transport takes up to 64 KiB without a word
ANSWERS = {"/whole": [2048 * KIB], "/pieces": [64 * KIB] * 32, "/little": [48 * KIB], "/last": [48 * KIB]}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for word in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{word}.complete"})
        return
    sizes = ANSWERS[scope["path"]]
    headers = [(b"content-length", str(sum(sizes)).encode())]
    if scope["path"] == "/last":
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for size in sizes:
        await send({"type": "http.response.body", "body": bytes(size), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def serving(root, send_timeout_s, least_bytes=1 << 18):
    """A server of the answers above, and where it listens."""
    listening = listen(ServerSettings(root=root, port=0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
    protocol = type("Protocol", (PatientProtocol,), {"send_timeout_s": send_timeout_s, "least_bytes": least_bytes})
    server = uvicorn.Server(http_config(app, protocol, keep_alive_s=1, stop_s=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield server, listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def asking(address, path, headers=""):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    connection.settimeout(60)
    connection.connect(address)
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode())
    return connection


def unsent(server):
    """Bytes that wait in the server."""
    return sum(each.transport.get_write_buffer_size() for each in [*server.server_state.connections])


@pytest.mark.parametrize("path", ANSWERS)
def test_who_takes_nothing_is_cut_off(tmp_path, path):
    """However the answer is sent, and whether the server has closed the connection already or will when it is idle."""
    with serving(tmp_path, 0.3) as (server, address), asking(address, path) as connection:
        until(lambda: unsent(server))
        until(lambda: not server.server_state.connections, seconds=60)
        until(lambda: not server.server_state.tasks)
        assert len(b"".join(iter(lambda: connection.recv(64 * KIB), b""))) < sum(ANSWERS[path])


def test_so_is_who_says_that_nothing_more_will_come(tmp_path):
    with serving(tmp_path, 0.3) as (server, address), asking(address, "/little") as connection:
        until(lambda: unsent(server))
        connection.shutdown(socket.SHUT_WR)
        until(lambda: not server.server_state.connections, seconds=60)


@pytest.mark.parametrize("path", ["/whole", "/pieces"])
def test_who_is_slow_gets_everything(tmp_path, path):
    """Each time there is some progress, and it takes longer than the server waits for some."""
    with (
        serving(tmp_path, 2.0, least_bytes=2 * KIB) as (_, address),
        asking(address, path, "connection: close\r\n") as connection,
    ):
        end = time.monotonic() + 5
        pieces = [b""]
        while time.monotonic() < end:
            time.sleep(0.1)
            pieces.append(connection.recv(4 * KIB))
        pieces += iter(lambda: connection.recv(1 << 20), b"")
        assert b"".join(pieces).partition(b"\r\n\r\n")[2] == bytes(sum(ANSWERS[path]))
