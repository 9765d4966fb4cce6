"""What ``msa eval`` keeps with its records: every option that changes them, and what the given files hold."""

import argparse
import json
from types import SimpleNamespace

import pytest
import torch

from msa.cli.evaluating import _check_ways, _metric
from msa.cli.evaluation_needles import num_questions
from msa.cli.evaluation_settings import ruler_digest, set_digest, settings_of, settings_of_records
from msa.cli.main import build_parser, main
from msa.cli.options import UsageError
from msa.evaluation.records import RecordLog
from msa.evaluation.types import Question, QuestionSet

TASKS = {"ruler": [], "scaling": [], "compare": [], "qa": ["questions"]}
# no answer and no score depends on them
HARMLESS = {"run", "debug", "verbose", "out", "write", "note", "ways", "limits", "tasks", "sizes", "metric"}
HARMLESS |= {"skip_bad"}
# kept as what they come to: the loaded model's name, device and number format, the judge in a file of its own
RESOLVED = {"model", "device", "dtype", "judge", "rubric"}


def parsed(task):
    return build_parser().parse_args(["eval", task, *TASKS[task], "--out", "x"])


def stub(constrain_answers="none", **changes):
    lm = {"device": torch.device("cpu"), "dtype": torch.float32, **changes}
    protocol = SimpleNamespace(strings=SimpleNamespace(constrain_answers=constrain_answers))
    return SimpleNamespace(name="tiny", fingerprint="f", lm=SimpleNamespace(**lm), protocol=protocol)


OPTIONS = [(task, name) for task in TASKS for name in vars(parsed(task))]


@pytest.mark.parametrize(("task", "name"), OPTIONS)
def test_every_option_is_in_the_settings_or_known_to_be_harmless(task, name, tmp_path):
    (tmp_path / "file.txt").write_text("some words")
    args = parsed(task)
    before = settings_of(task, args, stub())
    value = [str(tmp_path / "file.txt")] if name == "haystack" else str(tmp_path) if name == "encoder" else "other"
    changed = settings_of(task, argparse.Namespace(**{**vars(args), name: value}), stub())
    assert (changed == before) is (name in HARMLESS | RESOLVED)
    json.dumps(changed)


def test_options_that_came_later_change_nothing_where_they_are_not_given():
    for task, names in {"ruler": ["held_out_words"], "scaling": ["held_out_words"], "qa": ["split", "corpus"]}.items():
        found = settings_of(task, parsed(task), stub())
        assert not found.keys() & set(names)
        assert vars(parsed(task)).keys() >= set(names)


def test_a_folder_keeps_the_number_of_questions_it_was_begun_with(tmp_path):
    now = {"samples": 500, "seed": 42}
    assert settings_of_records(tmp_path, now, ["samples"]) == now
    with RecordLog(tmp_path / "records.jsonl", {"samples": 100, "seed": 1}) as log:
        log.begin()
    assert settings_of_records(tmp_path, now, ["samples", "limit"]) == {"samples": 100, "seed": 42}
    assert settings_of_records(tmp_path, now, []) == now


@pytest.mark.parametrize("changes", [{"device": torch.device("cuda", 1)}, {"dtype": torch.bfloat16}])
def test_device_and_number_format_are_in_the_settings(changes):
    assert settings_of("qa", parsed("qa"), stub(**changes)) != settings_of("qa", parsed("qa"), stub())


def test_how_answers_are_held_to_texts_is_in_the_settings_where_they_are():
    assert settings_of("qa", parsed("qa"), stub("quoted"))["constrain_answers"] == "quoted"
    assert "constrain_answers" not in settings_of("qa", parsed("qa"), stub())


def test_the_number_of_the_device_does_not_count():
    one, two = (settings_of("qa", parsed("qa"), stub(device=torch.device("cuda", number))) for number in (0, 1))
    assert one == two


@pytest.mark.parametrize("name", ["haystack", "encoder"])
def test_what_files_hold_is_in_the_settings(name, tmp_path):
    path = tmp_path / "model" / "file.txt"
    path.parent.mkdir()
    args = parsed("compare")
    setattr(args, name, [str(path)] if name == "haystack" else str(path.parent))
    found = []
    for text in ("one", "two", "one"):
        path.write_text(text)
        found.append(settings_of("compare", args, stub()))
    assert found[0] == found[2] != found[1]


