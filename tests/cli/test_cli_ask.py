import io
import os
import re
import shutil
import signal

import pytest

import msa as package

QUICK = ("--max-new-tokens", "6", "--max-rounds", "1")


@pytest.mark.parametrize("retrieval", ["generative", "routed"])
def test_answer_then_sources_then_timings(msa, made_once, retrieval):
    result = msa("ask", made_once, "What is the moon?", *QUICK, "--retrieval", retrieval)
    assert (result.code, result.err) == (0, "")
    assert "\x1b" not in result.out
    summary = r"1 round, \d+ tokens written in [\d.]+ s \(retrieval [\d.]+ s, first token [\d.]+ s\)"
    assert re.search(summary, result.out)
    if retrieval == "routed":
        assert re.search(r"\nSources\n1\. +-?\d\.\d{3}  (moon|sonne|bridge)", result.out)


def test_json_is_one_object_with_everything_of_the_answer(msa, made_once):
    answer = msa("ask", made_once, "What is the moon?", *QUICK, "--retrieval", "routed", "--json").json
    keys = ["question", "answer", "quotation", "sources", "rounds", "finish_reason", "usage", "timings", "notes"]
    assert list(answer) == keys
    assert answer["question"] == "What is the moon?"
    assert {source["id"] for source in answer["sources"]} == {"moon", "sonne", "bridge"}
    documented = ["id", "text", "score", "metadata", "part", "parts", "offset", "number", "read"]
    assert all(list(source) == documented for source in answer["sources"])
    assert [list(one) for one in answer["rounds"]] == [["retrieved", "numbers", "generated", "votes"]]
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens", "hidden_tokens", "total_tokens"}
    assert set(answer["timings"]) == {"route", "first_token", "total"}
    assert answer["finish_reason"] in ("stop", "length")


def test_options_reach_the_engine(msa, made_once, monkeypatch):
    seen = {}

    def stream(self, question, *, cancelled=None, **options):
        seen.update(options, question=question)
        answer = package.Answer(
            text="yes", sources=[], rounds=[], finish_reason="stop", usage=package.Usage(),
            timings={"route": 0.0, "first_token": 0.0, "total": 0.0}, notes=["shortened"],
        )  # fmt: skip
        yield package.TextPiece(text=" yes")
        yield package.Done(answer=answer)

    monkeypatch.setattr(package.Memory, "stream", stream)
    options = (
        "--max-rounds 2 --max-new-tokens 9 --temperature 0.5 --top-p 0.9 --seed 3 --stop END --stop . --documents 1"
    )
    conditions = ["--where", "lang=en", "--where", "year=2024", "--where", "tags=[1, 2]"]
    result = msa("ask", made_once, "Why?", *options.split(), "--retrieval", "routed", "--hybrid", *conditions)
    assert result.out.startswith("yes\n")
    assert "note: shortened" in result.out
    assert seen == {
        "question": "Why?",
        "retrieval": "routed",
        "hybrid": True,
        "max_documents": 1,
        "max_rounds": 2,
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ("END", "."),
        "where": {"lang": "en", "year": 2024, "tags": [1, 2]},
    }


def test_where_limits_the_sources(msa, made_once):
    result = msa("ask", made_once, "Was?", *QUICK, "--retrieval", "routed", "--where", "lang=de", "--json")
    assert [source["id"] for source in result.json["sources"]] == ["sonne"]


def test_model_device_and_dtype(msa, made_once, model_folder, monkeypatch):
    seen = []
    load = package.zoo.load
    monkeypatch.setattr("msa.zoo.load", lambda name, **options: seen.append((name, options)) or load(name, **options))
    assert msa("search", made_once, "moon", "--device", "cpu", "--dtype", "bfloat16").code == 0
    assert msa("search", made_once, "moon", "--model", model_folder).code == 0
    assert seen == [
        (str(model_folder.resolve()), {"device": "cpu", "dtype": "bfloat16"}),
        (str(model_folder), {"device": "auto", "dtype": "auto"}),
    ]


def test_a_model_that_has_moved(msa, tmp_path, model_folder, records_file):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(model_folder, here)
    assert msa("add", tmp_path / "m", records_file, "--model", here).code == 0
    here.rename(there)
    result = msa("search", tmp_path / "m", "moon")
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert "--model" in result.err
    assert msa("search", tmp_path / "m", "moon", "--model", there).code == 0


@pytest.mark.parametrize("question", ["", "  "])
def test_an_empty_question_is_wrong_usage(msa, made_once, question):
    result = msa("ask", made_once, question)
    assert (result.code, result.out) == (2, "")
    assert result.err == "msa: the question is empty; put it in quotes after the memory\n"


