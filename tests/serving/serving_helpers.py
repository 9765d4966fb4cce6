"""What the tests of the server share: a memory's texts, a real server in a thread, errors, waiting."""

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import openai

from msa.serving.server import listen, make_server
from msa.serving.services import Services

NEEDLE = "One of the special magic numbers for wandering-age is: 4216093."
QUESTION = "What is the special magic number for wandering-age mentioned in the provided text?"
ANSWER = "4216093"
# msa-tiny does not know what to say to this, and says it for as long as it may: more than ten seconds on one core
ENDLESS = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3000}
DOCUMENTS = [
    {"id": "other", "text": "The sky is blue. Here we go.", "metadata": {"lang": "en"}},
    {"id": "notes/ages.md", "text": NEEDLE, "metadata": {"title": "Ages", "lang": "en"}},
]


_SERVE = """
import json, logging, sys
from msa.serving import ServerSettings, serve
logging.basicConfig(level=logging.INFO, format="%(message)s")
serve(ServerSettings(root=sys.argv[1], port=0, model="msa-tiny", **json.loads(sys.argv[2])))
"""


class Running:
    """A real server on a loopback port, in a thread of this process."""

    def __init__(self, settings, model):
        self.services = Services(settings, model)
        self._socket = listen(settings)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.server = make_server(settings, self.services)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        until(lambda: self.server.started)

    def http(self, key=None, **options):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def openai(self, key="none", **options):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, **options})

    def stop(self):
        """Ask it to stop; returns when it has."""
        self.server.should_exit = True
        self.join()

    def join(self):
        self._thread.join(60)
        assert not self._thread.is_alive()


def until(condition, seconds=30):
    """Wait for something that another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def error_of(response, status, code=None):
    """The error in a response, which must be one in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if code is not None:
        assert error["code"] == code
    return error


@contextmanager
def process(root, **settings):
    """A server in a process of its own, and a client of it."""
    log = root.parent / "log"  # no pipe: a full one would hold the server up
    with open(log, "w") as stderr:
        server = subprocess.Popen([sys.executable, "-c", _SERVE, str(root), json.dumps(settings)], stderr=stderr)
    try:
        until(lambda: "http://" in log.read_text() or server.poll() is not None, seconds=120)
        (url,) = re.findall(r"on (http://\S+)", log.read_text())
        with httpx.Client(base_url=url, timeout=60) as http:
            until(lambda: _answers(http))
            yield server, http
    finally:
        server.kill()
        server.wait()


def _answers(http):
    try:
        return http.get("/ready").status_code == 200
    except httpx.ConnectError:
        return False
