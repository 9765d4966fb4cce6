import argparse
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from msa.bench import peers
from msa.bench.peers import FAISS, MAXSIM, MAXSIM_PRODUCT, PEERS, THREADS, maxsim_scorer, peer_search, peers_here
from msa.bench.routing import PLAIN, SHAPES, TOP_K


def maxsim_of(rows, keys, per_document):
    """The sum over tokens of the best product with a document's chunks, as it reads."""
    rows, keys = rows.double(), keys.double()
    return torch.stack([(rows @ document.T).amax(1).sum() for document in keys.split(per_document)])


def draw(tokens, chunks, length):
    generator = torch.Generator().manual_seed(tokens * chunks)
    return torch.randn(tokens, length, generator=generator), torch.randn(chunks, length, generator=generator)


@pytest.fixture
def plain_library(monkeypatch):
    """In maxsim-cpu's place, a library that does the same by torch and refuses what the Linux one cannot do."""
    found = SimpleNamespace(threads=[], largest=0)

    def one(query, document):
        block = min(len(document), 64)
        found.largest = max(found.largest, block * query.size)
        return torch.from_numpy(query @ document.T).amax(1).sum()

    def scores(query, documents):
        found.threads.append(os.environ.get(THREADS))
        assert all(array.dtype == "float32" and array.flags["C_CONTIGUOUS"] for array in (query, documents))
        return torch.tensor([one(query, document) for document in documents]).numpy()

    def scores_variable(query, documents):
        return torch.stack([one(query, document) for document in documents]).numpy()

    library = SimpleNamespace(maxsim_scores=scores, maxsim_scores_variable=scores_variable)
    monkeypatch.setitem(sys.modules, "maxsim_cpu", library)
    monkeypatch.setattr(sys, "platform", "linux")
    return found


SIZES = [(1, 1, 4, 8), (5, 1003, 32, 8), (40, 24, 192, 8), (64, 40, 1024, 8), (70, 19, 1024, 8), (9, 130, 48, 65)]


def compare(tokens, chunks, length, per_document):
    rows, keys = draw(tokens, chunks, length)
    found, wanted = maxsim_scorer(rows, keys, per_document)(), maxsim_of(rows, keys, per_document)
    assert found.shape == (-(-chunks // per_document),)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)
    best = peer_search(MAXSIM, rows, keys, per_document, 3)()
    assert best == wanted.topk(min(3, len(wanted))).indices.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_maxsim_is_the_sum_over_tokens_of_the_best_chunk(size):
    pytest.importorskip("maxsim_cpu", reason="maxsim-cpu is not installed: pip install maxsim-cpu")
    compare(*size)


@pytest.mark.parametrize("size", SIZES)
def test_long_questions_and_short_last_documents_are_cut_and_joined(plain_library, size):
    compare(*size)
    assert 0 < plain_library.largest <= MAXSIM_PRODUCT


def test_where_it_can_multiply_anything_nothing_is_cut(plain_library, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    compare(64, 40, 1024, 8)
    assert plain_library.largest > MAXSIM_PRODUCT


def test_it_has_as_many_threads_as_torch_and_the_environment_stays(plain_library, monkeypatch):
    rows, keys = draw(2, 8, 4)
    monkeypatch.setenv(THREADS, "7")
    maxsim_scorer(rows, keys, 8)
    assert (plain_library.threads, os.environ[THREADS]) == ([str(torch.get_num_threads())], "7")
    monkeypatch.delenv(THREADS)
    maxsim_scorer(rows, keys, 8)
    assert THREADS not in os.environ


def test_numbers_that_no_question_could_be_multiplied_with_are_refused(plain_library):
    with pytest.raises(ValueError, match="cannot multiply documents of 8 x 32769 numbers"):
        maxsim_scorer(*draw(1, 8, 32769), 8)


def test_what_is_missing_and_why(monkeypatch, plain_library):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert peers_here() == ([MAXSIM], {FAISS: "not installed: pip install faiss-cpu"})
    monkeypatch.setattr(peers.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert peers_here()[1][MAXSIM] == "needs a processor with AVX2"
    monkeypatch.setattr(peers.platform, "machine", lambda: "arm64")
    assert peers_here()[0] == [MAXSIM]
    monkeypatch.setitem(sys.modules, "maxsim_cpu", None)
    assert peers_here()[1] == {name: f"not installed: pip install {package}" for name, (_, package) in PEERS.items()}


@pytest.fixture
def measure_size(monkeypatch):
    """The script's measurement of one size, in this process."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    script = importlib.import_module("routing_scorer")

    def measured(args, shape, chunks, what, cosine):
        measure = script.measure_ours if what == "exact" else script.measure_other
        found = measure(what, SHAPES[shape], chunks, args.question_tokens, 1, cosine)
        found["3 tokens"]["peak_added_mib"] = script.measure_memory(what, SHAPES[shape], chunks, 3, cosine)
        return found

    monkeypatch.setattr(script, "in_own_process", measured)
    args = argparse.Namespace(forms=["exact"], plain_chunks=600, device="cpu", question_tokens=[3], memory=False)
    return lambda chunks: script.measure_size(args, "default", chunks, 0.5)


def test_a_size_is_measured_beside_what_is_installed(measure_size, plain_library, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    found = measure_size(600)
    assert set(found) == {"chunks", "exact", *PLAIN, MAXSIM, "not measured"}
    assert found["not measured"] == {FAISS: "not installed: pip install faiss-cpu"}
    ours, theirs = found["exact"]["3 tokens"], found[MAXSIM]["3 tokens"]
    assert ours[f"{MAXSIM}: times as long"] == pytest.approx(theirs["best"] / ours["best"])
    assert set(theirs) == {"best", "median", "peak_added_mib"}, "its best documents are another score's"
    assert found["folded"]["3 tokens"][f"of the best {TOP_K}"] >= TOP_K - 1


def test_a_large_size_is_measured_alone(measure_size):
    assert set(measure_size(601)) == {"chunks", "exact"}