def test_rulers_files_are_in_the_settings(tmp_path):
    file = tmp_path / "niah_single_1" / "validation.jsonl"
    file.parent.mkdir()
    args = argparse.Namespace(read=str(tmp_path))
    found = []
    for text in ("one", "two", "one"):
        file.write_text(text)
        (tmp_path / "report.md").write_text(str(len(found)))
        found.append(ruler_digest(args))
    assert found[0] == found[2] != found[1]


QUESTIONS = (
    Question(id="1", question="q", answers=("x",), positives=("a",)),
    Question(id="2", question="r", answers=("y",), positives=("b",)),
)


def question_set(documents=None, questions=QUESTIONS):
    return QuestionSet(name="s", documents=documents or {"a": "A", "b": "B"}, questions=questions)


def test_documents_of_a_set_are_in_the_settings_and_of_a_growing_one_the_questions_too():
    other = question_set({"a": "A", "b": "C"})
    fewer = question_set(questions=QUESTIONS[:1])
    for is_growing in (False, True):
        assert set_digest(other, is_growing) != set_digest(question_set(), is_growing)
        assert (set_digest(fewer, is_growing) == set_digest(question_set(), is_growing)) is not is_growing


@pytest.mark.parametrize("metric", ["nonsense", "judge", "all_hops"])
def test_a_metric_that_no_answer_gets_is_refused(metric):
    with pytest.raises(UsageError, match=f"scored by '{metric}'; --metric takes contains, exact_match, f1"):
        _metric(argparse.Namespace(set="q", metric=metric, judge=False), question_set(), judged=True)


def test_a_metric_that_answers_get_is_taken():
    hops = (Question(id="1", question="q", answers=("x",), positives=("a", "b"), hops=(("a",), ("b",))),)
    for metric, judge in (("contains", False), ("all_hops", False), ("judge", True)):
        found = _metric(
            argparse.Namespace(set="q", metric=metric, judge=judge), question_set(questions=hops), judged=True
        )
        assert found == metric


@pytest.mark.parametrize(
    ("fields", "metric"),
    [
        ({"answers": ("x",)}, "contains"),
        ({"answers": ("x",), "task": "hotpotqa"}, "longbench"),
        ({"answers": ("A",), "task": "longbench-v2"}, "exact_match"),
        ({"answers": (), "positives": ("a",)}, "recall@10"),
        ({"answers": (), "metadata": {"answerable": False}}, "abstained"),
    ],
)
def test_without_a_name_the_table_shows_a_metric_that_the_set_has(fields, metric):
    questions = question_set(questions=(Question(id="1", question="q", **fields),))
    assert _metric(argparse.Namespace(set="q", metric=None, judge=False), questions, judged=True) == metric


def test_a_report_without_the_judges_points_shows_another_metric():
    for metric, shown in (("judge", "contains"), ("f1", "f1"), (None, "contains")):
        args = argparse.Namespace(set="q", metric=metric, judge=True)
        assert _metric(args, question_set(), judged=False) == shown
        assert _metric(args, question_set(), judged=True) == (metric or "contains")


def test_a_metric_is_checked_before_the_model_is_loaded(tmp_path, capsys):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "q", "answers": ["x"], "documents": ["D"]}) + "\n")
    code = main(["eval", "qa", str(file), "--metric", "nonsense", "--model", "no/model", "--out", str(tmp_path / "o")])
    assert (code, "no answer to" in capsys.readouterr().err, (tmp_path / "o").exists()) == (2, True, False)


def test_a_way_without_its_encoder_is_refused():
    args = parsed("compare")
    args.ways = ["msa", "rag-minilm@1"]
    with pytest.raises(UsageError, match="rag-minilm@1 needs --encoder"):
        _check_ways(args)
    args.encoder = "folder"
    _check_ways(args)


def test_a_folder_goes_on_with_the_questions_it_was_begun_with(tmp_path):
    given = ["eval", "scaling", "--sizes", "16K", "64K", "--out", str(tmp_path)]
    assert num_questions(build_parser().parse_args(given)) == 22  # of 31 documents, each with one needle
    with RecordLog(tmp_path / "records.jsonl", {"questions": 110}) as log:
        log.begin()
    assert num_questions(build_parser().parse_args(given)) == 110
    assert num_questions(build_parser().parse_args([*given, "--questions", "55"])) == 55
