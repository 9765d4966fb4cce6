"""Results files: resumed exactly, never repeated, never silently wrong."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest

from msa.errors import EvaluationError
from msa.evaluation.environment import environment
from msa.evaluation.records import RecordLog, read_records, read_stretches
from msa.evaluation.runner import check_questions, run_questions
from msa.evaluation.types import Prediction, Question, QuestionSet

SETTINGS = {"task": "needles", "sizes": [1, 2], "seed": 0}
SET = QuestionSet(
    name="letters",
    documents={"a": "alpha", "b": "beta"},
    questions=tuple(Question(id=str(i), question=f"q{i}", answers=("alpha",), positives=("a",)) for i in range(4)),
)


class Echo:
    """Answers with the first document; stops working after so many questions."""

    name = "echo"

    def __init__(self, works=99):
        self.documents, self.asked, self.works = {}, [], works

    def prepare(self, documents):
        self.documents.update(documents)

    def settle(self):
        """Nothing depends on all documents."""

    def answer(self, question, max_new_tokens):
        if len(self.asked) == self.works:
            raise KeyboardInterrupt
        self.asked.append(question.id)
        return Prediction(text=self.documents["a"], retrieved=("a",), seconds=0.5, tokens_seen=max_new_tokens)

    def resident_bytes(self):
        return sum(map(len, self.documents.values()))


def score(question, prediction):
    return {"right": float(prediction.text in question.answers)}


def run(log, answerer, **options):
    return run_questions(answerer, SET, log, score, size_tokens=9, **options)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordLog(path, SETTINGS) as log, pytest.raises(KeyboardInterrupt):
        run(log, Echo(works=2))
    second = Echo()
    with RecordLog(path, SETTINGS) as log:
        records = run(log, second)
    assert second.asked == ["2", "3"]
    with RecordLog(path, SETTINGS) as log:
        assert run(log, Echo(works=0)) == records
    settings, read = read_records(path)
    assert (settings, read) == (SETTINGS, records)
    assert [record.scores["right"] for record in read] == [1.0] * 4
    assert read[0].resident_bytes == len("alphabeta")


def test_finished_questions_do_not_even_encode_the_documents(tmp_path):
    with RecordLog(tmp_path / "r.jsonl", SETTINGS) as log:
        run(log, Echo())
        idle = Echo()
        run(log, idle)
        assert not idle.documents


def stamp(date):
    """An environment."""
    made = {"date": date, "machine": "m", "threads": 2, "device": "cpu", "versions": {}, "commit": "", "command": "c"}
    return lambda device=None: made


def stretches_of(path):
    return [(dict(one.environment), sorted(key[-1] for key in one.keys)) for one in read_stretches(path)]


def test_every_session_that_measures_says_where_and_when(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    for date, works in (("monday", 1), ("tuesday", 0), ("wednesday", 9), ("thursday", 9)):
        monkeypatch.setattr("msa.evaluation.records.environment", stamp(date))
        with RecordLog(path, SETTINGS) as log, suppress(KeyboardInterrupt):
            run(log, Echo(works=works))
    assert stretches_of(path) == [(stamp("monday")(), ["0"]), (stamp("wednesday")(), ["1", "2", "3"])]
    assert [record.question_id for record in read_records(path)[1]] == ["0", "1", "2", "3"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[2:]]))  # the first session was an earlier version's
    assert stretches_of(path) == [({}, ["0"]), (stamp("wednesday")(), ["1", "2", "3"])]
    path.write_text("".join(lines[:4]))  # killed before its first record was written
    assert stretches_of(path) == [(stamp("monday")(), ["0"])]


@pytest.mark.parametrize("damaged", [3, {**stamp("x")(), "date": 4}, {"date": "x"}])
def test_a_damaged_stretch_is_named_by_line(tmp_path, damaged):
    path = tmp_path / "records.jsonl"
    with RecordLog(path, SETTINGS) as log:
        run(log, Echo())
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({"stretch": damaged})
    path.write_text("\n".join(lines) + "\n")
    for read in (read_records, read_stretches):
        with pytest.raises(EvaluationError, match=r"records.jsonl, line 2, is no stretch of schema 1 \(it needs date"):
            read(path)


def test_a_torn_last_line_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("msa.evaluation.records.environment", stamp("monday"))
    path = tmp_path / "records.jsonl"
    with RecordLog(path, SETTINGS) as log:
        records = run(log, Echo())
    content = path.read_bytes()
    for cut in range(1, len(content.splitlines(keepends=True)[-1])):
        path.write_bytes(content[:-cut])
        assert read_records(path)[1] == records[:-1]
        again = Echo()
        with RecordLog(path, SETTINGS) as log:
            assert run(log, again) == records
        assert again.asked == ["3"]
        *before, last = content.splitlines(keepends=True)
        assert path.read_bytes() == b"".join([*before, before[1], last])  # said again where, then what was torn


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, '{"schema": 99}', "no results file of schema 1"),
        (0, "[]", "no results file of schema 1"),
        (0, '{"schema": 1}', "no results file of schema 1"),
        (2, "{nonsense", "line 3, is not JSON"),
        (2, '{"answerer": "x"}', "line 3, is no record"),
        (2, "[1, 2]", "line 3, is no record"),
    ],
)
def test_damage_is_named_by_line(tmp_path, line, text, message):
    path = tmp_path / "records.jsonl"
    with RecordLog(path, SETTINGS) as log:
        run(log, Echo())
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match=message):
        RecordLog(path, SETTINGS)
    with pytest.raises(EvaluationError, match=message):
        read_records(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scores", {"right": "1.0"}, "scores is {'right': '1.0'}, expected numbers by name"),
        ("scores", {"right": float("nan")}, "scores is {'right': nan}"),
        ("scores", [1.0], "expected numbers by name"),
        ("seconds", float("inf"), "seconds is inf, expected a number"),
        ("first_token_s", True, "first_token_s is True"),
        ("question_id", ["0"], r"question_id is \['0'\], expected a text"),
        ("answerer", None, "answerer is None"),
        ("size_tokens", 9.0, "size_tokens is 9.0, expected a whole number"),
        ("tokens_seen", True, "tokens_seen is True"),
        ("positives", "a", "positives is 'a', expected a list of texts"),
        ("retrieved", [0], "expected a list of texts"),
        ("metadata", [], "expected an object"),
        ("invented", 1, "invented"),
    ],
)
def test_values_of_another_kind_are_named_by_line(tmp_path, name, value, message):
    path = tmp_path / "records.jsonl"
    with RecordLog(path, SETTINGS) as log:
        run(log, Echo())
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), name: value})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(EvaluationError, match=f"records.jsonl, line 3, is no record of schema 1.*{message}"):
        read_records(path)


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordLog(path, SETTINGS) as log:
        log.begin()
    for settings, message in (
        ({**SETTINGS, "seed": 1}, "seed is 0 there, 1 now"),
        ({**SETTINGS, "dtype": None}, "dtype is missing there, None now"),
    ):
        with pytest.raises(EvaluationError, match=message):
            RecordLog(path, settings)


def test_a_run_without_results_refuses_no_other(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordLog(path, SETTINGS) as log, pytest.raises(KeyboardInterrupt):
        run(log, Echo(works=0))
    with RecordLog(path, {**SETTINGS, "seed": 1}) as log:
        log.begin()
        log.begin()
    assert read_records(path) == ({**SETTINGS, "seed": 1}, [])
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("content", [b"{", b'{"schema": 1, "settings"'])
def test_a_file_that_ends_within_its_first_line_has_not_begun(tmp_path, content):
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="holds no results yet"):
        read_records(path)
    assert path.read_bytes() == content
    with RecordLog(path, SETTINGS) as log:
        records = run(log, Echo())
    assert read_records(path) == (SETTINGS, records)


def test_records_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordLog(path, SETTINGS) as log:
        records = run(log, Echo())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]  # where it was measured
    for line in lines[1:]:
        del line["question_digest"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_records(path)[1] == [replace(record, question_digest="") for record in records]


@pytest.mark.parametrize(
    "change",
    [
        {"question": "q9"},
        {"answers": ("beta",)},
        {"positives": ("b",)},
        {"hops": (("a",), ("b",))},
        {"metadata": {"answerable": False}},
        {"answer_prefix": "It is"},
    ],
)
def test_questions_that_have_changed_are_not_answered_by_old_records(tmp_path, change):
    with RecordLog(tmp_path / "r.jsonl", SETTINGS) as log:
        run(log, Echo())
        changed = replace(SET, questions=(*SET.questions[:3], replace(SET.questions[3], **change)))
        with pytest.raises(EvaluationError, match="another question '3' of 'letters', or the same with other"):
            run_questions(Echo(), changed, log, score, size_tokens=9)


def test_a_missing_results_file(tmp_path):
    with pytest.raises(EvaluationError, match="does not exist"):
        read_records(tmp_path / "none.jsonl")


def question(**fields):
    return replace(SET.questions[0], **fields)


@pytest.mark.parametrize(
    ("questions", "documents", "message"),
    [
        ((), {"a": "x"}, "has no questions"),
        ((question(),), {}, "has no documents"),
        ((question(answers=(), positives=()),), {"a": "x"}, "'0' of 'bad' has no reference answer"),
        ((question(question=" "),), {"a": "x"}, "has no words"),
        ((question(), question()), {"a": "x"}, "is there twice"),
        ((question(positives=("z",)),), {"a": "x"}, "names the document 'z'"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(questions, documents, message):
    with pytest.raises(EvaluationError, match=message):
        check_questions(QuestionSet(name="bad", documents=documents, questions=questions))


def test_records_tell_sizes_and_answerers_apart(tmp_path):
    with RecordLog(tmp_path / "r.jsonl", SETTINGS) as log:
        small = run(log, Echo())
        large = run_questions(Echo(), SET, log, score, size_tokens=10)
        assert len(log.records) == 8
        assert {record.key for record in small}.isdisjoint(record.key for record in large)


def test_the_environment_is_json_and_names_machine_and_versions():
    found = json.loads(json.dumps(environment()))
    assert found["machine"]
    assert found["versions"]["torch"].startswith("2.")


def test_the_device_is_the_models_where_it_is_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    assert [environment(kind)["device"] for kind in (None, "cuda", "cpu")] == ["a GPU", "a GPU", "cpu"]


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["/usr/bin/msa", "eval", "qa", "my set"], "msa eval qa 'my set'"),
        (["benchmarks/real.py", "--data", "d"], "python benchmarks/real.py --data d"),
        (["/lib/msa/__main__.py", "eval"], "python -m msa eval"),
    ],
)
def test_the_command_is_as_a_user_gives_it(given, command, monkeypatch):
    monkeypatch.setattr("sys.argv", given)
    assert environment()["command"] == command
