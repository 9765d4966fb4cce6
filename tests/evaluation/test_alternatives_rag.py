"""RAG: what is found is read by the same backbone, with words, with vectors, and reordered by reading."""

import sys

import pytest
import torch
from tiny import READER_PROMPT, tiny_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from msa.documents import ProtocolStrings
from msa.errors import ModelNotFoundError, MSAError
from msa.evaluation import Question
from msa.evaluation.alternatives import WayMaker, make, retrievers
from msa.evaluation.alternatives.prompts import reading_prompt
from msa.evaluation.alternatives.retrievers import BM25Retriever, DenseRetriever, TextEncoder
from msa.evaluation.alternatives.text_file import TextFile
from msa.generation.reread import question_likelihoods

WORDS = ["copper", "lantern", "meadow", "violin", "harbour", "glacier", "saddle", "walnut", "zephyr", "anchor"]
DOCUMENTS = {word: f"The {word} belongs to number {i}." for i, word in enumerate(WORDS)} | {
    "empty": "",
    "odd": "‽ \x00",
}


def ask(text, **fields):
    return Question(id="q", question=text, answers=(), **fields)


@pytest.fixture(scope="module")
def routed():
    strings = ProtocolStrings(
        retrieval="routed", reader_prompt=READER_PROMPT, reader_lead="See {title}:", max_document_tokens=200
    )
    return tiny_model(protocol=strings.to_config())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random BERT that reads 24 word pieces, each letter one."""
    folder = tmp_path_factory.mktemp("encoder")
    vocab = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    for letter in "abcdefghijklmnopqrstuvwxyz0123456789.":
        vocab[letter] = len(vocab)
        vocab["##" + letter] = len(vocab)
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(vocab), max_position_embeddings=24, **shape)).save_pretrained(folder)
    return folder


def test_bm25_finds_by_words_and_the_backbone_reads_what_was_found(routed):
    pytest.importorskip("bm25s")
    row = make("rag-bm25@1", routed)
    first, *others = DOCUMENTS.items()
    row.prepare(dict([first]))
    row.prepare({**dict(others), first[0]: first[1]})
    for number, word in enumerate(WORDS):
        prediction = row.answer(ask(f"Whose is the {word}?"), 4)
        assert prediction.retrieved == prediction.read == (word,)
        prompt = reading_prompt(routed, [(number, DOCUMENTS[word])], ask(f"Whose is the {word}?"), title=word)
        assert prediction.tokens_seen == len(prompt.ids)
        assert prediction.text.startswith(f"See {word}:")
        assert 0 < prediction.first_token_s <= prediction.seconds
    index = row._retriever.resident_bytes()
    assert row.resident_bytes() == index + 8 * (len(DOCUMENTS) + 1)  # the texts themselves are on disk
    assert index > sum(len(text) for text in DOCUMENTS.values())


def test_bm25_survives_texts_and_questions_without_words():
    pytest.importorskip("bm25s")
    retriever = BM25Retriever()
    assert retriever.search("anything", 3) == []
    retriever.add([])
    retriever.add(["", "the of"])
    assert retriever.search("anything", 3) == []
    retriever.add(["anything goes"])
    assert [found.index for found in retriever.search("anything", 3)] == [2]
    assert retriever.search("", 3) == retriever.search("the", 3) == retriever.search("unseen", 3) == []


@pytest.mark.parametrize("name", ["rag-bm25@5", "rag-bm25-rerank@5"])
def test_nothing_found_is_answered_without_documents(name, routed):
    pytest.importorskip("bm25s")
    row = make(name, routed)
    prediction = row.answer(ask("Whose is it?"), 3)
    assert prediction.retrieved == prediction.read == ()


def test_dense_scores_are_cosines_of_mean_pooled_states(encoder):
    pytest.importorskip("faiss")
    encoder = TextEncoder(encoder)
    retriever = DenseRetriever(encoder)
    retriever.add(["abc abc", "xyz"])
    retriever.add(["abc d", ""])
    found = retriever.search("abc", 4)
    vectors = encoder.embed(["abc", "abc abc", "xyz", "abc d", ""])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    alone = torch.stack([encoder.embed([text])[0] for text in ("abc", "abc abc", "xyz", "abc d", "")])
    torch.testing.assert_close(vectors, alone)  # batching and padding change nothing
    cosines = vectors[1:] @ vectors[0]
    assert [one.index for one in found] == cosines.argsort(descending=True).tolist()
    assert [one.score for one in found] == pytest.approx(cosines.sort(descending=True).values.tolist(), abs=1e-5)
    assert retriever.resident_bytes() == 4 * 16 * 4


def test_dense_sees_the_end_of_a_long_text(encoder):
    pytest.importorskip("faiss")
    retriever = DenseRetriever(encoder)
    long = "aaaa bbbb. " * 20 + "qq zz qq. "
    retriever.add([long, "cccc", "dddd", "aaaa bbbb. aaaa bbbb."])
    best = retriever.search("qq zz qq. ", 4)
    assert best[0].index == 0
    assert best[0].score == pytest.approx(1, abs=0.3)
    assert best[0].place > len(long) - 25
    assert sorted(one.index for one in best) == [0, 1, 2, 3]


def test_dense_rag_reads_its_best_documents(encoder, routed):
    pytest.importorskip("faiss")
    row = make("rag-minilm@5", routed, encoder=encoder)
    row.prepare(DOCUMENTS)
    prediction = row.answer(ask(DOCUMENTS["violin"]), 3)
    assert prediction.retrieved[0] == "violin"
    assert len(prediction.retrieved) == len(set(prediction.read)) == 5


def test_ways_of_one_run_share_an_encoder_and_nothing_else(encoder, routed, monkeypatch, tmp_path):
    pytest.importorskip("faiss")
    loaded, load = [], retrievers.AutoModel.from_pretrained
    monkeypatch.setattr(retrievers.AutoModel, "from_pretrained", lambda *a, **b: loaded.append(a) or load(*a, **b))
    make_way = WayMaker(routed, tmp_path, encoder=encoder)
    assert not loaded
    rows = [make_way(name) for name in ("rag-minilm@1", "rag-minilm@1", "rag-minilm-rerank@1")]
    rows[0].prepare(DOCUMENTS)
    rows[1].prepare({"other": DOCUMENTS["violin"]})
    assert len(loaded) == 1
    for row, name in zip(rows, ("violin", "other"), strict=False):
        assert row.answer(ask(DOCUMENTS["violin"]), 3).retrieved == (name,)
    assert rows[2].answer(ask("Whose?"), 3).retrieved == ()


def test_long_documents_are_parts_and_what_does_not_fit_is_shortened_around_its_best_passage(encoder):
    pytest.importorskip("faiss")
    strings = ProtocolStrings(retrieval="routed", reader_prompt=READER_PROMPT, max_document_tokens=150)
    small = tiny_model(max_position_embeddings=220, protocol=strings.to_config())
    row = make("rag-minilm@1", small, encoder=encoder)
    row.prepare({"long": "aaaa bbbb. " * 30 + "qq zz qq. ", "short": "cccc"})
    assert row._documents == ["long", "long", "long", "short"]
    assert "".join(row._texts[number] for number in range(3)) == "aaaa bbbb. " * 30 + "qq zz qq. "
    fine = row.answer(ask("qq zz qq. "), 20)
    assert fine.retrieved == fine.read == ("long",)
    tight = row.answer(ask("qq zz qq. "), 150)
    assert "shortened" in tight.note
    assert row.answer(ask("qq zz qq. " * 30), 5).note.endswith("the context ends at 220")


def test_reranking_reads_every_piece_of_a_candidate(routed):
    pytest.importorskip("bm25s")
    row = make("rag-bm25-rerank@1", routed)
    texts = {str(i): f"walnut {i} " * (3 * i + 1) for i in range(8)}
    row.prepare(texts)
    question = "Which walnut?"
    prediction = row.answer(ask(question), 3)
    best = {}
    for name, text in zip(row._documents, map(row._texts.__getitem__, range(len(row._texts))), strict=True):
        pieces = [text[i : i + 128] for i in range(0, len(text), 128)]
        score = float(question_likelihoods(routed.lm, routed.protocol, pieces, question).max())
        best[name] = max(score, best.get(name, score))
    plain = make("rag-bm25@10", routed)
    plain.prepare(texts)
    assert set(plain.answer(ask(question), 3).retrieved) == set(texts)
    assert prediction.retrieved[0] in sorted(best, key=best.get)[-3:]  # pieces end at words, not at 128 bytes
    assert prediction.tokens_seen > 10 * plain.answer(ask(question), 3).tokens_seen / 8


def test_a_generative_checkpoint_reads_its_own_transcript(model):
    pytest.importorskip("bm25s")
    row = make("rag-bm25@1", model)
    row.prepare(DOCUMENTS)
    prediction = row.answer(ask("Whose is the meadow?"), 3)
    assert prediction.tokens_seen == len(
        reading_prompt(model, [(2, DOCUMENTS["meadow"])], ask("Whose is the meadow?")).ids
    )


def test_texts_on_disk_come_back_as_they_were():
    texts = TextFile()
    given = ["", "plain", "\ud800 half a pair", "ünïcode \x00", "x" * 100_000]
    for number, text in enumerate(given):
        texts.append(text)
        assert texts[number] == text  # reading between writes moves nothing
    assert [texts[number] for number in range(len(texts))] == given
    for number in (-1, len(given)):
        with pytest.raises(IndexError):
            texts[number]


def test_changed_documents_and_impossible_numbers_are_refused(routed, encoder):
    pytest.importorskip("bm25s")
    row = make("rag-bm25@5", routed)
    row.prepare({"a": "One."})
    with pytest.raises(ValueError, match="'a' was taken in with another text"):
        row.prepare({"a": "Two."})
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        make("rag-bm25@1", routed, top_k=0)
    with pytest.raises(ValueError, match="rerank_from must be 0 or at least"):
        make("rag-bm25@5", routed, rerank_from=3)


def test_what_is_missing_is_named(routed, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="needs an encoder, the folder of"):
        make("rag-minilm@1", routed)
    if "faiss" in sys.modules or pytest.importorskip("faiss"):
        with pytest.raises(ModelNotFoundError, match="no folder"):
            make("rag-minilm@1", routed, encoder=tmp_path / "none")
        (tmp_path / "broken").mkdir()
        with pytest.raises(ModelNotFoundError, match="cannot load an encoder"):
            make("rag-minilm@1", routed, encoder=tmp_path / "broken")
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MSAError, match=r"pip install faiss-cpu, or 'memory-sparse-attention\[eval\]'"):
        make("rag-minilm@1", routed, encoder=tmp_path)
    with pytest.raises(MSAError, match=r"bm25s: pip install 'memory-sparse-attention\[eval\]'"):
        make("rag-bm25@1", routed)
