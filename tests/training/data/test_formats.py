import json
import logging
import os

import pytest
from set_files import in_own_folder, write  # noqa: F401 (a fixture)
from set_files import refused_samples as refused

from msa.errors import TrainingDataError
from msa.training.data import formats
from msa.training.data.formats import read_training_set, write_training_set
from msa.training.data.samples import Sample, TrainingSet

# our own format


def test_samples_over_a_corpus_file():
    write("corpus.jsonl", {"id": "a", "text": "A"}, {"id": "b", "text": "B"}, {"_id": "c", "title": "C", "text": "c"})
    write(
        "s.jsonl",
        {"query": "q1", "documents": ["c", "c"], "positives": ["a", "b"], "answer": "x", "hops": [["b"], ["a"]]},
        "",
        {"query": "q2", "documents": ["a", "b"], "positives": [1], "hops": None, "answer": None, "source": "mine"},
        {"query": "q3", "positives": []},
    )
    got = read_training_set(["s.jsonl"], corpus=["corpus.jsonl"])
    assert got.corpus == {"a": "A", "b": "B", "c": "C\nc"}
    assert got.problems == []
    assert got.samples == [
        Sample(query="q1", positives=("a", "b"), documents=("c",), answer="x", hops=(("b",), ("a",))),
        Sample(query="q2", positives=("b",), documents=("a",), source="mine"),
        Sample(query="q3"),
    ]


def test_documents_inside_the_sample():
    write("d/s.jsonl", "", {"query": "q", "documents": [{"text": "A"}, {"id": 7, "text": "B"}], "positives": [0, "7"]})
    got = read_training_set(["d/s.jsonl"])
    assert got.corpus == {"s.jsonl:2#0": "A", "7": "B"}
    assert got.samples[0].positives == ("s.jsonl:2#0", "7")
    assert got.samples[0].documents == ()


def test_a_document_may_be_named_before_it_is_given():
    write(
        "s.jsonl",
        {"query": "q", "positives": ["a"]},
        {"query": "r", "documents": [{"id": "a", "text": "A"}], "positives": [0]},
    )
    assert [sample.positives for sample in read_training_set(["s.jsonl"]).samples] == [("a",), ("a",)]


def test_files_of_one_name_get_different_ids():
    for folder, text in (("x", "X"), ("y", "Y")):
        write(f"{folder}/s.jsonl", {"query": "q", "documents": [{"text": text}], "positives": [0]})
    got = read_training_set(["x/s.jsonl", "y/s.jsonl"])
    assert got.corpus == {"x/s.jsonl:1#0": "X", "y/s.jsonl:1#0": "Y"}


def test_a_json_file_that_is_one_list(tmp_path):
    record = {"query": "q", "documents": [{"text": "A"}], "positives": [0]}
    write("s.json", json.dumps([record, {**record, "positives": "0"}, record]))
    assert 's.json:1: item 2: "positives" is a string' in refused("s.json")
    assert list(read_training_set(["s.json"], skip_bad=True).corpus) == ["s.json:1.1#0", "s.json:1.3#0"]
    write("t.json", json.dumps([record, record], indent=1).replace('"positives"', '"negatives"', 1))
    assert 't.json:2: item 1: has no "positives"' in refused("t.json")


