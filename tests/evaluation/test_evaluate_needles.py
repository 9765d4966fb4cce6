"""Words of needles that a model was trained on: keys of others on request, and a note in every run over needles."""

import argparse
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

import msa
from msa.cli.evaluation_needles import document_tokens, growing_memory, seen_before
from msa.cli.main import build_parser, main
from msa.documents import Protocol
from msa.evaluation.records import RecordLog
from msa.evaluation.ruler.samples import asked_keys
from msa.memory.pieces import Pieces
from msa.training.data.words import is_held_out
from msa.training.tiny import PROTOCOL
from msa.zoo import MODELS, SHIPPED, TRAINED_ON_NEEDLES

NIAH = ["niah_single_1"]


def args(**given):
    return argparse.Namespace(**{"ways": ["msa"], "held_out_words": None, "read": None, **given})


def model(name):
    return SimpleNamespace(name=name)


@pytest.mark.parametrize("name", sorted(TRAINED_ON_NEEDLES))
def test_a_model_that_was_trained_on_needles_is_named(name):
    assert name in {*MODELS, *SHIPPED}
    (note,) = seen_before(args(), model(name), NIAH)
    assert note.startswith(f"{name}: trained")
    assert "nine tenths" in note
    assert "may be of words seen in training unless --held-out-words" in note


def test_the_note_says_what_the_keys_are():
    (held_out,) = seen_before(args(held_out_words=True), model("msa-tiny"), NIAH)
    assert "kept out of training" in held_out
    (of_files,) = seen_before(args(read="folder"), model("msa-tiny"), NIAH)
    assert of_files.endswith("may be of words seen in training")


def test_ways_that_are_trained_on_needles_are_named_with_any_model():
    (note,) = seen_before(args(ways=["msa", "memn2n", "memn2n-pointer"]), model("/a/folder"), NIAH)
    assert note.startswith("memn2n, memn2n-pointer: trained")


@pytest.mark.parametrize(("limit", "expected"), [(2048, 512), (512, 448)])
def test_documents_are_encoded_whole(tmp_path, limit, expected):
    """One that is longer than the model's documents would be cut again, and a remnant be a document of its own."""
    strings = replace(PROTOCOL, max_document_tokens=limit)
    tiny = msa.load("msa-tiny")
    model = SimpleNamespace(protocol=Protocol(strings, tiny.tokenizer), name="x")
    arguments = ["eval", "scaling", "--task", "niah_single_2", "--sizes", "16K", "--out", str(tmp_path)]
    given = build_parser().parse_args(arguments)
    documents = growing_memory(given, model).documents(16_000)
    assert given.document_tokens == expected
    cut = Pieces(model.protocol, 64).of([text for _, text in documents], 1)
    assert [len(parts) for parts, _ in cut] == [1] * round(16_000 / expected)
    with RecordLog(tmp_path / "records.jsonl", {"document_tokens": 300}) as log:
        log.begin()
    assert document_tokens(build_parser().parse_args(arguments), model) == 300, "as the run was begun"
    assert document_tokens(build_parser().parse_args([*arguments, "--document-tokens", "700"]), model) == 700


def test_others_get_no_note():
    assert seen_before(args(), model("/a/folder"), NIAH) == []
    assert seen_before(args(), model("smollm2-135m-routers"), NIAH) == []
    assert seen_before(args(), model("msa-tiny"), ["vt"]) == []


def stored(folder):
    return json.loads((folder / "results.json").read_text())


def questions(folder):
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [line["question"] for line in lines if "question_id" in line]


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("ruler", ["--tasks", "niah_single_2", "--sizes", "800", "--samples", "3", "--ways", "rag-bm25@1"]),
        ("scaling", ["--sizes", "6K", "--questions", "11"]),
        ("compare", ["--sizes", "6K", "--questions", "11", "--ways", "rag-bm25@1"]),
    ],
)
def test_held_out_words_make_all_keys_and_are_a_setting(task, given, tmp_path, capsys):
    common = ["eval", task, "--model", "msa-tiny", *given, "--out"]
    assert main([*common, str(tmp_path / "all")]) == 0
    assert main([*common, str(tmp_path / "held-out"), "--held-out-words"]) == 0
    for name, wanted in (("all", False), ("held-out", True)):
        words = [word for text in questions(tmp_path / name) for key in asked_keys(text) for word in key.split("-", 1)]
        assert words
        assert all(map(is_held_out, words)) is wanted
        notes = stored(tmp_path / name)["notes"]
        assert any("made-up needles of this very sentence" in note for note in notes)
        assert any("keys are made only of words kept out of training" in note for note in notes) is wanted
        assert stored(tmp_path / name)["settings"].get("held_out_words", False) is wanted
    assert main([*common, str(tmp_path / "all"), "--held-out-words"]) == 1
    assert "held_out_words is missing there, True now" in capsys.readouterr().err


def test_held_out_words_are_refused_where_no_key_is_a_word(tmp_path, capsys):
    for task in (["ruler", "--tasks", "vt"], ["scaling", "--task", "vt"]):
        assert main(["eval", *task, "--model", "msa-tiny", "--held-out-words", "--out", str(tmp_path / "run")]) == 2
        assert "--held-out-words is for keys that are words; those of vt are none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
