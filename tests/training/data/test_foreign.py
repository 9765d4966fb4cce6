import json
import os

import pytest
from set_files import in_own_folder, write  # noqa: F401 (a fixture)
from set_files import refused_samples as refused

from msa.training.data.formats import read_training_set
from msa.training.data.samples import Sample


def texts(training_set, names):
    return [training_set.corpus[name] for name in names]


# sentence-transformers


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("p.jsonl", [{"anchor": "q", "positive": "P"}, {"anchor": "r", "positive": "P", "negative": "N"}]),
        ("p.jsonl", [["q", "P"], ["r", "P", "N"]]),
        ("p.json", [["q", "P"], ["r", "P", "N"]]),
        ("p.json", [[["q", "P"], ["r", "P", "N"]]]),
        (
            "p.json",
            ["[", '{"query": "q", "positive": "P"},', '{"sentence1": "r", "sentence2": "P", "negative_1": "N"}]'],
        ),
        ("p.jsonl", [{"question": "q", "positive": "P"}, {"query": "r", "positive": "P", "negatives": ["N"]}]),
    ],
)
def test_pairs_and_triplets(name, lines):
    write(name, *lines)
    got = read_training_set([name])
    assert list(got.corpus.values()) == ["P", "N"]
    assert [(s.query, texts(got, s.positives), texts(got, s.documents), s.source) for s in got.samples] == [
        ("q", ["P"], [], "p"),
        ("r", ["P"], ["N"], "p"),
    ]


def test_several_negatives():
    write("p.jsonl", {"anchor": "q", "positive": "P", "negative_1": "M", "negative_2": "N"})
    got = read_training_set(["p.jsonl"])
    assert texts(got, got.samples[0].documents) == ["M", "N"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (["q"], 'expected ["anchor", "positive"], found a list of 1'),
        (["q", 1], '"positive" is a number'),
        ({"anchor": "q"}, 'has no "positive" or "sentence2"'),
        ({"anchor": "q", "positive": ["P"]}, '"positive" is a list'),
        ({"anchor": "q", "positive": "P", "negative": None}, '"negative" holds null'),
        ({"anchor": "q", "positive": "P", "negative": "P"}, "the positive is also a negative"),
        ({"sentence1": "q", "sentence2": "P", "score": 0.1}, 'has a "score", so the two texts may not belong together'),
    ],
)
def test_mistakes_in_pairs(line, what):
    write("p.jsonl", {"anchor": "q", "positive": "P"}, line)
    assert f"p.jsonl:2: {what}" in refused("p.jsonl")
    assert len(read_training_set(["p.jsonl"], skip_bad=True)) == 1


def test_tables():
    write("t.tsv", "query\tpositive\tnegative", 'q\t5" nails\t"a ""quoted"" cell"', '"r\tP\tN\r')
    write("t.csv", "positive,anchor", '"two\nlines, and a ""quote""",q', "P,r")
    got = read_training_set(["t.tsv"])
    assert list(got.corpus.values()) == ['5" nails', 'a "quoted" cell', "P", "N"]
    assert [sample.query for sample in got.samples] == ["q", '"r']
    got = read_training_set(["t.csv"])
    assert list(got.corpus.values()) == ['two\nlines, and a "quote"', "P"]


def test_mistakes_in_tables():
    write("a.tsv", "anchor\tpositive", "q", b"q\t\xff", "q\tP\tN\tO", "q\tP", "q\t ")
    write("b.csv", "anchor,positive", "q", '"two\nlines",P', b"\xff,P", '"q"x,P', "r,P", '"open,P', "swallowed,P")
    write("c.csv", "first question,first answer", "q,P")
    write("d.tsv")
    message = refused("a.tsv", "b.csv", "c.csv", "d.tsv")
    for what in (
        "a.tsv:2: has 1 cells, the header has 2",
        "a.tsv:3: byte 3 of the line is not UTF-8",
        "a.tsv:4: has 4 cells",
        'a.tsv:6: the document "sha256-36a9e7f1c95b82ff" has no text',
        "b.csv:2: has 1 cells",
        "b.csv:5: the row is not UTF-8",
        "b.csv:6: not CSV",
        "b.csv:8: not CSV (unexpected end of data)",
    ):
        assert what in message
    got = read_training_set(["a.tsv", "b.csv", "c.csv", "d.tsv"], skip_bad=True)
    assert [sample.query for sample in got.samples] == ["q", "two\nlines", "r"]
    assert any(
        problem.startswith('c.csv:1: the header is "first question", "first answer"') for problem in got.problems
    )
    assert "d.tsv: holds no pairs that can be read" in got.problems


