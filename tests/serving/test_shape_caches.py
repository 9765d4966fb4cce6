"""A server's process remembers few shapes of matrix products: memory that is in use does not grow with them."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
import torch

from msa.serving import ServerSettings
from msa.serving.mcp import McpSettings
from msa.serving.mcp.tools import MemoryTools
from msa.serving.services import Services
from msa.serving.shape_caches import CAPACITIES, DESCRIBED, PREPARED, bound_shape_caches

# products of ever new shapes; prints MB in use on the C library's heap after every quarter
PRODUCTS = """
import ctypes, json, sys
import torch
from msa.serving.shape_caches import bound_shape_caches

class Usage(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Usage
if sys.argv[1] == "bounded":
    bound_shape_caches()
torch.set_num_threads(1)
weight, used = torch.zeros(64, 64, dtype=torch.bfloat16), []
with torch.inference_mode():
    for rows in range(1, 801):
        torch.nn.functional.linear(torch.zeros(rows, 64, dtype=torch.bfloat16), weight)
        if rows % 200 == 0:
            usage = library.mallinfo2()
            used.append((usage.uordblks + usage.hblkhd) / 2**20)
print(json.dumps(used))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without the variables, before and after."""
    for name in CAPACITIES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def used_mb(how, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in CAPACITIES} | variables
    command = [sys.executable, "-c", PRODUCTS, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def prepares_shapes():
    """Whether torch hands products to oneDNN here, and the C library tells what is in use."""
    glibc = os.confstr_names.get("CS_GNU_LIBC_VERSION") and os.confstr("CS_GNU_LIBC_VERSION")
    known = bool(glibc) and tuple(map(int, glibc.split()[1].split("."))) >= (2, 33)
    return known and torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@pytest.mark.skipif(not prepares_shapes(), reason="no oneDNN for bfloat16, or no mallinfo2")
def test_memory_in_use_does_not_grow_with_the_number_of_shapes():
    grown = {how: used[3] - used[0] for how in ("bounded", "as it is") for used in [used_mb(how)]}
    assert grown["as it is"] > 50, "600 more shapes are remembered: what this is about"
    assert grown["bounded"] < 5


@pytest.mark.skipif(not prepares_shapes(), reason="no oneDNN for bfloat16, or no mallinfo2")
@pytest.mark.parametrize("name", CAPACITIES)
def test_each_of_the_two_caches_is_bounded(name):
    used = used_mb("bounded", **{name: "1024"})
    assert used[3] - used[0] > 25, "the other alone would do"


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv(PREPARED, "512")
    bound_shape_caches()
    assert os.environ[PREPARED] == "512"
    assert os.environ[DESCRIBED] == CAPACITIES[DESCRIBED]


def open_services(folder):
    Services(ServerSettings(root=folder, model="msa-tiny"))


def open_tools(folder):
    with contextlib.closing(MemoryTools(McpSettings(memory=folder / "notes", model="msa-tiny"))) as tools:
        tools.ready()


@pytest.mark.parametrize("opened", [open_services, open_tools])
def test_servers_bound_them_before_the_model_is_loaded(opened, monkeypatch, tmp_path):
    class Loaded(Exception):
        pass

    seen = {}

    def load(*arguments, **options):
        seen.update({name: os.environ.get(name) for name in CAPACITIES})
        raise Loaded

    monkeypatch.setattr("msa.serving.services.load", load)
    monkeypatch.setattr("msa.serving.mcp.tools.load", load)
    with pytest.raises(Loaded):
        opened(tmp_path)
    assert seen == CAPACITIES
