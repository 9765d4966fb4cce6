"""Cached states of a frozen backbone: they route as the network does, survive a kill, and know whose they are."""

import json

import pytest
import torch
from tiny import tiny_lm, tiny_model, tiny_tokenizer

from msa.conversion.routers import tied_routers
from msa.documents.batching import pad_left
from msa.encoding import encode_in_batches
from msa.errors import TrainingError
from msa.model.bundle import MSAModel
from msa.training import router_states
from msa.training.data.samples import Sample
from msa.training.router_scores import router_maps, score_pool
from msa.training.router_states import cache_router_states

CORPUS = {
    "a": "the first document, longer than a chunk",
    "b": "x",
    "c": "another one of some length",
    "d": "and the last, which is the longest of all documents here",
}
SAMPLES = [Sample(query=query) for query in ("what is first?", "?", "which one is the longest of them", "another")]


def cached(model, folder, corpus=CORPUS, samples=SAMPLES, **options):
    return cache_router_states(model, corpus, samples, folder, **{"shard_texts": 3, "batch_tokens": 150, **options})


@pytest.fixture(scope="module")
def states(model, tmp_path_factory):
    return cached(model, tmp_path_factory.mktemp("states"))


def close(found, expected):
    """Equal up to the rounding of bfloat16."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


def test_chunk_states_give_the_routing_keys_of_the_engine(model, states):
    ids = [model.protocol.document_ids(number, text) for number, text in enumerate(CORPUS.values(), start=1)]
    memory = encode_in_batches(model.lm, ids)
    assert states.layers == (2, 3)
    for layer in states.layers:
        found = states.layer(layer)
        assert found.chunks.dtype == torch.bfloat16
        assert found.chunk_offsets.tolist() == memory.chunk_offsets.tolist()
        keys = found.chunks.float() @ model.lm.model.layer(layer).self_attn.router_k_proj[0].weight.T
        close(keys, memory.routing_keys[layer].flatten(1))


@pytest.mark.parametrize("whole_turn", [True, False])
@torch.no_grad()
def test_states_score_documents_as_the_network_routes(tmp_path, whole_turn):
    strings = {"route_whole_turn": whole_turn}
    model = MSAModel(tiny_lm(protocol=strings), tiny_tokenizer())
    tied_routers(model.lm)
    states = cached(model, tmp_path)
    ids = [model.protocol.document_ids(number, text) for number, text in enumerate(CORPUS.values(), start=1)]
    turns = [model.protocol.question_turn(sample.query) for sample in SAMPLES]
    tokens, mask = pad_left([turn.ids for turn in turns])
    routing = model.lm.route(
        tokens,
        encode_in_batches(model.lm, ids),
        attention_mask=mask,
        routing_mask=pad_left([[int(m) for m in turn.marked] for turn in turns])[0],
        prefix=model.prefix,
    )
    for layer in states.layers:
        found = states.layer(layer)
        assert found.token_offsets.diff().tolist() == [sum(turn.marked) for turn in turns]
        scores = score_pool(found, router_maps(model.lm, layer), range(len(SAMPLES)))
        torch.testing.assert_close(scores, routing[layer].doc_scores, rtol=0, atol=0.01)


def test_a_run_that_was_killed_goes_on_where_it_stopped(model, states, tmp_path, monkeypatch):
    encode, calls = router_states._Encoder.encode, []

    def killed_at_third(self, texts):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr(router_states._Encoder, "encode", killed_at_third)
    with pytest.raises(KeyboardInterrupt):
        cached(model, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    (tmp_path / "questions-0.safetensors.tmp").write_bytes(b"half a shard")
    resumed = cached(model, tmp_path)
    assert calls == [3, 1, 3, 3, 1], "finished shards are kept"
    for layer in states.layers:
        for found, expected in zip(
            vars(resumed.layer(layer)).values(), vars(states.layer(layer)).values(), strict=True
        ):
            assert torch.equal(found, expected)
    assert len(calls) == 5
    cached(model, tmp_path)
    assert len(calls) == 5, "nothing is computed twice"


def test_a_kill_while_writing_leaves_no_shard(model, tmp_path, monkeypatch):
    def half_written(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(router_states, "save_file", half_written)
    with pytest.raises(KeyboardInterrupt):
        cached(model, tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == []
    monkeypatch.undo()
    assert cached(model, tmp_path).layer(2).chunks.shape[1] == model.lm.config.hidden_size


def test_new_texts_are_added_and_changed_ones_read_again(model, tmp_path):
    first = cached(model, tmp_path)
    more = cached(model, tmp_path, samples=[*SAMPLES[:3], Sample(query="new")])
    assert more.documents == first.documents
    assert more.questions[0] == first.questions[0]
    assert more.questions[1] != first.questions[1]
    assert cached(model, tmp_path, corpus=CORPUS | {"b": "y"}).documents[0] != first.documents[0]


def test_states_of_another_model_are_refused_and_other_routers_are_not(tmp_path):
    model = tiny_model()
    cached(model, tmp_path)
    tied_routers(model.lm)
    cached(model, tmp_path)
    with torch.no_grad():
        model.lm.model.embed_tokens.weight += 1
    with pytest.raises(TrainingError, match="another model"):
        cached(model, tmp_path)


def test_damage_is_named(model, tmp_path):
    states = cached(model, tmp_path)
    (tmp_path / states.questions[0]).write_bytes(b"broken")
    with pytest.raises(TrainingError, match=states.questions[0]):
        states.layer(2)
    (tmp_path / states.questions[0]).unlink()
    with pytest.raises(TrainingError, match="cache the states again"):
        states.layer(2)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(TrainingError, match=r"manifest\.json cannot be read"):
        cached(model, tmp_path)


def test_the_manifest_names_the_backbone(model, states):
    manifest = json.loads((states.folder / "manifest.json").read_text())
    assert manifest.keys() == {"format", "backbone", "layers", "hidden_size"}


def test_what_cannot_be_cached_is_refused(model, states, tmp_path):
    with pytest.raises(ValueError, match="at least one document"):
        cached(model, tmp_path, corpus={})
    with pytest.raises(ValueError, match="one sample"):
        cached(model, tmp_path, samples=[])
    with pytest.raises(ValueError, match="no routers to train"):
        cached(tiny_model(decouple_router=False), tmp_path)
    with pytest.raises(ValueError, match=r"router layers \[2, 3\], got 1"):
        states.layer(1)
    assert list(tmp_path.iterdir()) == []


def test_a_question_without_routing_tokens_is_refused(model, tmp_path, monkeypatch):
    turn = model.protocol.question_turn("x")
    silent = type(turn)(turn.ids, [False] * len(turn.ids))
    monkeypatch.setattr(model.protocol, "question_turn", lambda question: silent)
    with pytest.raises(ValueError, match="no token that routes"):
        cached(model, tmp_path)
