"""Judged records: kept as they come, nothing judged twice, a failing judge never a score."""

from dataclasses import replace

import pytest
from judge_endpoint import judge_endpoint

from msa.errors import EvaluationError, JudgeError
from msa.evaluation.judge import JudgeSettings
from msa.evaluation.judging import judge_records
from msa.evaluation.records import Record


def record(name, text, exact, answers=("Paris",)):
    return Record(
        answerer="msa",
        set="capitals",
        size_tokens=10,
        question_id=name,
        task="",
        question=f"What is the capital ({name})?",
        answers=answers,
        positives=(),
        text=text,
        scores={"exact_match": exact},
    )


RECORDS = [
    record("a", "Paris", 1.0),
    record("b", "Rome", 0.0),
    record("c", "It is Paris.", 0.0),
    record("d", "?", 0.0, answers=()),
]


def reply(prompt, server):
    """5 to answers that name Paris and 0 to others; prose once ``server.broken`` says so for an answer."""
    answer = next(r.text for r in server.answers if r.question in prompt)
    return "I would rather not say." if answer in server.broken else "5" if "Paris" in answer else "0"


@pytest.fixture
def judge():
    with judge_endpoint(reply, broken=set(), answers=RECORDS) as server:
        yield server


def settings(server, **changes):
    return JudgeSettings(f"http://127.0.0.1:{server.server_address[1]}/v1", "judge", max_retries=0, **changes)


def test_answers_are_judged_once_and_compared_with_exact_match(judge, tmp_path):
    path = tmp_path / "judge.jsonl"
    judged, stamp = judge_records(RECORDS, path, settings(judge))
    assert [r.scores.get("judge") for r in judged] == [1.0, 0.0, 1.0, None]
    assert len(judge.asked) == 3
    agreement = stamp["agreement_with_exact_match"]
    assert (agreement["count"], agreement["share"]) == (3, pytest.approx(2 / 3))
    assert judge_records(RECORDS, path, settings(judge)) == (judged, stamp)
    assert len(judge.asked) == 3


def test_prose_stops_the_run_and_loses_nothing(judge, tmp_path):
    path = tmp_path / "judge.jsonl"
    judge.broken = {"Rome"}
    with pytest.raises(JudgeError, match="2 answers are judged and kept"):
        judge_records(RECORDS, path, settings(judge, concurrency=1))
    judge.broken = set()
    judged, _ = judge_records(RECORDS, path, settings(judge, concurrency=1))
    assert [r.scores.get("judge") for r in judged] == [1.0, 0.0, 1.0, None]
    assert len(judge.asked) == 4


def test_what_a_judge_fails_on_is_named_and_what_it_judged_is_kept(judge, tmp_path):
    path = tmp_path / "judge.jsonl"
    judge.broken = {"Rome", "It is Paris."}
    with pytest.raises(JudgeError) as caught:
        judge_records(RECORDS, path, settings(judge))
    message = str(caught.value)
    assert "I would rather not say" in message
    assert "Of 3 answers 2 are not judged: it failed on " in message
    for name in ("b", "c"):
        assert f"'{name}' of capitals (msa, 10 tokens)" in message
    assert f"1 answers are judged and kept in {path}; run it again to go on" in message


def test_a_judge_that_refuses_is_asked_no_more_and_the_error_says_what_is_left(judge, tmp_path):
    path = tmp_path / "judge.jsonl"
    judge_records(RECORDS[:1], path, settings(judge))
    judge.status = 401
    records = [*RECORDS[:1], *(record(f"n{number}", "Rome", 0.0) for number in range(100))]
    judge.answers = records
    with pytest.raises(
        JudgeError, match=r"HTTP 401.* Of 100 answers 100 are not judged: it failed on 'n0' of .*run"
    ) as e:
        judge_records(records, path, settings(judge, concurrency=1))
    assert "'n1'" not in str(e.value)
    assert "1 answers are judged and kept" in str(e.value)
    assert len(judge.asked) == 2


def test_no_more_than_ten_answers_are_named(judge, tmp_path):
    judge.answers = [record(f"n{number}", "Rome", 0.0) for number in range(13)]
    judge.broken = {"Rome"}
    with pytest.raises(JudgeError, match="and 3 more") as caught:
        judge_records(judge.answers, tmp_path / "judge.jsonl", settings(judge))
    assert str(caught.value).count("of capitals") == 10


def test_another_answer_to_the_same_question_is_judged_anew(judge, tmp_path):
    path = tmp_path / "judge.jsonl"
    right, wrong = record("a", "Paris", 1.0), replace(RECORDS[1], question_id="a", question=RECORDS[0].question)
    assert right.key == wrong.key
    for given, score, asked in ((right, 1.0, 1), (wrong, 0.0, 2), (right, 1.0, 2), (wrong, 0.0, 2)):
        judge.answers = [given]
        (judged,), _ = judge_records([given], path, settings(judge))
        assert (judged.scores["judge"], len(judge.asked)) == (score, asked)
    other = replace(right, answers=("Paris", "Paname"))
    judge_records([other], path, settings(judge))
    assert len(judge.asked) == 3


def test_a_torn_line_is_judged_again(judge, tmp_path):
    path = tmp_path / "judge.jsonl"
    judged, _ = judge_records(RECORDS, path, settings(judge))
    path.write_bytes(path.read_bytes()[:-5])
    assert judge_records(RECORDS, path, settings(judge))[0] == judged
    assert len(judge.asked) == 4


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "{", "line 1"),
        (0, '{"schema": 1}', "line 1"),
        (1, '{"key": 1}', "line 2"),
        (1, '{"score": 3}', "line 2"),
        (1, '{"key": ["msa", "capitals", [], "a"], "score": 3}', "line 2"),
        (1, '{"key": ["msa", "capitals", 10, "a"], "score": 3}', r"line 2, is damaged \(it does not say which answer"),
    ],
)
def test_damage_is_named(judge, tmp_path, line, text, message):
    path = tmp_path / "judge.jsonl"
    judge_records(RECORDS, path, settings(judge))
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(EvaluationError, match=f"{message}.*remove it to judge anew"):
        judge_records(RECORDS, path, settings(judge))


@pytest.mark.parametrize("content", ["{", '{"judge": {}'])
def test_a_file_that_ends_within_its_first_line_has_not_begun(judge, tmp_path, content):
    path, whole = tmp_path / "judge.jsonl", tmp_path / "whole.jsonl"
    path.write_text(content)
    assert judge_records(RECORDS, path, settings(judge, concurrency=1)) == judge_records(
        RECORDS, whole, settings(judge, concurrency=1)
    )
    assert path.read_bytes() == whole.read_bytes()


def test_another_rubric_is_not_mixed_in(judge, tmp_path):
    path = tmp_path / "judge.jsonl"
    judge_records(RECORDS, path, settings(judge))
    with pytest.raises(EvaluationError, match="another judge or rubric"):
        judge_records(RECORDS, path, settings(judge, rubric="{question} {answers} {prediction}"))
