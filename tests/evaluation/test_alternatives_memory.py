"""The memory's own rows, and the memory network trained on the same task."""

import dataclasses

import pytest
import torch
from tiny import tiny_model

from msa.errors import CheckpointError, ModelNotFoundError
from msa.evaluation import Question
from msa.evaluation.alternatives import make
from msa.evaluation.alternatives.memn2n import MemN2N, MemN2NConfig, sentences_of, words_of
from msa.evaluation.alternatives.memn2n_row import MemN2NAnswerer
from msa.evaluation.alternatives.memn2n_training import MemN2NTraining, train_memn2n
from msa.training.data.needles import NOT_IN_MEMORY, NeedleConfig, NeedleWorlds

NEEDLES = {
    "a": "One of the special magic numbers for quiet-river is: 4821937.",
    "b": "One of the special magic numbers for brave-lamp is: 7710254.",
    "c": "The grass is green. The sky is blue.",
}
WORLDS = NeedleWorlds(["red", "blue", "old", "new"], ["cat", "dog", "sun", "box"], ["The sky is blue.", "Here we go."])
CLOSED = MemN2NTraining(
    network=MemN2NConfig(size=32),
    needles=NeedleConfig(
        documents=5, questions=4, max_filler=4, key_kinds=("word",), value_kinds=("number",), value_digits=1,
        hard_negatives=0, distractors=0, two_hop=0, unanswerable=0,
    ),
    steps=900, worlds=300, linear_steps=0.1, learning_rate=1e-2,
)  # fmt: skip


def ask(key="brave-lamp"):
    question = f"What is the special magic number for {key} mentioned in the provided text?"
    return Question(id="q", question=question, answers=())


@pytest.mark.parametrize("name", ["msa", "msa-generative", "msa-one-round", "msa-int8", "msa-dot"])
def test_msa_tiny_finds_and_reads_needles(name, trained):
    row = make(name, trained)
    first, *others = NEEDLES.items()
    row.prepare(dict([first]))
    row.prepare(dict(others))
    prediction = row.answer(ask(), 24)
    assert (prediction.retrieved, prediction.read, prediction.text) == (("b",), ("b",), "7710254")
    assert 0 < prediction.first_token_s <= prediction.seconds
    turn = len(trained.protocol.question_turn(ask().question).ids)
    assert prediction.tokens_seen > 2 * turn  # a routing round, then the transcript with the text
    assert row.resident_bytes() > 0
    row.close()
    assert trained.lm.config.routing_similarity == "cosine"


def test_rows_read_the_same_texts_and_write_the_same_answer(trained):
    pytest.importorskip("bm25s")
    row = make("rag-bm25@1", trained)
    row.prepare(NEEDLES)
    prediction = row.answer(ask(), 40)
    assert (prediction.read, prediction.text) == (("b",), "7710254")
    assert row.answer(ask(), 3).text == "", "what it quotes before it answers is not shown"


def test_without_original_text_nothing_is_read(trained):
    row = make("msa-latents", trained)
    row.prepare(NEEDLES)
    prediction = row.answer(ask(), 24)
    assert prediction.read is None
    with pytest.raises(ValueError, match="original_text=False needs retrieval='generative'"):
        make("msa-routed", trained, original_text=False)


def test_similarity_and_tier_are_the_rows_own(trained, tmp_path):
    rows = {word: make("msa", trained, similarity=word, folder=tmp_path / word) for word in ("dot", "cosine")}
    for word, row in rows.items():
        row.prepare(NEEDLES)
        assert row._memory.bank.spec.settings["routing_similarity"] == word
    exact, small = make("msa", trained), make("msa", trained, routing_keys="int8")
    for row in (exact, small):
        row.prepare(NEEDLES)
    assert small.resident_bytes() < exact.resident_bytes() / 3
    for options in ({"similarity": "l2"}, {"retrieval": "bm25"}, {"max_rounds": 0}, {"routing_keys": "int4"}):
        with pytest.raises(ValueError):
            make("msa", trained, **options)


def test_a_routed_row_reports_sources_and_what_was_read(model):
    row = make("msa-routed", model)
    row.prepare(NEEDLES)
    prediction = row.answer(ask(), 3)
    assert set(prediction.read) <= set(prediction.retrieved) == set(NEEDLES)


@pytest.fixture(scope="module")
def closed():
    return train_memn2n(WORLDS, CLOSED)


def accuracy(network, needles, worlds=WORLDS):
    right = []
    for number in range(20):
        world = worlds.world(needles, f"test {number}")
        row = MemN2NAnswerer("memn2n", network)
        row.prepare(world.corpus)
        for sample in world.samples:
            prediction = row.answer(Question(id="", question=sample.query, answers=()), 8)
            right.append(prediction.text == sample.answer)
    return sum(right) / len(right)