def test_a_lone_surrogate_and_a_byte_order_mark(tmp_path):
    write("s.jsonl", '\ufeff{"query": "q\\ud800", "documents": [{"text": "A"}], "positives": [0]}')
    assert read_training_set(["s.jsonl"]).samples[0].query == "q\ufffd"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not JSON (Expecting property name"),
        ("[" * 100_000, "not JSON (nested too deeply)"),
        (b'{"query": "\xff"}', "byte 12 of the line is not UTF-8"),
        ("7", 'expected an object such as {"query"'),
        ({"positives": []}, 'has no "query" (its keys: "positives")'),
        ({"query": 1, "positives": []}, '"query" is a number'),
        ({"query": " ", "positives": []}, "the query is empty"),
        ({"query": "q"}, 'has no "positives" (its keys: "query"). Write "positives": []'),
        ({"query": "q", "positives": None}, '"positives" is null'),
        ({"query": "q", "positives": "a"}, '"positives" is a string'),
        ({"query": "q", "positives": [True]}, '"positives" holds a boolean'),
        ({"query": "q", "positives": [0]}, '"positives" names document number 0, but "documents" has 0'),
        ({"query": "q", "positives": [-1], "documents": ["a"]}, '"positives" names document number -1'),
        ({"query": "q", "positives": ["a", "a"]}, '"positives" names "a" twice'),
        ({"query": "q", "positives": [], "documents": "a"}, '"documents" is a string'),
        ({"query": "q", "positives": [], "documents": [3]}, '"documents" holds a number'),
        ({"query": "q", "positives": [], "documents": [{"id": "z"}]}, 'has no "text" (its keys: "id")'),
        ({"query": "q", "positives": [], "documents": [{"id": "", "text": "Z"}]}, '"id" is an empty string'),
        (
            {"query": "q", "positives": [], "documents": [{"id": "a", "text": "Z"}]},
            'the id "a" has another text in c.jsonl:1',
        ),
        ({"query": "q", "positives": [], "documents": [{"id": "z", "text": " "}]}, 'the document "z" has no text'),
        ({"query": "q", "positives": ["a"], "answer": ["x"]}, '"answer" is a list'),
        ({"query": "q", "positives": ["a"], "source": 1}, '"source" is a number'),
        ({"query": "q", "positives": ["a"], "hops": ["a"]}, '"hops" is a string. Give it as a list'),
        ({"query": "q", "positives": ["a"], "hops": [["b"]]}, "hops must name each positive document once"),
        ({"query": "q", "positives": ["nowhere"]}, 'no document has the id "nowhere". Add it to the corpus'),
        ({"id": "a", "text": "A"}, 'has a "text" but no "query". If this is a corpus file, give it as corpus'),
    ],
)
def test_each_mistake_is_named_with_its_line(line, what):
    write("c.jsonl", {"id": "a", "text": "A"}, {"id": "b", "text": "B"})
    write("s.jsonl", {"query": "good", "positives": ["b"]}, line, {"query": "good", "positives": ["a"]})
    assert f"s.jsonl:2: {what}" in refused("s.jsonl", corpus=["c.jsonl"], format="msa")
    got = read_training_set(["s.jsonl"], corpus=["c.jsonl"], format="msa", skip_bad=True)
    assert [sample.query for sample in got.samples] == ["good", "good"]
    assert set(got.corpus) == {"a", "b"}
    assert got.problems[0].startswith(f"s.jsonl:2: {what}")


def test_a_text_in_place_of_an_id_is_explained():
    write("s.jsonl", {"query": "q", "documents": ["A whole text"], "positives": [0]})
    message = refused("s.jsonl")
    assert 's.jsonl:1: no document has the id "A whole text". Give the corpus file or' in message
    assert '{"text": "..."}' in message


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not JSON"),
        ({"id": "b"}, 'has no "text"'),
        ({"text": "B"}, 'has no "id" or "_id"'),
        ({"id": True, "text": "B"}, '"id" is a boolean'),
        ({"id": "a", "text": "B"}, 'the id "a" has another text in c.jsonl:1'),
        ({"id": "b", "text": ""}, 'the document "b" has no text'),
        ({"id": "b", "title": 1, "text": "B"}, '"title" is a number'),
    ],
)
def test_mistakes_in_a_corpus(line, what):
    write("c.jsonl", {"id": "a", "text": "A"}, line, {"id": "a", "text": "A"})
    write("s.jsonl", {"query": "q", "positives": ["a"]})
    assert f"c.jsonl:2: {what}" in refused("s.jsonl", corpus=["c.jsonl"])


def test_the_report_counts_everything_and_shows_ten():
    write("a.jsonl", *["{"] * 8, {"query": "q", "positives": [], "documents": [{"text": "T"}]})
    write("b.jsonl", *[{"query": "q"}] * 5)
    message = refused("a.jsonl", "b.jsonl", format="msa")
    first, *lines, last = message.split("\n")
    assert first == "13 problems (8 × broken JSON, 5 × missing key):"
    assert [line.split(": ")[0].strip() for line in lines[:10]] == [
        *(f"a.jsonl:{n}" for n in range(1, 9)),
        "b.jsonl:1",
        "b.jsonl:2",
    ]
    assert lines[10:] == ["  And 3 more."]
    assert all(line.endswith(".") for line in lines)  # a command shows them in one line
    assert "set skip_bad to true" in last


def test_skipping_is_logged_once_and_listed(caplog):
    write("s.jsonl", "{", {"query": "q", "documents": [{"text": "T"}], "positives": [0]}, {"query": "r"})
    with caplog.at_level(logging.WARNING):
        got = read_training_set(["s.jsonl"], skip_bad=True)
    assert len(got) == 1
    assert [problem.split(": ")[0] for problem in got.problems] == ["s.jsonl:1", "s.jsonl:3"]
    (record,) = caplog.records
    assert "2 problems (1 × broken JSON, 1 × missing key)" in record.getMessage()


def test_keys_without_a_use_are_logged(caplog):
    write("s.jsonl", {"query": "q", "documents": [{"text": "T"}], "positives": [0], "anwser": "x"})
    with caplog.at_level(logging.WARNING):
        read_training_set(["s.jsonl"])
    assert '"anwser" (1)' in caplog.text


