import io
import json
import os
import re
import signal

import pytest

import msa as package
from msa.bank.documents import DocumentsFile


def texts_in(folder):
    with package.Memory.open(folder, create=False, read_only=True) as memory:
        return {document.id: document.text for document in memory.list()}


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# Alpha\n\nThe first note.\n")
    (folder / "b.txt").write_text("The second note.")
    (folder / "c.bin").write_bytes(bytes(range(256)))
    return folder


def test_files_folders_and_json_lines_are_added_and_counted(msa, tmp_path, notes, records_file, model_folder):
    result = msa("add", tmp_path / "m", notes, records_file, "--model", model_folder)
    assert result.code == 0
    line = r"5 added, 0 updated, 0 unchanged, 1 skipped; [\d,]+ tokens in [\d.]+ s, [\d,]+ tok/s\n"
    assert re.fullmatch(line, result.out)
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("skipped: ")
    assert "c.bin is a binary file" in result.err
    assert texts_in(tmp_path / "m").keys() == {"notes/a.md", "notes/b.txt", "moon", "sonne", "bridge"}


def test_adding_again_encodes_only_what_changed_and_needs_no_model_name(msa, tmp_path, notes, model_folder):
    assert msa("add", tmp_path / "m", notes, "--model", model_folder).code == 0
    again = msa("add", tmp_path / "m", notes)
    assert again.out.startswith("0 added, 0 updated, 2 unchanged, 1 skipped; 0 tokens")
    (notes / "b.txt").write_text("The second note, corrected.")
    (notes / "d.txt").write_text("A fourth one.")
    changed = msa("add", tmp_path / "m", notes, "--device", "cpu", "--dtype", "float32")
    assert changed.out.startswith("1 added, 1 updated, 1 unchanged, 1 skipped; ")
    assert texts_in(tmp_path / "m")["notes/b.txt"] == "The second note, corrected."


