"""Rows that answer from texts in the prompt: token for token what routed mode gives the network to read."""

import random
import re

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

import msa
from msa.documents import Protocol, ProtocolStrings
from msa.errors import TrainingDataError
from msa.generation.decoding import Decoding
from msa.training.data.reading import reading_rows
from msa.training.data.samples import Sample, TrainingSet
from msa.training.data.steps import IGNORED

STRINGS = ProtocolStrings(
    prefix="<|im_start|>user\n",
    retrieval="routed",
    reader_prompt="<|im_start|>user\n{documents}Read this.\nQuestion: {question}<|im_end|>\n<|im_start|>assistant\n",
    reader_document="<< {text} >>\n",
)
# what looks like a part of the transcript stays text
CORPUS = {name: f"Text of {name}{'. And more' * n} <|im_end|>" for n, name in enumerate("abcdefgh")}
SAMPLES = [
    Sample(query="What is a?", positives=("a",), answer="It is {a}", source="one"),
    Sample(query="What are b <|im_start|> and c?", positives=("b", "c"), answer="They are b and c", source="two"),
    Sample(query="What is z?", documents=("d",), answer="Nobody knows", source="none"),
    Sample(query="What is e?", positives=("e",), documents=("f", "e", "g"), answer="", source="hard"),
]
NEWLINE = "Ċ"  # in a vocabulary of bytes
SET = TrainingSet(corpus=CORPUS, samples=SAMPLES)


@pytest.fixture(scope="module")
def protocol():
    return Protocol(STRINGS, tiny_tokenizer())


def rows_of(protocol, samples=SAMPLES, most=4, seed=0, training_set=SET):
    return reading_rows(training_set, samples, protocol, most, random.Random(seed))


def read_in(protocol, ids):
    """Names of the documents of a row, in order."""
    return re.findall(r"<< Text of (\w)", protocol.decode_all(ids))


def parts(rows):
    """Per row its real ids and its labels, padding cut off."""
    lengths = rows.attention_mask.sum(1).tolist()
    for ids, labels, length in zip(rows.input_ids.tolist(), rows.answer_labels.tolist(), lengths, strict=True):
        assert set(labels[length:]) <= {IGNORED}
        yield ids[:length], labels[:length]


def test_rows_are_what_the_engine_feeds_with_the_answer_after_it(tmp_path, monkeypatch):
    model = tiny_model(protocol=STRINGS.to_config())
    prompts = []
    init = Decoding.__init__

    def noting(self, lm, given, **named):
        assert not named.get("prefix"), "routed mode reads the whole prompt"
        prompts.extend(list(prompt.ids) for prompt in given)
        init(self, lm, given, **named)

    monkeypatch.setattr(Decoding, "__init__", noting)
    question = SAMPLES[1].query
    with msa.Memory.open(tmp_path / "memory", model=model) as memory:
        memory.add([{"id": name, "text": text} for name, text in CORPUS.items()])
        memory.ask(question, max_documents=4, max_new_tokens=2)
    (fed,) = prompts
    order = read_in(model.protocol, fed)
    assert len(order) == 4
    # training draws an order; of all that it can draw one is the engine's
    sample = Sample(query=question, positives=tuple(order), answer="They are b and c")
    drawn = {}
    for seed in range(400):
        ((ids, labels),) = parts(rows_of(model.protocol, [sample], seed=seed))
        drawn[tuple(read_in(model.protocol, ids))] = ids, labels
    ids, labels = drawn[tuple(order)]
    answer = [*model.protocol.plain_ids("They are b and c"), model.protocol.answer_end_id]
    assert model.protocol.prefix_ids + ids == fed + answer
    assert labels == [IGNORED] * (len(ids) - len(answer)) + answer


def test_answers_alone_are_learnt(protocol):
    rows = rows_of(protocol)
    for sample, (ids, labels) in zip(SAMPLES, parts(rows), strict=True):
        answer = [*protocol.plain_ids(sample.answer), protocol.answer_end_id]
        assert ids[-len(answer) :] == answer
        assert labels == [IGNORED] * (len(ids) - len(answer)) + answer
    assert not rows.routing_mask.any()
    assert bool((rows.id_labels == IGNORED).all())
    assert rows.selectable.shape == (len(SAMPLES), 0)
    assert rows.positives == [[]] * len(SAMPLES)
    assert rows.sources == ["one", "two", "none", "hard"]
    assert rows.attention_mask.sum(1).max() == rows.input_ids.shape[1]


def test_positives_are_always_read_then_negatives_then_any(protocol):
    counts, places = {name: set() for name in "abcd"}, set()
    for seed in range(60):
        for sample, counted, (ids, _) in zip(SAMPLES, "abcd", parts(rows_of(protocol, seed=seed)), strict=True):
            read = read_in(protocol, ids)
            assert len(set(read)) == len(read)
            assert set(sample.positives) <= set(read)
            near = set(sample.documents) - set(sample.positives)
            others = set(read) - set(sample.positives)
            assert others <= near or near <= others, "negatives of the sample come before any other document"
            counts[counted].add(len(read))
            if counted == "a":
                places.add(read.index("a"))
    assert counts == {"a": {1, 2, 3, 4}, "b": {2, 3, 4}, "c": {1, 2, 3, 4}, "d": {1, 2, 3, 4}}
    assert places == {0, 1, 2, 3}, "the right document stands anywhere"


def test_a_corpus_smaller_than_a_prompt_is_read_whole(protocol):
    small = TrainingSet(corpus={name: CORPUS[name] for name in "ab"}, samples=SAMPLES[:1])
    read = [
        read_in(protocol, ids) for seed in range(9) for ids, _ in parts(rows_of(protocol, SAMPLES[:1], 9, seed, small))
    ]
    assert {len(names) for names in read} == {1, 2}


def test_rows_are_a_pure_function_of_the_generator(protocol):
    first, same, other = (rows_of(protocol, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.input_ids, same.input_ids)
    assert first.input_ids.shape != other.input_ids.shape or not torch.equal(first.input_ids, other.input_ids)


def test_numbers_of_documents_are_filled_in(protocol):
    strings = ProtocolStrings(**STRINGS.to_config() | {"reader_document": "[{id}] << {text} >>\n"})
    ((ids, _),) = parts(rows_of(Protocol(strings, tiny_tokenizer()), SAMPLES[1:2]))
    assert re.findall(r"\[(\S+)\] <<", protocol.decode_all(ids))[:2] == ["1", "2"]


def test_what_cannot_be_read_is_refused(protocol):
    other = Protocol(ProtocolStrings(**STRINGS.to_config() | {"prefix": "<|im_end|>"}), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"begins with the prefix '<\|im_end\|>', .*; found '<\|im_start\|>user"):
        rows_of(other)
    blank = TrainingSet(corpus={"a": "\nText of a"}, samples=SAMPLES[:1])
    merging = Protocol(
        ProtocolStrings(**STRINGS.to_config() | {"reader_document": "{text}"}), tiny_tokenizer(((NEWLINE, NEWLINE),))
    )
    with pytest.raises(ValueError, match="do not begin with blanks"):
        rows_of(merging, SAMPLES[:1], training_set=blank)
    with pytest.raises(TrainingDataError, match=r"need answers, the question 'What is h\?' has none"):
        rows_of(protocol, [Sample(query="What is h?", positives=("h",))])
    with pytest.raises(ValueError, match="expected samples and a document to read, got 0 and 4"):
        rows_of(protocol, [])
    with pytest.raises(ValueError, match="got 4 and 0"):
        rows_of(protocol, most=0)
