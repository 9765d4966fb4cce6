import sys

import pytest
import torch

from msa.bench import Shape, bench_routing
from msa.bench.peers import FAISS, MAXSIM, peers_here
from msa.bench.routing import (
    FORMS,
    PLAIN,
    TOP_K,
    draw_keys,
    draw_query,
    offsets_of,
    peer_selectors,
    plain_scorer,
    plain_selector,
    prepare,
    ready_keys,
)
from msa.model import MSAConfig
from msa.ops import RoutingSpec
from msa.ops.route import route_naive, select

CPU = torch.device("cpu")
CHUNKS = 1003


def question(similarity, tokens=5):
    shape = Shape(2, 3, 16, similarity)
    return shape, draw_query(tokens, shape), draw_keys(CHUNKS, shape), offsets_of(CHUNKS)


def exact(shape, query, keys, offsets, selector=route_naive):
    mask = torch.ones(query.shape[:2], dtype=torch.bool)
    found = selector(query, mask, keys, offsets, RoutingSpec(similarity=shape.similarity), TOP_K)
    return found.doc_indices[0].tolist()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_all_do_the_same_work(similarity):
    shape, query, keys, offsets = question(similarity)
    wanted = exact(shape, query, keys, offsets)
    for form in FORMS:
        found = exact(shape, query, [prepare(form, keys.clone(), similarity)], offsets, select)
        assert found == wanted or (form == "half" and set(found) == set(wanted)), form  # halved keys were rounded
    ready = ready_keys(keys.clone(), similarity).float()  # float32: nothing but the method can differ
    for method in PLAIN:
        found = plain_selector(plain_scorer(method, query, ready, shape), offsets)()
        assert len(set(found) & set(wanted)) >= TOP_K - (similarity == "cosine"), method  # its keys were rounded
    flat = peer_selectors(query, ready, shape, [FAISS])[FAISS]
    assert len(set(flat()) & set(wanted)) >= TOP_K - (similarity == "cosine")


def test_keys_that_share_a_direction():
    shape = Shape(2, 3, 64, "dot")
    for cosine in (0.0, 0.8):
        keys = draw_keys(CHUNKS, shape, cosine=cosine).float().flatten(1)
        query = draw_query(50, shape, cosine)[0].float()[:, :: shape.group].flatten(1)
        for rows in (keys, query):
            rows = torch.nn.functional.normalize(rows, dim=-1)
            assert abs(float((rows @ rows.T).mean()) - cosine) < 0.05
    assert torch.equal(draw_keys(CHUNKS, shape), draw_keys(CHUNKS, shape, cosine=0.0))


def test_halved_in_place_is_the_same():
    keys = question("cosine")[2]
    copy = prepare("half", keys, "cosine").keys
    assert copy.data_ptr() != keys.data_ptr()
    block = prepare("half", keys, "cosine", in_place=True)
    assert block.keys.data_ptr() == keys.data_ptr()
    assert torch.equal(block.keys, copy)


def test_the_shape_of_a_model():
    config = MSAConfig(
        backbone="qwen3", num_attention_heads=6, num_key_value_heads=2, head_dim=8, num_hidden_layers=2,
        routing_similarity="dot",
    )  # fmt: skip
    assert Shape.of(config) == Shape(2, 3, 8, "dot")
    assert str(Shape.of(config)) == "2 kv heads x 3 x 8, dot"


def test_every_form_beside_every_baseline():
    figures = bench_routing(question("dot")[0], CHUNKS, (2, 3), 1, CPU)
    assert [figure.what for figure in figures] == [
        f"routing, {tokens} tokens, {form} keys" for tokens in (2, 3) for form in FORMS
    ]
    for figure in figures:
        assert set(figure.baselines) == {*PLAIN, *peers_here()[0]}
        assert {FAISS, MAXSIM} == ({*figure.baselines, *figure.missing} - {*PLAIN})
        assert set(figure.floors) == {"reading", "product", "peak"}
        assert figure.details["chunks"] == CHUNKS
        added = figure.details["MiB added at the peak"]
        assert set(added) == {"here", *PLAIN}
        assert all(mib >= 0 for mib in added.values())
    by_form = [figure.details["key bytes"] for figure in figures[:3]]
    assert by_form == [CHUNKS * 32, CHUNKS * 64, CHUNKS * 64]


def test_without_other_libraries_and_above_what_they_are_asked(monkeypatch):
    shape = question("dot")[0]
    for module in ("faiss", "maxsim_cpu"):
        monkeypatch.setitem(sys.modules, module, None)
    figure = bench_routing(shape, CHUNKS, (2,), 1, CPU)[0]
    assert set(figure.baselines) == set(PLAIN)
    assert figure.missing == {
        FAISS: "not installed: pip install faiss-cpu",
        MAXSIM: "not installed: pip install maxsim-cpu",
    }
    monkeypatch.setattr("msa.bench.routing.PLAIN_CHUNKS", CHUNKS - 1)
    figure = bench_routing(shape, CHUNKS, (2,), 1, CPU)[0]
    assert (figure.baselines, figure.missing) == ({}, {})


def test_a_memory_of_fewer_documents_than_are_selected():
    assert len(bench_routing(question("cosine")[0], 1, (1,), 1, CPU)) == len(FORMS)