def test_the_papers_variant_learns_a_closed_world(closed):
    assert accuracy(closed, CLOSED.needles) > 0.9


def test_the_papers_variant_cannot_write_what_it_has_never_seen(closed):
    held_out = dataclasses.replace(CLOSED.needles, value_digits=5)
    assert accuracy(closed, held_out) == 0
    assert set(closed.vocabulary) >= {NOT_IN_MEMORY, "red-cat", "special"}


def test_the_pointer_copies_values_it_has_never_seen():
    training = dataclasses.replace(
        CLOSED,
        network=MemN2NConfig(pointer=True, size=64, buckets=4096),
        needles=dataclasses.replace(CLOSED.needles, value_digits=4),
        steps=300,
        linear_steps=0.0,
        learning_rate=3e-3,
    )
    many = NeedleWorlds(
        [f"a{i}" for i in range(300)], [f"n{i}" for i in range(300)], ["The sky is blue.", "Here we go."]
    )
    network = train_memn2n(many, training)
    assert accuracy(network, dataclasses.replace(training.needles, value_digits=6), worlds=many) > 0.6
    state = torch.random.get_rng_state()
    again = train_memn2n(WORLDS, dataclasses.replace(training, steps=2))
    assert torch.equal(state, torch.random.get_rng_state())
    same = train_memn2n(WORLDS, dataclasses.replace(training, steps=2))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), same.parameters(), strict=True))


def test_weights_survive_the_disk_and_damage_is_named(closed, tmp_path):
    path = tmp_path / "memn2n.safetensors"
    closed.save(path)
    loaded = MemN2N.load(path)
    assert loaded.vocabulary == closed.vocabulary
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), closed.parameters(), strict=True))
    row = make("memn2n", tiny_model(), weights=path)
    row.prepare(NEEDLES)
    assert row.answer(ask(), 5).text in closed.vocabulary
    with pytest.raises(ValueError, match="without pointer"):
        make("memn2n-pointer", tiny_model(), weights=path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="damaged"):
        MemN2N.load(path)
    with pytest.raises(ModelNotFoundError, match="no file"):
        MemN2N.load(tmp_path / "none")


def test_position_encoding_and_hops_follow_the_paper():
    torch.manual_seed(0)
    network = MemN2N(MemN2NConfig(size=5, hops=2, slots=4), ["a", "b", "c"])
    sentences, question = [["a", "b"], ["c"], ["b", "unseen", "a"]], ["c", "a"]

    def encode(table, words):
        out = torch.zeros(5)
        for j, word in enumerate(words, start=1):
            row = {"a": 1, "b": 2, "c": 3}.get(word, 0)
            k = torch.arange(1, 6) / 5
            out += ((1 - j / len(words)) - k * (1 - 2 * j / len(words))) * network.words[table].weight[row] * (row > 0)
        return out

    with torch.no_grad():
        state = encode(0, question)
        for hop in (0, 1):
            keys = [encode(hop, s) + network.times[hop][age] for s, age in zip(sentences, (2, 1, 0), strict=True)]
            values = [
                encode(hop + 1, s) + network.times[hop + 1][age] for s, age in zip(sentences, (2, 1, 0), strict=True)
            ]
            attention = (torch.stack(keys) @ state).softmax(0)
            state = state + attention @ torch.stack(values)
        memory = network.memory(network.rows(sentences))
        found, weights = network.attend(network.rows([question]), memory)
        logits = network.word_logits(found)[0]
    torch.testing.assert_close(weights[0], attention)
    torch.testing.assert_close(logits, network.words[2].weight[1:4].detach() @ state)


def test_words_and_sentences():
    assert sentences_of(NEEDLES["c"]) == [["the", "grass", "is", "green"], ["the", "sky", "is", "blue"]]
    assert sentences_of("") == sentences_of("?! …") == []
    assert words_of("Is quiet-river 48?") == ["is", "quiet-river", "48"]
    assert [len(part) for part in sentences_of("w " * 100)] == [48, 48, 4]


def test_hostile_input_to_the_memory_network(closed):
    row = MemN2NAnswerer("memn2n", closed)
    assert row.answer(ask(), 5).retrieved == ()
    row.prepare({"empty": "", "odd": "‽ \x00", "long": "word " * 5000})
    assert row.answer(ask(), 5).text in closed.vocabulary
    with pytest.raises(ValueError, match="has no words"):
        row.answer(Question(id="q", question="?!", answers=()), 5)
    with pytest.raises(ValueError, match="another text"):
        row.prepare({"odd": "changed"})
    with pytest.raises(ValueError, match="at least 1"):
        train_memn2n(WORLDS, dataclasses.replace(CLOSED, steps=0))