def test_nothing_is_loaded_when_nothing_changed(msa, memory, records_file, monkeypatch):
    monkeypatch.setattr("msa.zoo.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert msa("add", memory, records_file).code == 0


def test_what_is_not_utf8_is_told(msa, memory, tmp_path):
    (tmp_path / "old.txt").write_bytes("café crème".encode("cp1252"))
    result = msa("add", memory, tmp_path / "old.txt")
    assert (result.code, result.err.startswith(f"note: {tmp_path / 'old.txt'}: not UTF-8, read as")) == (0, True)
    assert "café crème" in texts_in(memory).values()


def test_an_id_given_twice_is_counted_and_told(msa, tmp_path, model_folder, monkeypatch):
    """It was "3 added, 0 updated, 3 unchanged", and the texts of the first file were gone."""
    for name, texts in {"a": ["one", "two", "three"], "b": ["1", "2", "three"]}.items():
        lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    result = msa("add", "m", "a.jsonl", "b.jsonl", "--model", model_folder)
    assert result.out.startswith("3 added, 2 updated, 1 unchanged")
    assert result.err == (
        "note: b.jsonl, line 1: replaces a.jsonl, line 1, a document with the same id '0' and another text "
        "(1 more of this file do so). Give each document an id of its own to keep both\n"
    )
    assert texts_in("m") == {"0": "1", "1": "2", "2": "three"}


def test_a_second_folder_of_the_same_name_is_told(msa, tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("pa", "pb"):
        (tmp_path / place / "docs").mkdir(parents=True)
        (tmp_path / place / "docs" / "readme.md").write_text(f"The text of {place}.")
    assert msa("add", "m", "pa/docs", "--model", model_folder).err == ""
    result = msa("add", "m", "pb/docs")
    note = "replaces pa/docs/readme.md, another file, which was added as 'docs/readme.md' before"
    assert (result.code, result.err) == (0, f"note: pb/docs/readme.md {note}\n")
    (tmp_path / "pb" / "docs").rename(tmp_path / "docs")  # moved, and changed
    (tmp_path / "docs" / "readme.md").write_text("A new text.")
    assert msa("add", "m", "docs").err == ""


def test_a_file_that_is_there_under_another_id_is_told(msa, tmp_path, notes, model_folder):
    assert msa("add", tmp_path / "m", notes, "--model", model_folder).code == 0
    (notes / "a.md").write_text("Changed.")
    result = msa("add", tmp_path / "m", notes / "a.md")
    assert result.err.startswith(f"note: {notes / 'a.md'} is in the memory as 'notes/a.md' too, which stays as it is. ")
    assert texts_in(tmp_path / "m").keys() == {"notes/a.md", "notes/b.txt", str(notes / "a.md")}


@pytest.mark.parametrize("text", ["A plain text.", '{"id": "line", "text": "A JSON line."}\n'])
def test_standard_input(msa, memory, monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    result = msa("add", memory, "-")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("1 added")
    assert {"A plain text.", "A JSON line."} & set(texts_in(memory).values())


def test_what_can_be_read_only_once_is_read_once(msa, tmp_path, model_folder):
    reading, writing = os.pipe()
    os.write(writing, b"A text in a pipe.")
    os.close(writing)
    try:
        result = msa("add", tmp_path / "m", f"/dev/fd/{reading}", "--model", model_folder)
    finally:
        os.close(reading)
    assert (result.code, result.err) == (0, "")
    assert list(texts_in(tmp_path / "m").values()) == ["A text in a pipe."]


def test_a_stream_is_added_as_it_arrives(msa, tmp_path, model_folder, monkeypatch):
    """It was held in memory whole, and nothing was encoded before its end."""
    monkeypatch.setattr(package.memory.adding, "_COMMIT_TOKENS", 1_000)
    monkeypatch.setattr("msa.cli.add._LOOKED_AHEAD", 1_000)
    monkeypatch.setattr("msa.cli.add.is_terminal", lambda stream: True)
    memory, there = tmp_path / "m", []

    def lines():
        for number in range(300):
            if memory.exists():
                with package.Memory.open(memory, read_only=True) as opened:
                    there.append(len(opened))
            yield f'{{"id": "{number}", "text": "A text of about thirty letters."}}\n'.encode()
        yield b'{"id": "0", "text": "caf\xe9"}\n'

    monkeypatch.setattr("msa.documents.readers._standard_input", lines)
    result = msa("add", memory, "-", "--model", model_folder)
    assert result.code == 0
    assert result.out.startswith("300 added, 1 updated, 0 unchanged")
    assert max(there) > 200
    assert "note: 1 line of standard input: not UTF-8, read as" in result.err
    assert "note: standard input, line 301: replaces standard input, line 1" in result.err


def test_what_came_before_a_broken_line_of_a_stream_is_added(msa, memory, monkeypatch):
    monkeypatch.setattr("msa.cli.add._LOOKED_AHEAD", 100)
    lines = [f'{{"text": "line {number}"}}\n' for number in range(5)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("".join([*lines, "{"]).encode())))
    result = msa("add", memory, "-")
    assert (result.code, result.err.startswith("msa: standard input, line 6: not JSON")) == (1, True)
    assert len(texts_in(memory)) == 8


@pytest.mark.parametrize("folder_exists", [False, True])
def test_a_first_add_that_fails_leaves_no_memory(msa, tmp_path, records_file, model_folder, folder_exists):
    memory = tmp_path / "new" / "m"
    if folder_exists:
        memory.mkdir(parents=True)
    result = msa("add", memory, records_file, "--model", model_folder, "--max-size", "100B")
    assert (result.code, "may have 100;" in result.err) == (1, True)
    assert list((tmp_path / "new").rglob("*")) == ([memory] if folder_exists else [])
    assert msa("add", memory, records_file, "--model", model_folder).code == 0
    assert msa("add", memory, records_file, "--max-size", "100B").code == 0
    assert len(texts_in(memory)) == 3


def test_stopping_keeps_what_was_committed_and_running_again_goes_on(msa, tmp_path, model_folder, monkeypatch):
    lines = tmp_path / "many.jsonl"
    lines.write_text("".join(json.dumps({"id": str(i), "text": f"document {i}"}) + "\n" for i in range(6)))
    encode, calls = package.memory.adding.encode_in_batches, []

    def encode_until_stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return encode(*args, **kwargs)

    monkeypatch.setattr(package.memory.adding, "_COMMIT_TOKENS", 20)  # two documents
    monkeypatch.setattr(package.memory.adding, "encode_in_batches", encode_until_stopped)
    stopped = msa("add", tmp_path / "m", lines, "--model", model_folder)
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err == (
        f"msa: stopped; 4 documents of this run committed to {tmp_path / 'm'}. Run the same command again to go on\n"
    )
    assert len(texts_in(tmp_path / "m")) == 4
    assert msa("add", tmp_path / "m", lines).out.startswith("2 added, 0 updated, 4 unchanged")


def test_what_is_there_already_is_read_from_the_memory_once(msa, memory, records_file, monkeypatch):
    read = []
    documents = DocumentsFile.documents
    monkeypatch.setattr(DocumentsFile, "documents", lambda self, places: read.extend(places) or documents(self, places))
    monkeypatch.setattr("msa.cli.add.load_model", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr("msa.cli.add.with_model", lambda *_: pytest.fail("a model was loaded"))
    assert msa("add", memory, records_file).out.startswith("0 added, 0 updated, 3 unchanged")
    assert sorted(read) == [1, 2, 3]


def test_a_document_whose_text_is_damaged_is_added_again(msa, memory, records_file):
    (file,) = (memory / "segments").glob("*.sqlite")
    file.write_bytes(file.read_bytes().replace(b"opened in 1932", b"opened in 1933"))
    assert msa("show", memory, "bridge").code == 1
    assert msa("add", memory, records_file).out.startswith("0 added, 1 updated, 2 unchanged")
    assert "opened in 1932" in msa("show", memory, "bridge").out


def test_a_broken_line_is_found_before_anything_is_made(msa, tmp_path, model_folder):
    lines = tmp_path / "broken.jsonl"
    lines.write_text('{"text": "fine"}\n{"text": 5}\n')
    result = msa("add", tmp_path / "m", lines, "--model", model_folder)
    assert result.code == 1
    assert result.err == f'msa: {lines}, line 2: "text" is a number. Give it as a string\n'
    assert not (tmp_path / "m").exists()


def test_inputs_that_hold_nothing(msa, tmp_path):
    (tmp_path / "empty").mkdir()
    result = msa("add", tmp_path / "m", tmp_path / "empty")
    assert result.code == 1
    assert "msa: nothing was added" in result.err
    assert not (tmp_path / "m").exists()


def test_a_memory_among_the_paths(msa, memory):
    result = msa("add", memory, memory)
    assert (result.code, len(result.err.splitlines()), f"{memory} is a memory. " in result.err) == (1, 1, True)
    assert len(texts_in(memory)) == 3


def test_a_path_that_is_not_there(msa, memory, tmp_path):
    result = msa("add", memory, tmp_path / "gone")
    assert result.code == 1
    assert result.err.startswith(f"msa: {tmp_path / 'gone'} does not exist. ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(msa, memory, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "secret.txt").chmod(0)
    result = msa("add", memory, tmp_path / "secret.txt")
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert "Check its permissions" in result.err


def test_a_named_file_that_is_no_text(msa, memory, notes):
    result = msa("add", memory, notes / "c.bin")
    assert result.code == 1
    assert "c.bin is a binary file" in result.err


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_that_is_no_memory(msa, notes, records_file, model_folder, kind):
    place = notes / "a.md" if kind == "file" else notes
    result = msa("add", place, records_file, "--model", model_folder)
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert str(place) in result.err


def test_another_model_is_refused_with_both_fingerprints(msa, memory, records_file, other_model_folder):
    with package.Memory.open(memory, read_only=True) as opened:
        made_by = opened.bank.fingerprint
    result = msa("add", memory, records_file, "--model", other_model_folder)
    assert result.code == 1
    assert made_by in result.err
    assert len(set(re.findall(r"\b[0-9a-f]{16}\b", result.err))) == 2


def test_a_memory_that_is_being_written_to(msa, memory, records_file):
    with package.Memory.open(memory, create=False):
        result = msa("add", memory, records_file)
    assert result.code == 1
    assert f"process {os.getpid()}" in result.err


def test_a_memory_may_be_limited_in_size(msa, memory, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("Something else. " * 50)
    result = msa("add", memory, more, "--max-size", "10kB")
    assert (result.code, "10,000" in result.err, len(result.err.splitlines())) == (1, True, 1)
    assert msa("add", memory, more, "--max-size", "1GiB").code == 0
    assert msa("add", memory, more, "--max-size", "much").code == 2


def test_repair_by_adding_again(msa, memory, records_file):
    file = next((memory / "segments").glob("*.safetensors"))
    file.unlink()
    assert msa("show", memory, "moon").code == 0
    assert file.name in msa("compact", memory).err
    result = msa("add", memory, records_file)
    assert result.out.startswith("0 added, 3 updated, 0 unchanged")
    assert msa("compact", memory, "--drop-damaged").code == 0
    assert msa("verify", memory).code == 0
    assert [hit["id"] for hit in msa("search", memory, "moon", "--json").json["data"]]
