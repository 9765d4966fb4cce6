"""A document is shown by an id that can be given back, and by its own fields, whatever its metadata say."""

import io
import json
import shutil
import sys

import pytest

from msa.cli import console
from msa.cli.console import shown_id
from msa.cli.main import main
from msa.cli.options import document_id

IDS = [
    "notes/a  b.md",
    "notes/a b.md",
    " blank first",
    "tab\tand\nline",
    "\x1b[2J\x9b2J\x7f",
    "right\u202eleft",
    '"quoted"',
    '"a',
    "日本",
    "L" * 250,
]
LONG = "A sentence about the bridge. " * 90


@pytest.fixture(scope="session")
def made(tmp_path_factory, model_folder):
    """A memory of documents with odd ids, and of two whose metadata claim what is not so."""
    records = [{"id": doc_id, "text": f"Document {number}."} for number, doc_id in enumerate(IDS)]
    false = {"id": "fake", "stored as": "gold", "part": 1, "parts": 2, "offset": 3}
    records += [{"id": "short", "text": "The bridge.", "metadata": false}, {"id": "long", "text": LONG}]
    folder = tmp_path_factory.mktemp("odd")
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["add", str(folder / "m"), str(folder / "records.jsonl"), "--model", str(model_folder)]) == 0
    return folder / "m"


@pytest.mark.parametrize("doc_id", [*IDS, "", "\u200b", "a\\u0020", '"a \\u0020b"', "   ", "\ud800", "\u2028"])
def test_what_is_shown_is_one_line_and_means_the_id(doc_id):
    shown = shown_id(doc_id)
    assert document_id(shown) == doc_id
    assert shown.isprintable()
    assert console.one_line(shown) == shown


def test_plain_ids_are_shown_as_they_are():
    assert [shown_id(doc_id) for doc_id in ("a", "a b/c.md", "日本", "it's", "\\n")] == [
        "a",
        "a b/c.md",
        "日本",
        "it's",
        "\\n",
    ]
    assert shown_id('"a"') == r'"\"a\""'


def test_listed_ids_can_be_shown_deleted_and_gone_on_from(msa, made, tmp_path):
    memory = shutil.copytree(made, tmp_path / "memory")
    listed = [line.split("  ", 1)[1].strip() for line in msa("list", memory, "--limit", len(IDS)).out.splitlines()]
    assert [document_id(shown) for shown in listed] == IDS
    for number, shown in enumerate(listed):
        assert msa("show", memory, shown).out.endswith(f"\n\nDocument {number}.\n")
    after = msa("list", memory, "--after", listed[3], "--limit", "1", "--json").json
    assert after["data"][0]["id"] == IDS[4]
    result = msa("delete", memory, *listed, "a\tb")
    assert result.out == "".join(f"deleted {shown}\n" for shown in listed)
    assert r"""'"a\tb"'""" in result.err
    assert msa("list", memory, "--json").json["total"] == 2


def test_searched_ids_are_whole(msa, made):
    result = msa("search", made, "Document", "--top-k", "20")
    assert all(shown_id(doc_id) in result.out for doc_id in IDS)
    assert "\x1b" not in result.out


def test_a_terminal_cuts_what_follows_an_id_and_never_the_id(capsys, monkeypatch):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    console.write_table([["1", "short", "T" * 500], ["2", "L" * 250, "title"]], whole=2)
    short, long = capsys.readouterr().out.splitlines()
    assert short.endswith("…")
    assert len(short) <= console.console().width
    assert "L" * 250 in long


def test_metadata_do_not_stand_for_the_document_s_own_fields(msa, made):
    lines = msa("show", made, "short").out.split("\n\n")[0].splitlines()
    fields = dict(line.split("  ", 1) for line in lines)
    assert fields["id"].strip() == "short"
    assert fields["stored as"].strip().startswith("1 part, ")
    assert (fields["metadata id"].strip(), fields["metadata stored as"].strip()) == ("fake", "gold")


def test_only_a_document_that_was_cut_has_parts(msa, made):
    lines = msa("search", made, "The bridge.", "--top-k", "20").out.splitlines()
    (short,) = [line for line in lines if "  short" in line]
    (long,) = [line for line in lines if "  long" in line]
    assert "part" not in short
    assert "(part" not in long
    assert "  part " in long
    assert " of " in long
    hits = {hit["id"]: hit for hit in msa("search", made, "The bridge.", "--top-k", "20", "--json").json["data"]}
    places = {name: (hits[name]["part"], hits[name]["parts"]) for name in ("short", "long")}
    assert places["short"] == (1, 1)
    assert 1 <= places["long"][0] <= places["long"][1] > 1
    assert LONG[hits["long"]["offset"] :].startswith(hits["long"]["text"])
    assert hits["short"]["metadata"]["part"] == 1  # the user's own
    assert hits["long"]["metadata"] == {}


def test_json_loses_nothing_where_the_terminal_has_no_such_characters(made, monkeypatch):
    binary = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(binary, encoding="ascii"))
    assert main(["list", str(made), "--json"]) == 0
    assert [item["id"] for item in json.loads(binary.getvalue())["data"]][: len(IDS)] == IDS


def test_json_does_not_steer_a_terminal(capsys):
    console.write_json({"text": "\x1b[2J \x9b2J \x7f 日本"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"text": "\x1b[2J \x9b2J \x7f 日本"}
    assert out.strip().isprintable()
    assert "日本" in out
