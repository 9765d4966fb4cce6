import json
import os
from itertools import pairwise

import pytest
from set_files import in_own_folder, write  # noqa: F401 (a fixture)
from set_files import refused_questions as refused

from msa.evaluation.metrics.longbench import TASKS
from msa.evaluation.sets import (
    ANSWERABLE,
    CONTEXT,
    read_question_set,
    separate,
    write_hypotheses,
)
from msa.evaluation.sets.longbench import INSTRUCTIONS

# LongBench

LONGBENCH = {
    "input": "Who {was} it?",
    "context": "First paragraph.\n\nSecond paragraph, which is longer.\n\nThird.",
    "answers": ["He", "he"],
    "length": 12,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "abc",
}


def test_longbench_knows_how_to_ask_every_data_set():
    assert INSTRUCTIONS.keys() == TASKS.keys()
    no_input = {name for name, text in INSTRUCTIONS.items() if "{input}" not in text}
    assert no_input == {"gov_report", "multi_news", "vcsum", "passage_count", "lcc"}


def test_longbench():
    trec = {**LONGBENCH, "dataset": "trec_e", "all_classes": ["A", "B"], "answers": ["A"], "_id": "def"}
    write("hotpotqa.jsonl", LONGBENCH, trec)
    got = read_question_set("hotpotqa.jsonl", max_document_chars=40)
    first, second = got.questions
    assert list(got.documents.values())[:3] == ["First paragraph.", "Second paragraph, which is longer.", "Third."]
    assert first.id == "hotpotqa/abc"
    assert first.metadata[CONTEXT] == ["hotpotqa/abc#1", "hotpotqa/abc#2", "hotpotqa/abc#3"]
    assert (first.task, first.max_new_tokens, first.answers) == ("hotpotqa", 32, ("He", "he"))
    assert first.question.endswith("Question: Who {was} it?\nAnswer:")
    assert (first.metadata["length"], first.metadata["language"]) == (12, "en")
    assert (second.task, second.max_new_tokens, second.metadata["all_classes"]) == ("trec", 64, ["A", "B"])
    assert "at most 40 characters" in got.notes[0]
    assert "another test than the published one" in got.notes[1]
    json.dumps([question.metadata for question in got.questions])


def test_a_context_is_cut_without_losing_or_repeating_anything():
    context = "\n\n".join(f"Paragraph {number}: " + "word " * (number % 50) for number in range(1, 200))
    write("x.jsonl", {**LONGBENCH, "context": context}, {**LONGBENCH, "context": "x" * 1_000, "_id": "long"})
    got = read_question_set("x.jsonl", max_document_chars=300)
    first, second = ([got.documents[name] for name in question.metadata[CONTEXT]] for question in got.questions)
    assert "".join("".join(first).split()) == "".join(context.split())
    assert max(map(len, first)) <= 300
    assert min(len(one) + len(other) for one, other in pairwise(first)) > 298  # as many paragraphs as fit
    assert all(piece.startswith("Paragraph") for piece in first)
    assert [len(piece) for piece in second] == [300, 300, 300, 100]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dataset": "squad"}, 'LongBench has no "squad"'),
        ({"dataset": "trec"}, '"all_classes" is empty'),
        ({"context": " \n"}, "the context has no text"),
        ({"context": None}, '"context" is null'),
        ({"answers": []}, "has no reference answer"),
        ({"all_classes": [1]}, '"all_classes" holds a number'),
        ({"_id": None}, '"_id" is null'),
    ],
)
def test_mistakes_in_longbench(change, what):
    write("x.jsonl", LONGBENCH, {**LONGBENCH, "_id": "2", **change})
    message = refused("x.jsonl")
    assert "x.jsonl:2: " in message
    assert what in message
    assert len(read_question_set("x.jsonl", skip_bad=True).questions) == 1


def test_longbench_v2():
    record = {
        "_id": "66f",
        "domain": "D",
        "sub_domain": "S",
        "difficulty": "easy",
        "length": "short",
        "question": "Which?",
        **{f"choice_{letter}": f"choice {letter}" for letter in "ABCD"},
        "answer": "C",
        "context": "Some text.",
    }
    write("data.json", json.dumps([record, {**record, "_id": "2", "answer": "E"}]))
    assert 'data.json:1: item 2: "answer" is "E"' in refused("data.json")
    got = read_question_set("data.json", skip_bad=True)
    (question,) = got.questions
    assert (question.id, question.answers, question.max_new_tokens) == ("66f", ("C",), 128)
    assert "question: Which?\nChoices:\n(A) choice A\n(B) choice B\n(C) choice C\n(D) choice D\n" in question.question
    assert question.metadata["difficulty"] == "easy"
    assert got.documents == {"66f#1": "Some text."}


