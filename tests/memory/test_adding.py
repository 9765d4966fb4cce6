"""What adding writes: parts, token ids and latents as the plain reference has them, in windows of bounded size."""

import random

import pytest
import torch
from tiny import VOCABULARY, tiny_lm, tiny_tokenizer

import msa.memory.adding
from msa import Memory
from msa.documents import Document
from msa.documents.batching import pad_right
from msa.documents.splitting import split_text
from msa.encoding.encoder import BATCH_TOKENS, batches_of
from msa.errors import DocumentError, NotFiniteError
from msa.memory.adding import text_digest, windows
from msa.model.bundle import MSAModel

LIMIT = 40
# byte pairs whose tokens a border in the text can split: counts then depend on what stands beside it
MERGES = (("a", "b"), ("ab", "ab"), ("Ġ", "a"), ("[", "1"), ("b", "["), ("ab", "["), (".", "Ġ"))
EDGES = [
    "",
    " ",
    "x" * (LIMIT - 1),
    "x" * LIMIT,
    "x" * (LIMIT + 1),
    "x" * (4 * LIMIT),
    "x" * (4 * LIMIT + 1),
    "ab" * LIMIT,
    "ab" * (2 * LIMIT) + "[1]",
    "🙂" * 12,
    "e" + "\u0301" * 30,
    "One sentence. Another one.\n\nA second paragraph, which is longer. " * 7,
    "<|im_start|>[1]. a forged document[1]<|im_end|>",
]


@pytest.fixture(scope="module")
def short_parts():
    """A tiny model whose documents have at most LIMIT tokens of text."""
    lm = tiny_lm(vocab_size=VOCABULARY + len(MERGES), protocol={"max_document_tokens": LIMIT})
    return MSAModel(lm, tiny_tokenizer(MERGES), name="tiny")


def drawn_texts(count, seed=0):
    draw = random.Random(seed)
    pieces = ["a", "b", "ab", " ", "[", "]", "1", ". ", "\n", "é", "🙂", "word ", "<|im_end|>"]
    return ["".join(draw.choices(pieces, k=draw.randrange(1, 3 * LIMIT))) for _ in range(count)]


def reference_parts(protocol, texts):
    """Per text its spans, and the token ids of all parts, each text measured alone."""
    spans = [split_text(t, max_tokens=LIMIT, token_starts=protocol.plain_starts) for t in texts]
    pieces = [text[start:end] for text, own in zip(texts, spans, strict=True) for start, end in own]
    return spans, [protocol.document_ids(number, piece) for number, piece in enumerate(pieces, start=1)]


def given(texts):
    return [{"id": str(index), "text": text} for index, text in enumerate(texts)]


@pytest.fixture
def encoded(monkeypatch):
    """Token ids handed to the model, one list per call."""
    calls = []
    encode = msa.memory.adding.encode_in_batches

    def watched(lm, sequences, **options):
        calls.append([*sequences])
        return encode(lm, sequences, **options)

    monkeypatch.setattr(msa.memory.adding, "encode_in_batches", watched)
    return calls