# BEIR


def beir(name="facts", qrels=("query-id\tcorpus-id\tscore", "1\ta\t1", "1\tb\t0", "2\tb\t2"), split="train"):
    write(
        f"{name}/corpus.jsonl",
        {"_id": "a", "title": "T", "text": "A"},
        {"_id": "b", "title": "", "text": "B", "metadata": {}},
    )
    write(
        f"{name}/queries.jsonl", {"_id": "1", "text": "one"}, {"_id": "2", "text": "two"}, {"_id": "3", "text": "three"}
    )
    write(f"{name}/qrels/{split}.tsv", *qrels)


def test_a_beir_folder():
    beir()
    got = read_training_set(["facts"])
    assert got.corpus == {"facts/a": "T\nA", "facts/b": "B"}
    assert got.samples == [
        Sample(query="one", positives=("facts/a",), documents=("facts/b",), source="facts"),
        Sample(query="two", positives=("facts/b",), source="facts"),
    ]


def test_two_beir_folders_do_not_share_ids():
    beir("x")
    beir("y")
    assert len(read_training_set(["x", "y"]).corpus) == 4


def test_the_split_of_a_beir_folder():
    beir(split="test", qrels=["3\ta\t1"])
    assert "facts/qrels/train.tsv: does not exist; the splits are: test" in refused("facts")
    assert [sample.query for sample in read_training_set(["facts"], split="test").samples] == ["three"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("1\tb", "has 2 cells"),
        ("1\tb\tx", 'the score is "x"'),
        ("9\tb\t1", 'no query has the id "9"'),
        ("1\tz\t1", 'no document has the id "facts/z"'),
        ("1\ta\t0", '"a" has another score for this query on line 2'),
    ],
)
def test_mistakes_in_judgements(line, what):
    beir(qrels=["query-id\tcorpus-id\tscore", "1\ta\t1", line, "2\tb\t1"])
    assert f"facts/qrels/train.tsv:3: {what}" in refused("facts")
    got = read_training_set(["facts"], skip_bad=True)
    assert [sample.query for sample in got.samples] == (["one", "two"] if line.startswith("9") else ["two"])
    assert len(got.problems) == 1


def test_a_query_without_a_relevant_document_is_a_problem():
    beir(qrels=["1\ta\t0", "2\tb\t1"])
    assert 'facts/qrels/train.tsv:1: no document of the query "one" has a score above 0' in refused("facts")


# HippoRAG


def paragraph(index, text, supporting, key="paragraph_text"):
    return {"idx": index, "title": f"T{index}", key: text, "is_supporting": supporting}


def test_a_folder_with_questions_in_hops():
    passages = [("T0", "zero"), ("T1", "one"), ("T2", "two"), ("T3", "three")]
    write(
        "h/m_corpus.json", json.dumps([{"title": title, "text": text, "idx": 1} for title, text in passages], indent=1)
    )
    record = {
        "id": "3hop",
        "question": "q",
        "answer": "x",
        "paragraphs": [
            paragraph(0, "zero", True),
            paragraph(1, "one", True),
            paragraph(2, "two", False),
            paragraph(3, "three", True),
        ],
        "question_decomposition": [
            {"question": "who", "paragraph_support_idx": 3},
            {"question": "what", "paragraph_support_idx": 1},
            {"question": "#1 of #2", "paragraph_support_idx": 0},
        ],
    }
    broken_order = {**record, "question_decomposition": record["question_decomposition"][:2]}
    unordered = {"question": "r", "answer": ["y", "z"], "paragraphs": [paragraph(2, "two", True, "text")]}
    write("h/m.json", json.dumps([record, broken_order, unordered], indent=1))
    got = read_training_set(["h"])
    assert list(got.corpus.values()) == [f"{title}\n{text}" for title, text in passages]
    zero, one, two, three = got.corpus
    first, second, third = got.samples
    assert first == Sample(
        query="q", positives=(zero, one, three), documents=(two,), answer="x", hops=((three, one), (zero,)), source="m"
    )
    assert second.hops == ()
    assert third == Sample(query="r", positives=(two,), answer="y", source="m")


