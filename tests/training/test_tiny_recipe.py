"""A network from nothing: saved, loaded, asked; and documents that were read are not routed to again."""

import random

import pytest
import torch
from tiny import tiny_model

import msa
from msa.generation.decoding import Decoding
from msa.training.data.needles import NeedleWorlds
from msa.training.tiny import PROTOCOL, fresh_model, fresh_network, tiny_config, tokenizer_texts, train_tokenizer

ADJECTIVES = [f"{letter}{other}ing" for letter in "abcdefgh" for other in "klmnop"]
NOUNS = [f"{letter}{other}one" for letter in "qrstuvwx" for other in "klmnop"]
HAYSTACK = [
    "The grass is green.",
    "The sky is blue.",
    "Here we go.",
    "A river ran past the old mill and on to the sea.",
]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "chunk_size": 8,
    "top_k_docs": 2,
}


@pytest.fixture(scope="module")
def worlds():
    return NeedleWorlds(ADJECTIVES, NOUNS, HAYSTACK)


@pytest.fixture(scope="module")
def fresh(worlds):
    return fresh_model(worlds, HAYSTACK, vocab_size=500, seed=0, **SMALL)


def test_ids_are_spelt_one_way_whatever_stands_around_them(fresh):
    plain = fresh.protocol.plain_ids
    for number in ("[7]", "[1234567]"):
        alone = plain(number)
        assert len(alone) == len(number)
        assert plain(f"sky{number}") == plain("sky") + alone
        assert plain(f"{number}. The sky") == alone + plain(". The sky")
    assert fresh.protocol.document_ids(12, "The sky.")[1:5] == plain("[12]")


def test_control_tokens_are_single_and_never_made_by_text(fresh):
    strings = fresh.protocol.strings
    assert strings == PROTOCOL
    control = [strings.prefix, strings.question_end, strings.reference_end, strings.end_of_retrieve, strings.answer_end]
    ids = [fresh.protocol.template_ids(token) for token in control]
    assert all(len(found) == 1 for found in ids)
    assert not {found[0] for found in ids} & set(fresh.protocol.plain_ids(" ".join(control)))


def test_any_text_survives_the_tokenizer(fresh):
    for text in ("The sky is blue.", "größer\n\t[12] 007", "日本 🏖️", "It is not in memory."):
        assert fresh.protocol.decode_all(fresh.protocol.plain_ids(text)) == text


def test_the_same_seed_makes_the_same_network(worlds, fresh):
    again = fresh_model(worlds, HAYSTACK, vocab_size=500, seed=0, **SMALL)
    assert again.fingerprint == fresh.fingerprint
    assert fresh_model(worlds, HAYSTACK, vocab_size=500, seed=1, **SMALL).fingerprint != fresh.fingerprint


@pytest.mark.parametrize(
    ("copying_heads", "shape", "least"),
    [
        (False, {**SMALL, "hidden_size": 64, "head_dim": 32}, 0.5),
        # what the copying heads write stands beside the words that the routers compare
        (True, {"chunk_size": 8}, 0.15),
    ],
)
def test_tied_routers_find_a_question_s_words_before_any_training(copying_heads, shape, least):
    tokenizer = train_tokenizer([*HAYSTACK, *ADJECTIVES], 400)
    config = tiny_config(tokenizer, **shape)
    found = []
    for seed in range(8):
        lm = fresh_network(config, seed=seed, copying_heads=copying_heads)
        generator = torch.Generator().manual_seed(seed)
        documents = torch.randint(10, len(tokenizer), (20, 8), generator=generator)
        wanted = random.Random(seed).sample(range(20), 5)
        questions = torch.stack([documents[index, 3:6] for index in wanted])
        with torch.no_grad():
            memory = lm.encode_documents(documents, torch.full((20,), 8))
            routing = lm.route(questions, memory, top_k=2)
        scores = torch.stack([layer.doc_scores for layer in routing.values()]).mean(0)
        found += [int(best) == index for best, index in zip(scores.argmax(1), wanted, strict=True)]
    assert sum(found) > least * len(found)  # chance is one in twenty


def test_texts_for_the_tokenizer_hold_every_sentence_that_needles_use(worlds):
    texts = set(tokenizer_texts(worlds, HAYSTACK))
    assert set(HAYSTACK) <= texts
    assert "It is not in memory." in texts
    assert any("special magic uuid for" in text for text in texts)


def test_a_fresh_model_is_saved_loaded_and_asked(fresh, tmp_path):
    fresh.save_pretrained(tmp_path / "model")
    loaded = msa.load(tmp_path / "model", dtype="float32")
    assert loaded.fingerprint == fresh.fingerprint
    assert loaded.protocol.strings == PROTOCOL
    expected = dict(fresh.lm.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in loaded.lm.named_parameters())
    text = "[12]. The sky is blue.[12]"
    assert loaded.protocol.document_ids(12, text) == fresh.protocol.document_ids(12, text)
    with msa.Memory.open(tmp_path / "memory", loaded) as memory:
        memory.add([{"id": f"d{number}", "text": text} for number, text in enumerate(HAYSTACK)])
        answer = memory.ask("What is blue?", max_new_tokens=5)
    assert isinstance(answer.text, str)
    assert answer.finish_reason in ("stop", "length")
    assert len(answer.rounds) >= 1


# documents already read


@pytest.fixture
def passes(monkeypatch):
    """What every prefill over a memory selects, and its scores by layer."""
    noted = []
    init = Decoding.__init__

    def noting(self, *given, **named):
        init(self, *given, **named)
        if named.get("memory") is not None:
            chosen = {index for layer in self.routing.values() for index in layer.doc_indices[0].tolist()}
            noted.append((chosen, {layer: r.doc_scores[0] for layer, r in self.routing.items()}))

    monkeypatch.setattr(Decoding, "__init__", noting)
    return noted


def favours_ids(model):
    """A random model that writes ids while it may, then ends the list, and never says that it has enough."""
    vocabulary = model.tokenizer.get_vocab()
    bias = torch.zeros(len(vocabulary))
    bias[[vocabulary[piece] for piece in "[]0123456789"]] = 80.0
    bias[model.protocol.reference_end_id] = 40.0
    model.lm.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias)
    return model


@pytest.mark.parametrize("exclude_read", [True, False])
def test_documents_that_were_read_are_not_routed_to_again_where_the_protocol_says_so(tmp_path, passes, exclude_read):
    model = favours_ids(tiny_model(protocol={"exclude_read": exclude_read}, top_k_docs=2))
    with msa.Memory.open(tmp_path / "memory", model) as memory:
        memory.add([{"id": f"d{number}", "text": f"document {number}"} for number in range(8)])
        answer = memory.ask("Which?", max_rounds=3, max_new_tokens=2, constrain_ids="selected")
    assert len(answer.rounds) >= (2 if exclude_read else 1)
    assert len(passes) >= 2
    numbers = sorted({hit.number for hit in answer.sources})
    read = set()
    assert len(passes) >= len(answer.rounds)
    for (chosen, scores), found in zip(passes, [*answer.rounds, None], strict=False):
        for layer_scores in scores.values():
            hidden = {index for index, score in enumerate(layer_scores.tolist()) if score == float("-inf")}
            assert hidden == (read if exclude_read else set())
        assert not (chosen & read and exclude_read)
        if found is not None:
            read |= {number - 1 for number in found.numbers}
    assert read
    assert read == {number - 1 for number in numbers}