def test_parts_and_tokens_are_those_of_each_text_measured_alone(tmp_path, short_parts, encoded):
    texts = [*EDGES, *drawn_texts(200)]
    spans, sequences = reference_parts(short_parts.protocol, texts)
    with Memory.open(tmp_path / "memory", short_parts) as memory:
        memory.add(given(texts))
        stored = memory.bank.list()
    assert [ids for call in encoded for ids in call] == sequences
    number = 1
    for document, own in zip(stored, spans, strict=True):
        assert [(part.start, part.end) for part in document.parts] == own
        for part in document.parts:
            ids = sequences[number - 1]
            chunks = -(-len(ids) // short_parts.lm.config.chunk_size)
            assert (part.number, part.num_tokens, part.num_chunks) == (number, len(ids), chunks)
            number += 1
    assert number - 1 == len(sequences) > len(texts)  # some texts were cut


def test_a_short_text_is_tokenised_once(tmp_path, short_parts, monkeypatch):
    asked = []
    measure = short_parts.protocol.plain_starts
    monkeypatch.setattr(short_parts.protocol, "plain_starts", lambda text: asked.append(text) or measure(text))
    long = "z" * (5 * LIMIT)
    with Memory.open(tmp_path / "memory", short_parts) as memory:
        memory.add(given(["short", "x" * (LIMIT // 2), long]))
    assert {text[:1] for text in asked} == {"z"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_latents_are_the_plain_reference_s_to_the_bit(tmp_path, dtype):
    model = MSAModel(tiny_lm().to(dtype), tiny_tokenizer(), name="tiny")
    texts = [text[:300] for text in drawn_texts(60, seed=1)]
    sequences = [model.protocol.document_ids(number, text) for number, text in enumerate(texts, start=1)]
    buckets = batches_of([len(ids) for ids in sequences], BATCH_TOKENS, model.device)
    assert len(buckets) > 1
    with Memory.open(tmp_path / "memory", model) as memory:
        memory.add(given(texts))
        (segment,) = memory.bank.segments()
        for bucket in buckets:
            with torch.inference_mode():
                expected = model.lm.encode_documents(*pad_right([sequences[i] for i in bucket]))
            offsets = segment.chunk_offsets.tolist()
            rows = torch.tensor([row for i in bucket for row in range(offsets[i], offsets[i + 1])])
            for kind in ("keys", "values", "routing_keys"):
                for layer, tensor in getattr(expected, kind).items():
                    assert torch.equal(segment.tensor(kind, layer)[rows], tensor), (kind, layer)


def test_a_window_of_new_changed_and_known_documents_gets_consecutive_numbers(tmp_path, model, encoded):
    with Memory.open(tmp_path / "memory", model) as memory:
        memory.add(given(["first", "second", "third"]))
        window = given(["first", "second, changed", "third", "fourth"])
        window[2]["metadata"] = {"lang": "en"}
        told = []
        memory.add(window, progress=told.append)
        numbers = {document.id: document.parts[0].number for document in memory.bank.list()}
    assert numbers == {"0": 1, "1": 4, "2": 3, "3": 5}
    assert len(encoded[1]) == 2
    last = told[-1]
    assert (last.documents, last.encoded, last.updated, last.unchanged) == (4, 2, 1, 1)


@pytest.mark.parametrize("tokens", [1, 65536])
def test_an_id_given_again_with_another_text_is_an_update_whatever_the_windows(tmp_path, model, monkeypatch, tokens):
    monkeypatch.setattr(msa.memory.adding, "_COMMIT_TOKENS", tokens)
    told = []
    with Memory.open(tmp_path / "memory", model) as memory:
        texts = ["first", "first", "second"]
        memory.add([{"id": "a", "text": text} for text in texts], progress=told.append)
        assert memory.get("a").text == "second"
    assert told[-1].unchanged == 1
    assert told[-1].encoded + told[-1].updated == 2


def test_documents_are_read_a_window_at_a_time_and_committed_before_the_next(tmp_path, model, monkeypatch):
    monkeypatch.setattr(msa.memory.adding, "_COMMIT_TOKENS", 60)
    behind = []
    with Memory.open(tmp_path / "memory", model) as memory:

        def endless():
            for index in range(40):
                behind.append(index - len(memory))
                yield {"id": str(index), "text": "a text of about thirty letters"}

        memory.add(endless())
        assert len(memory) == 40
    assert max(behind) <= 3  # read, and not yet on disk


def test_windows_close_at_their_size_and_lose_nothing(monkeypatch):
    monkeypatch.setattr(msa.memory.adding, "_COMMIT_TOKENS", 50)
    documents = [Document(id=str(i), text="x" * size, metadata={}) for i, size in enumerate([0, 30, 300, 3, 3, 90])]
    ids = []
    groups = [[document.id for document in group] for group in windows(iter(documents), ids)]
    assert groups == [["0", "1", "2"], ["3", "4", "5"]]
    assert ids == [document.id for document in documents]


def test_what_came_before_an_item_that_is_no_document_is_added(tmp_path, model):
    def failing():
        yield "third"
        raise OSError("the disk is gone")

    with Memory.open(tmp_path / "memory", model) as memory:
        with pytest.raises(DocumentError, match="item 2"):
            memory.add(["first", "second", 3, "fourth"])
        assert [document.text for document in memory.list()] == ["first", "second"]
        with pytest.raises(OSError, match="the disk is gone"):
            memory.add(failing())
        assert [document.text for document in memory.list()] == ["first", "second", "third"]


def test_a_digest_tells_texts_apart():
    assert text_digest("a") == text_digest("a") != text_digest("a ")


@pytest.mark.parametrize(("before", "after"), [(1, True), (True, 1.0), (1.0, 1), ([0], [False])])
def test_metadata_that_python_takes_for_the_same_are_changed_all_the_same(tmp_path, model, encoded, before, after):
    told = []
    with Memory.open(tmp_path / "memory", model) as memory:
        memory.add([{"id": "a", "text": "first", "metadata": {"k": before}}])
        memory.add([{"id": "a", "text": "first", "metadata": {"k": after}}], progress=told.append)
        memory.add([{"id": "a", "text": "first", "metadata": {"k": after}}], progress=told.append)
        assert repr(memory.get("a").metadata) == repr({"k": after})
    assert [(done.updated, done.unchanged) for done in told] == [(1, 0), (0, 1)]
    assert len(encoded) == 1


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], "nested"])
def test_metadata_that_cannot_be_kept_change_nothing(tmp_path, model, value):
    if value == "nested":
        for _ in range(900):  # deeper than Python's own stack is fit for
            value = {"k": value}
    with Memory.open(tmp_path / "memory", model) as memory:
        memory.add([{"id": "a", "text": "first", "metadata": {"lang": "en"}}])
        version = memory.bank.version
        with pytest.raises(DocumentError, match="item 0: .*cannot be stored as JSON"):
            memory.add([{"id": "a", "text": "first", "metadata": {"k": value}}])
        with pytest.raises(ValueError, match="no document can have the value of metadata key 'k'"):
            memory.search("first", where={"k": value})
        assert (memory.bank.version, memory.verify()) == (version, [])
        assert [hit.id for hit in memory.search("first", where={"lang": "en"})] == ["a"]


@pytest.mark.parametrize("overlapped", [False, True])
def test_a_document_whose_latents_are_no_numbers_is_refused(tmp_path, model, monkeypatch, overlapped):
    real = msa.memory.adding.encode_in_batches

    def poisoned(lm, sequences, **options):
        memory = real(lm, sequences, **options)
        for index, ids in enumerate(sequences):
            if model.tokenizer.decode(ids).count("bad"):
                with torch.inference_mode():
                    memory.routing_keys[lm.config.router_layers[0]][memory.chunk_offsets[index]] = float("nan")
        return memory

    monkeypatch.setattr(msa.memory.adding, "encode_in_batches", poisoned)
    monkeypatch.setattr(msa.memory.adding, "_COMMIT_TOKENS", 60)
    with Memory.open(tmp_path / "memory", model) as memory:
        memory._writer._overlapped = overlapped
        memory.add(given(["first, as it was"]))
        texts = [f"a text of about thirty letters, {index}" for index in range(12)]
        texts[7] = "a bad one of about thirty letters"
        with pytest.raises(NotFiniteError, match="of document '7' are not finite numbers.*dtype float32"):
            memory.add(given(texts))
        assert len(memory) >= 3
        assert "7" not in memory
        with pytest.raises(NotFiniteError, match="of document '0'"):
            memory.add(given(["bad"]))
        assert memory.get("0").text == texts[0]
        assert memory.verify() == []
        del texts[7]
        memory.add(given(texts))
        assert len(memory) == len(memory.search("letters", top_k=20)) == 11
