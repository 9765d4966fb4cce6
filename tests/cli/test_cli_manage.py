import pytest

from msa.cli import console


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    monkeypatch.setattr("msa.zoo.load", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("msa.memory.memory.load", lambda *_, **__: pytest.fail("a model was loaded"))


def test_list(msa, made_once):
    result = msa("list", made_once)
    assert (result.code, result.err) == (0, "")
    assert result.out == "26  moon    Moon\n24  sonne   texte/sonne.md\n30  bridge\n"


def test_list_pages(msa, made_once, monkeypatch):
    monkeypatch.setattr("msa.cli.manage._PAGE", 1)
    listed = msa("list", made_once, "--json").json
    assert [item["id"] for item in listed["data"]] == ["moon", "sonne", "bridge"]
    assert listed["data"][2] == {"id": "bridge", "characters": 30, "metadata": {"lang": "en", "year": 1932}}
    assert listed["total"] == 3
    listed = msa("list", made_once, "--after", "moon", "--limit", "1", "--json").json
    assert [item["id"] for item in listed["data"]] == ["sonne"]
    assert msa("list", made_once, "--limit", "0").out == ""


def test_list_after_an_unknown_document(msa, made_once):
    result = msa("list", made_once, "--after", "pluto")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("msa: no document 'pluto' in ")


def test_show(msa, made_once):
    result = msa("show", made_once, "moon")
    assert result.code == 0
    head, text = result.out.split("\n\n")
    assert text == "The moon orbits the earth.\n"
    assert "title      Moon" in head.splitlines()
    assert "1 part, " in head


def test_show_json(msa, made_once):
    shown = msa("show", made_once, "moon", "--json").json
    assert list(shown) == ["id", "text", "metadata", "parts"]
    assert shown["text"] == "The moon orbits the earth."
    assert set(shown["parts"][0]) == {"number", "start", "end", "num_tokens", "num_chunks"}


def test_show_an_unknown_document(msa, made_once):
    result = msa("show", made_once, "pluto")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("msa: no document 'pluto' in ")


def test_delete(msa, memory):
    result = msa("delete", memory, "moon", "bridge")
    assert (result.code, result.out, result.err) == (0, "deleted moon\ndeleted bridge\n", "")
    assert [item["id"] for item in msa("list", memory, "--json").json["data"]] == ["sonne"]


def test_delete_names_unknown_ids_and_deletes_the_others(msa, memory):
    result = msa("delete", memory, "pluto", "moon", "mars")
    assert (result.code, result.out) == (1, "deleted moon\n")
    assert len(result.err.splitlines()) == 1
    assert "'pluto', 'mars'" in result.err
    result = msa("delete", memory, "sonne", "moon", "--json")
    assert (result.code, result.json) == (1, {"deleted": ["sonne"], "unknown": ["moon"]})


def test_stats(msa, made_once):
    stats = msa("stats", made_once, "--json").json
    assert (stats["documents"], stats["parts"], stats["chunk_size"]) == (3, 3, 4)
    lines = dict(line.split("  ", 1) for line in msa("stats", made_once).out.splitlines())
    assert lines["documents"].strip() == "3"
    assert lines["layers"].strip() == "2, 3"


def test_verify_a_sound_memory(msa, made_once):
    result = msa("verify", made_once)
    assert (result.code, result.out) == (0, "sound: 3 documents, every checksum is right\n")
    assert msa("verify", made_once, "--json").json == {"ok": True, "problems": []}


def test_verify_a_damaged_memory(msa, memory):
    segment = next((memory / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    result = msa("verify", memory)
    assert result.code == 1
    assert len(result.out.splitlines()) == 1
    assert segment.name in result.out
    result = msa("verify", memory, "--json")
    assert (result.code, result.json["ok"]) == (1, False)
    assert segment.name in result.json["problems"][0]


def test_verify_a_memory_that_cannot_even_be_opened(msa, memory):
    for file in memory.glob("manifest-*.json"):
        file.write_bytes(b"gone")
    result = msa("verify", memory, "--json")
    assert (result.code, result.json["ok"], len(result.json["problems"])) == (1, False, 1)


def test_compact(msa, memory):
    msa("delete", memory, "moon")
    result = msa("compact", memory)
    assert result.code == 0
    assert result.out.startswith("removed 1 deleted parts, merged 2 segments into 1; ")
    again = msa("compact", memory, "--json").json
    assert (again["compacted"], again["removed_parts"]) == (False, 0)


@pytest.mark.parametrize("command", ["list", "show", "delete", "stats", "verify", "compact", "ask", "search"])
def test_a_memory_that_is_not_there(msa, tmp_path, command):
    more = {"show": ["a"], "delete": ["a"], "ask": ["Why?"], "search": ["why"]}.get(command, [])
    result = msa(command, tmp_path / "gone", *more)
    assert (result.code, result.out, len(result.err.splitlines())) == (1, "", 1)
    assert result.err.startswith(f"msa: no memory at {tmp_path / 'gone'}")
    assert not (tmp_path / "gone").exists()


def test_an_empty_path_is_not_the_current_folder(msa):
    assert msa("list", "").code == 2


def test_control_characters_do_not_reach_a_terminal(msa, memory, monkeypatch, capsys):
    assert console.shown("a\x1b[2Jb") == "a\x1b[2Jb"
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    assert console.shown("a\x1b[2Jb\n") == "a\ufffd[2Jb\n"
    console.write_table([["1", "a\x1b[2J" + "b" * 500]])
    (line,) = capsys.readouterr().out.splitlines()
    assert "\x1b" not in line
    assert len(line) <= console.console().width


def test_backup_and_restore(msa, memory, tmp_path):
    result = msa("backup", memory, tmp_path / "copy")
    assert (result.code, result.out.startswith("copied 3 documents, ")) == (0, True)
    assert msa("list", tmp_path / "copy").out == msa("list", memory).out
    msa("delete", memory, "moon")
    again = msa("backup", memory, tmp_path / "copy")
    assert (again.code, "not empty" in again.err) == (1, True)
    restored = msa("backup", tmp_path / "copy", tmp_path / "restored", "--json").json
    assert (restored["documents"], msa("verify", tmp_path / "restored").code) == (3, 0)


@pytest.mark.parametrize("below", ["", "below/copy"])
def test_a_file_is_no_place_for_a_copy(msa, memory, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    result = msa("backup", memory, tmp_path / "file" / below)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"msa: {tmp_path / 'file'} is a file. Name a new folder for the copy\n"
    assert msa("backup", memory, "").code == 2


def test_damage_is_told_once(msa, memory):
    newest = max(memory.glob("manifest-*.json"))
    newest.write_text("damaged")
    for command in ("verify", "stats", "list"):
        assert msa(command, memory).err.count(newest.name) == 1


def test_a_damaged_memory_is_not_copied(msa, memory, tmp_path):
    file = next((memory / "segments").glob("*.sqlite"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    result = msa("backup", memory, tmp_path / "copy")
    assert (result.code, file.name in result.err) == (1, True)
    assert not (tmp_path / "copy").exists()