def test_documents_that_are_too_long():
    options = {"max_document_tokens": 2, "count_tokens": lambda text: len(text.split())}
    write("c.jsonl", {"id": "long", "text": "one two three"}, {"id": "short", "text": "one two"})
    write(
        "s.jsonl", {"query": "q", "positives": ["short"]}, {"query": "r", "positives": ["short"], "documents": ["long"]}
    )
    message = refused("s.jsonl", corpus=["c.jsonl"], **options)
    assert 'c.jsonl:1: the document "long" has 3 tokens, 2 are allowed' in message
    assert 's.jsonl:2: names the document "long", which cannot be used (c.jsonl:1)' in message
    got = read_training_set(["s.jsonl"], corpus=["c.jsonl"], skip_bad=True, **options)
    assert list(got.corpus) == ["short"]
    assert [sample.query for sample in got.samples] == ["q"]
    assert len(got.problems) == 2
    write(
        "c.jsonl", {"id": "long", "text": "one two three"}, {"id": "long", "text": "one"}, {"id": "short", "text": "a"}
    )
    assert 'c.jsonl:2: the id "long" has another text in c.jsonl:1' in refused("s.jsonl", corpus=["c.jsonl"], **options)


def test_nothing_to_learn_from_is_refused_even_when_skipping():
    write("empty.jsonl")
    write("bad.jsonl", "{")
    write("unanswerable.jsonl", {"query": "q", "positives": []})
    write("good.jsonl", {"query": "q", "documents": [{"text": "T"}], "positives": [0]})
    assert "empty.jsonl: holds no samples" in refused("empty.jsonl")
    assert "no samples to learn from" in refused("empty.jsonl", skip_bad=True)
    assert "bad.jsonl:1: not JSON" in refused("bad.jsonl", skip_bad=True)
    assert "no documents to learn from" in refused("unanswerable.jsonl")
    assert "no samples to learn from" in refused()
    assert "empty.jsonl: holds no samples" in refused("good.jsonl", "empty.jsonl")
    assert "empty.jsonl: holds no documents" in refused("good.jsonl", corpus=["empty.jsonl"])


def test_bad_arguments(tmp_path):
    write("s.jsonl", {"query": "q", "positives": []})
    assert "a.jsonl, b.jsonl do not exist" in refused("a.jsonl", "s.jsonl", "b.jsonl", skip_bad=True)
    assert "cannot be read (Is a directory)" in refused("s.jsonl", corpus=[tmp_path])
    with pytest.raises(TypeError, match="single path"):
        read_training_set("s.jsonl")
    with pytest.raises(ValueError, match="expected one of auto, msa"):
        read_training_set(["s.jsonl"], format="csv")
    with pytest.raises(ValueError, match="count_tokens"):
        read_training_set(["s.jsonl"], max_document_tokens=3)


def test_a_file_in_utf16_is_one_problem():
    write("s.jsonl", "\ufeff{}\n{}\n{}".encode("utf-16-le"))
    assert refused("s.jsonl").count("iconv") == 1


# writing


def small_set():
    return TrainingSet(
        corpus={"a": "A\r\n\x00\u2028 ü", "b/1": " B ", "c": "C"},
        samples=[
            Sample(query="q\n?", positives=("a", "b/1"), hops=(("b/1",), ("a",)), answer="", source="s"),
            Sample(query="r", documents=("c", "a")),
        ],
        problems=["x:1: gone"],
    )


def test_a_written_set_is_read_back(tmp_path):
    written = small_set()
    write_training_set(written, tmp_path / "new" / "set")
    got = read_training_set(["new/set"])
    assert (got.corpus, got.samples, got.problems) == (written.corpus, written.samples, [])
    assert list(got.corpus) == list(written.corpus)
    write_training_set(got, "new/set")
    assert sorted(os.listdir("new/set")) == ["corpus.jsonl", "samples.jsonl"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"corpus": {}}, "unknown id"),
        ({"samples": []}, "no samples"),
        ({"samples": [Sample(query="q", positives=("z",))]}, 'samples:1: no document has the id "z"'),
        ({"samples": [Sample(query="q", positives=("a", "a"))]}, 'samples:1: "positives" names "a" twice'),
        ({"corpus": {"a": "A", "b/1": "", "c": "C"}}, 'corpus:2: the document "b/1" has no text'),
    ],
)
def test_a_set_that_could_not_be_read_back_is_not_written(change, what):
    with pytest.raises(TrainingDataError) as caught:
        write_training_set(TrainingSet(**{**vars(small_set()), **change}), "set")
    assert what in str(caught.value)
    assert not os.path.exists("set")


def test_a_failed_write_leaves_the_old_set(monkeypatch):
    write_training_set(small_set(), "set")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_training_set(TrainingSet({"z": "Z"}, [Sample(query="q")]), "set")
    assert sorted(os.listdir("set")) == ["corpus.jsonl", "samples.jsonl"]
    assert read_training_set(["set"]).corpus == small_set().corpus