def test_a_memory_of_another_model(msa, made_once, other_model_folder):
    result = msa("ask", made_once, "Why?", "--model", other_model_folder)
    assert result.code == 1
    assert len(set(re.findall(r"\b[0-9a-f]{16}\b", result.err))) == 2


def test_a_memory_without_documents_says_what_to_do(msa, memory):
    assert msa("delete", memory, "moon", "sonne", "bridge").code == 0
    result = msa("ask", memory, "Why?")
    assert result.code == 1
    assert f"msa add {memory}" in result.err


def test_questions_one_after_another(msa, made_once, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is the moon?\n\n   \nWas?\nexit\nnever asked\n"))
    result = msa("ask", made_once, *QUICK, "--retrieval", "routed")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\nSources\n") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("Was?\n"))  # ends without 'exit'
    assert msa("ask", made_once, *QUICK, "--json").json["question"] == "Was?"


def test_a_question_that_fails_does_not_end_the_conversation(msa, made_once, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("long " * 2000 + "\nWas?\n"))
    result = msa("ask", made_once, *QUICK, "--retrieval", "routed")
    assert result.out.count("\nSources\n") == 1
    assert result.err.startswith("msa: the question has ")
    assert (result.code, len(result.err.splitlines())) == (1, 1)


def test_interrupting_ends_only_the_running_answer(msa, made_once, monkeypatch):
    stream, calls = package.Memory.stream, []

    def interrupted_at_first(self, question, **options):
        for event in stream(self, question, **options):
            if not calls:
                os.kill(os.getpid(), signal.SIGINT)
            calls.append(event)
            yield event

    monkeypatch.setattr(package.Memory, "stream", interrupted_at_first)
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\nWhat?\n"))
    handler = signal.getsignal(signal.SIGINT)
    result = msa("ask", made_once, *QUICK, "--retrieval", "routed")
    assert result.code == 0
    assert result.out.count("; stopped\n") == 1
    assert result.out.count("\nSources\n") == 2
    assert signal.getsignal(signal.SIGINT) is handler


def test_interrupting_a_single_question(msa, made_once, monkeypatch):
    def stream(self, question, **options):
        os.kill(os.getpid(), signal.SIGINT)
        yield from ()

    monkeypatch.setattr(package.Memory, "stream", stream)
    result = msa("ask", made_once, "Why?")
    assert (result.code, result.err) == (130, "msa: interrupted\n")


def test_search(msa, made_once):
    result = msa("search", made_once, "moon", "--top-k", "2")
    assert (result.code, result.err) == (0, "")
    assert re.match(r"  1\. -?\d\.\d{3}  \w+", result.out)
    assert len(result.out.splitlines()) == 4


def test_search_json(msa, made_once):
    found = msa("search", made_once, "moon", "--where", "lang=en", "--json").json
    assert list(found) == ["query", "ranking", "data"]
    assert found["query"] == "moon"
    assert {hit["id"]: hit["metadata"] for hit in found["data"]} == {
        "moon": {"lang": "en", "title": "Moon", "year": 2024},
        "bridge": {"lang": "en", "year": 1932},
    }
    scores = [hit["score"] for hit in found["data"]]
    assert scores == sorted(scores, reverse=True)
    documented = ["id", "text", "score", "metadata", "part", "parts", "offset"]
    assert all(list(hit) == documented for hit in found["data"])


def test_search_without_a_match(msa, made_once):
    result = msa("search", made_once, "moon", "--where", "lang=fr")
    assert (result.code, result.out, result.err) == (0, "", "no documents found with this metadata\n")
    assert msa("search", made_once, "moon", "--where", "lang=fr", "--json").json["data"] == []


def test_an_empty_query_is_wrong_usage(msa, made_once):
    assert msa("search", made_once, "").code == 2


def test_hybrid_is_named(msa, made_once):
    result = msa("search", made_once, "Stern", "--hybrid")
    assert result.code == 0
    assert result.out.splitlines()[0].split()[2] == "sonne"
    assert "--hybrid" in result.err
    found = msa("search", made_once, "Stern", "--hybrid", "--json").json
    assert (found["ranking"], found["data"][0]["id"]) == ("hybrid", "sonne")
    assert msa("search", made_once, "Stern", "--json").json["ranking"] == "memory"
    answer = msa("ask", made_once, "Was ist ein Stern?", "--hybrid", "--max-new-tokens", "2")
    assert "hybrid" in answer.out.splitlines()[-1]


def test_tiers(msa, made_once):
    expected = msa("search", made_once, "moon", "--json").json["data"]
    for keys in ("int8", "half", "mapped"):
        found = msa("search", made_once, "moon", "--json", "--routing-keys", keys, "--content", "ram").json["data"]
        assert [hit["id"] for hit in found] == [hit["id"] for hit in expected]
    assert msa("search", made_once, "moon", "--routing-keys", "nowhere").code == 2
