import json

from set_files import in_own_folder, write  # noqa: F401 (a fixture)
from set_files import refused_questions as refused

from msa.evaluation.sets import (
    ANSWERABLE,
    read_question_set,
)
from msa.evaluation.types import Question


def write_beir(*qrels, header="query-id\tcorpus-id\tscore"):
    write("nq/corpus.jsonl", *({"_id": name, "title": "", "text": name.upper()} for name in "abc"))
    write(
        "nq/queries.jsonl", {"_id": "1", "text": "same"}, {"_id": "2", "text": "same"}, {"_id": "3", "text": "unused"}
    )
    write("nq/qrels/test.tsv", header, *qrels)


def test_beir():
    write_beir("2\ta\t1", "1\tc\t0", "1\tb\t1", "2\tb\t1")
    got = read_question_set("nq")
    assert (got.name, list(got.documents)) == ("nq", ["nq/a", "nq/b", "nq/c"])
    # two queries of equal words keep their own ids
    assert got.questions == (
        Question(id="nq/2", question="same", answers=(), positives=("nq/a", "nq/b"), task="nq"),
        Question(id="nq/1", question="same", answers=(), positives=("nq/b",), task="nq"),
    )
    assert got.notes == ("BEIR, split test: no reference answers, so only retrieval is scored",)


def test_graded_judgements_of_beir():
    write_beir("1\ta\t2", "1\tb\t1", "1\tc\t0")
    assert read_question_set("nq").questions[0].metadata == {"relevance": {"nq/a": 2.0, "nq/b": 1.0, "nq/c": 0.0}}


def test_mistakes_in_beir():
    write_beir("1\ta\t1", "2\ta\tgood", "3\tzz\t1")
    message = refused("nq")
    assert 'nq/qrels/test.tsv:3: the score is "good"' in message
    assert 'nq/qrels/test.tsv:4: no document has the id "nq/zz"' in message
    got = read_question_set("nq", skip_bad=True)
    assert [question.id for question in got.questions] == ["nq/1"]
    assert "does not exist; the splits are: test" in refused("nq", split="dev")


def paragraph(name, supporting, idx=None):
    fields = {"title": name.upper(), "text": f"text of {name}", "is_supporting": supporting}
    return fields if idx is None else {**fields, "idx": idx}


def write_hipporag(name, *records):
    corpus = [{"title": title.upper(), "text": f"text of {title}"} for title in "abc"]
    write(f"h/{name}_corpus.json", json.dumps(corpus))
    write(f"h/{name}.json", json.dumps(list(records)))


def test_hipporag():
    steps = [
        {"question": "who?", "paragraph_support_idx": 1},
        {"question": "where is #1?", "paragraph_support_idx": 0},
    ]
    write_hipporag(
        "musique",
        {
            "id": "2hop__1",
            "question": "q",
            "answer": ["x", "y"],
            "answer_aliases": ["z", "x", ""],
            "paragraphs": [paragraph("a", True, 0), paragraph("b", True, 1), paragraph("c", False, 2)],
            "question_decomposition": steps,
        },
        {"question": "r", "answer": "x", "answerable": False, "paragraphs": [paragraph("c", True)]},
    )
    write_hipporag(
        "popqa",
        {
            "id": 7,
            "question": "s",
            "obj": "o",
            "possible_answers": '["o", "p"]',
            "o_wiki_title": "O",
            "o_aliases": "[broken",
            "paragraphs": [paragraph("a", True)],
        },
    )
    got = read_question_set("h")
    ids = {text[0].lower(): name for name, text in got.documents.items()}
    first, second, third = got.questions
    assert (first.id, first.answers, first.task) == ("musique/2hop__1", ("x", "y", "z"), "musique")
    assert set(first.positives) == {ids["a"], ids["b"]}
    assert first.hops == ((ids["b"],), (ids["a"],))
    assert (second.id, second.answers, second.metadata) == ("musique/1.2", ("x",), {ANSWERABLE: False})
    assert (third.id, third.answers) == ("popqa/7", ("o", "p", "O", "[broken"))


def test_one_set_of_a_hipporag_folder():
    write_hipporag("good", {"question": "q", "answer": "x", "paragraphs": [paragraph("a", True)]})
    write_hipporag("bad", {"question": "q", "paragraphs": "none"}, {"question": "q"})
    write("h/bad_corpus.json", json.dumps([{"title": "other", "text": "other"}]))
    got = read_question_set("h/good.json")
    assert [question.id for question in got.questions] == ["good/1.1"]
    assert len(got.documents) == 3
    assert "h/bad.json:1: item 1" in refused("h")


def test_an_answer_that_hipporag_lacks():
    write_hipporag("x", {"question": "q", "paragraphs": [paragraph("a", True)]})
    assert 'h/x.json:1: item 1: has no "answer" or "gold_ans" or "reference" or "obj"' in refused("h")
