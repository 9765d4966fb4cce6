"""Freed memory goes back to the system while a server runs."""

import asyncio
import subprocess
import sys

import pytest

from msa.serving import heap

# frees what lies under a block that stays, in the heap of another thread: glibc keeps it
HOLES = """
import ctypes, runpy, sys, threading

trim = runpy.run_path(sys.argv[1])["trim"]

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def work():
    blocks = [library.malloc(100_000) for _ in range(500)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    stays = library.malloc(100_000)
    for block in blocks:
        library.free(block)

thread = threading.Thread(target=work)
trim()  # of what the imports left
before = resident()
thread.start(); thread.join()
held = resident()
given = trim()
print(held - before, resident() - before, given)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_what_was_freed_is_given_back():
    done = subprocess.run(
        [sys.executable, "-c", HOLES, heap.__file__], capture_output=True, text=True, timeout=120, check=True
    )
    held, after, given = done.stdout.split()
    assert float(held) > 40, "without trimming it stays"
    assert float(after) < 10
    assert given == "True"


def test_it_is_tried_again_and_again(monkeypatch):
    times = []
    monkeypatch.setattr(heap, "trim", lambda: times.append(1))

    async def run():
        task = asyncio.create_task(heap.keep_trimming(0.01))
        while len(times) < 3:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert heap.trim() is False