# LongMemEval


def memory_question(name, sessions, **change):
    return {
        "question_id": name,
        "question_type": "single-session-user",
        "question": "Where?",
        "answer": 3,
        "question_date": "2023/05/30 (Tue) 23:40",
        "haystack_session_ids": [session for session, _ in sessions],
        "haystack_dates": [f"2023/05/{day + 1:02d}" for day in range(len(sessions))],
        "haystack_sessions": [
            [{"role": "user", "content": text, "has_answer": True}, {"role": "assistant", "content": "Yes.\nNo."}]
            if text
            else []
            for _, text in sessions
        ],
        "answer_session_ids": ["s1"],
        **change,
    }


def test_longmemeval():
    records = [
        memory_question("q1", [("s1", "Hello"), ("s2", ""), ("s3", "Bye")]),
        memory_question("q2_abs", [("s1", "Hello"), ("s3", "Another")], answer="You never said."),
    ]
    write("longmemeval_s.json", json.dumps(records, indent=1))
    got = read_question_set("longmemeval_s.json")
    assert got.documents["q1/s1"] == "Date: 2023/05/01\nuser: Hello\nassistant: Yes.\nNo."
    assert list(got.documents) == ["q1/s1", "q1/s3", "q2_abs/s1", "q2_abs/s3"]
    first, second = got.questions
    assert first.question == "Current Date: 2023/05/30 (Tue) 23:40\nQuestion: Where?"
    assert (first.id, first.answers, first.positives, first.task) == ("q1", ("3",), ("q1/s1",), "single-session-user")
    assert (second.answers, second.positives, second.metadata[ANSWERABLE]) == (("You never said.",), (), False)
    assert ANSWERABLE not in first.metadata
    assert "1 sessions without words are left out" in got.notes


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"haystack_dates": []}, "has 2 session ids, 0 dates and 2 sessions"),
        ({"answer_session_ids": ["lost"]}, 'no document has the id "q2/lost"'),
        ({"answer": ""}, "a reference answer is empty"),
        ({"haystack_sessions": [[], "x"]}, '"haystack_sessions" is a string'),
        ({"haystack_sessions": [[{"role": "user"}], []]}, 'has no "content"'),
        ({"haystack_session_ids": ["s1", "s1"]}, "is there twice, with two texts"),
        ({"question": ""}, "the question is empty"),
    ],
)
def test_mistakes_in_longmemeval(change, what):
    sessions = [("s1", "A"), ("s2", "B")]
    write("m.json", json.dumps([memory_question("q1", sessions), memory_question("q2", sessions, **change)]))
    message = refused("m.json")
    assert "m.json:1: item 2: " in message
    assert what in message


def test_a_record_without_its_history():
    record = memory_question("q1", [("s1", "A")])
    del record["haystack_dates"]
    write("m.json", json.dumps([record]))
    assert 'has no "haystack_dates"' in refused("m.json", "longmemeval")


def test_hypotheses():
    write("m.json", json.dumps([memory_question(name, [("s1", "A")]) for name in ("q1", "q2")]))
    got = read_question_set("m.json")
    write_hypotheses("out.jsonl", got, {"q2": "zwei\nlines", "q1": ""})
    with open("out.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert lines == [{"question_id": "q1", "hypothesis": ""}, {"question_id": "q2", "hypothesis": "zwei\nlines"}]
    for answers in ({"q1": "x"}, {"q1": "x", "q2": "x", "q3": "x"}):
        with pytest.raises(ValueError, match="one answer to each of 2 questions"):
            write_hypotheses("other.jsonl", got, answers)
    assert not os.path.exists("other.jsonl")


# questions with documents of their own


def test_separate():
    write("m.json", json.dumps([memory_question(name, [("s1", "A"), ("s2", name)]) for name in ("q1", "q2")]))
    whole = read_question_set("m.json")
    one, two = separate(whole)
    assert (one.name, two.name) == ("m/q1", "m/q2")
    assert list(one.documents) == ["q1/s1", "q1/s2"]
    assert list(two.documents) == ["q2/s1", "q2/s2"]
    assert one.questions + two.questions == whole.questions
    assert one.notes[-1] == "each question is asked over its own documents only"
    assert not any("another test than the published one" in note for note in one.notes)


def test_separate_leaves_a_shared_memory_whole():
    write("q.jsonl", *[{"question": name, "answers": ["x"], "documents": ["D"]} for name in "ab"])
    whole = read_question_set("q.jsonl")
    assert list(separate(whole)) == [whole]