def test_a_folder_with_supporting_facts():
    write("h/hotpot_corpus.json", json.dumps([{"title": "A", "text": "a. b."}, {"title": "B", "text": "c."}]))
    context = [["A", ["a.", "b."]], ["B", ["c."]]]
    write(
        "h/hotpot.json",
        json.dumps([{"question": "q", "answer": "x", "supporting_facts": [["A", 0], ["A", 1]], "context": context}]),
    )
    got = read_training_set(["h"])
    (sample,) = got.samples
    assert texts(got, sample.positives) == ["A\na. b."]
    assert texts(got, sample.documents) == ["B\nc."]
    assert sample.hops == ()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"question": None}, '"question" is null'),
        ({"answer": [1]}, '"answer" is a number'),
        ({"paragraphs": [{"title": "A", "text": "a"}]}, 'has no "is_supporting"'),
        ({"paragraphs": [{"title": "A", "text": "a", "is_supporting": 1}]}, '"is_supporting" is a number'),
        (
            {"paragraphs": [{"title": "A", "text": "z", "is_supporting": True}]},
            'the paragraph "A\\nz" is not in m_corpus.json',
        ),
        ({"paragraphs": 3}, '"paragraphs" is a number'),
        ({"paragraphs": ["a"]}, "expected an object such as"),
    ],
)
def test_mistakes_in_questions(change, what):
    write("h/m_corpus.json", json.dumps([{"title": "A", "text": "a"}]))
    good = {"question": "q", "answer": "x", "paragraphs": [{"title": "A", "text": "a", "is_supporting": True}]}
    write("h/m.json", "[", json.dumps(good) + ",", json.dumps(good | change), "]")
    assert f"h/m.json:3: item 2: {what}" in refused("h")


@pytest.mark.parametrize(
    ("facts", "context", "what"),
    [
        ([["A", 0]], None, '"context" is null'),
        ([["A", 0]], [["B", ["b"]]], '"supporting_facts" names "A", which is not in "context"'),
        ([["A"]], [["A", ["a"]]], '"supporting_facts" and "context" must be lists of [title, ...] pairs'),
        ([["A", 0]], [["A", "a"]], '"context" is a string'),
        ([["A", 0]], [["A", [1]]], '"context" holds a sentence that is no string'),
    ],
)
def test_mistakes_in_supporting_facts(facts, context, what):
    write("h/m_corpus.json", json.dumps([{"title": "A", "text": "a"}]))
    write("h/m.json", json.dumps([{"question": "q", "supporting_facts": facts, "context": context}]))
    assert f"h/m.json:1: item 1: {what}" in refused("h")


def test_mistakes_around_a_folder(tmp_path):
    os.makedirs("nothing")
    write("h/m_corpus.json", json.dumps([{"title": "A", "text": "a"}]))
    write("s.jsonl", {"query": "q", "documents": [{"text": "T"}], "positives": [0]})
    assert "h/m.json: does not exist, but its corpus does" in refused("h")
    write("h/m.json", "[]")
    assert "h/m.json: holds no questions" in refused("h")
    write("h/m.json", '[{"question": "q"}]', "")
    assert 'has no "paragraphs" or "supporting_facts"' in refused("h")
    write("h/m.json", '[{"question": "q"} {}]')
    assert "no comma follows it; the rest is not read" in refused("h")
    write("h/m.json", "[{]")
    assert "the rest of the file is not read" in refused("h")
    write("h/m.json", "[", b"\xff]")
    assert "h/m.json:2: the line is not UTF-8" in refused("h")
    write("h/m.json", "[] x")
    assert "more text follows the end of the list" in refused("h")
    assert "nothing: holds neither samples.jsonl" in refused("nothing")
    assert "nothing: holds no samples.jsonl" in refused("nothing", format="msa")
    assert "nothing: holds no file <name>_corpus.json" in refused("nothing", format="hipporag")
    assert "nothing/corpus.jsonl: does not exist" in refused("nothing", format="beir")
    assert "nothing: is a folder" in refused("nothing", format="sentence-transformers")
    assert "s.jsonl: is a file; beir is read from a folder" in refused("s.jsonl", format="beir")
