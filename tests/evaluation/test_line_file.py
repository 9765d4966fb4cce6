"""Files of JSON lines: what a killed run left half written is dropped, what is broken is named, nothing else is lost."""

import json
import subprocess
import sys

import pytest

from msa.errors import EvaluationError
from msa.evaluation.line_file import BrokenLineError, LineFile

LINES = [{"name": "a"}, {"name": "ä 日本\u2028"}, {"name": "\ud800"}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "lines.jsonl"


def written(path, lines=LINES):
    with LineFile(path) as file:
        for line in lines:
            file.append(line)
    return path.read_bytes()


def contents(path):
    return [content for _, content in LineFile(path).read()]


def test_what_is_appended_is_read_back(path):
    assert LineFile(path).is_new
    assert contents(path) == []
    written(path, LINES[:1])
    written(path, LINES[1:])
    assert not LineFile(path).is_new
    assert list(LineFile(path).read()) == list(enumerate(LINES, start=1))


def test_a_line_is_on_disk_when_append_returns(path):
    kill = "import os, sys; from pathlib import Path; from msa.evaluation.line_file import LineFile\n"
    kill += "file = LineFile(Path(sys.argv[1])); file.open(); file.append([1]); file._file.write(b'[2'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", kill, str(path)], check=False).returncode == 9
    assert contents(path) == [[1]]


def test_half_a_line_is_left_out_and_cut_off_before_the_next(path, caplog):
    whole = written(path)
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        path.write_bytes(whole[:-cut])
        assert contents(path) == LINES[:-1]
        assert path.read_bytes() == whole[:-cut]  # reading changes nothing
        assert written(path, LINES[-1:]) == whole
    assert "the last line was cut off" in caplog.text


def test_half_of_the_only_line(path):
    path.parent.mkdir()
    path.write_bytes(b'{"na')
    assert contents(path) == []
    assert LineFile(path).is_new
    assert written(path) == b"".join(
        json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for line in LINES
    )


@pytest.mark.parametrize("broken", [b"{nonsense", b"\xff\xfe", b"\x00" * 50, b"[" * 100_000], ids=range(4))
def test_a_broken_line_is_named_when_it_is_reached(path, broken):
    path.parent.mkdir()
    path.write_bytes(b'{"a": 1}\n\n' + broken + b'\n{"b": 2}\n')
    lines = LineFile(path).read()
    assert next(lines) == (1, {"a": 1})
    with pytest.raises(BrokenLineError) as caught:
        next(lines)
    assert caught.value.number == 3
    assert caught.value.reason


def test_a_file_that_is_not_open_takes_nothing(path):
    file = LineFile(path)
    with pytest.raises(ValueError, match="is not open"):
        file.append({})
    file.close()
    assert LineFile(path).is_new


def test_a_second_writer_is_refused_until_the_first_is_done_or_killed(path):
    hold = "import sys, time; from pathlib import Path; from msa.evaluation.line_file import LineFile\n"
    hold += "file = LineFile(Path(sys.argv[1])); file.open(); file.append([1]); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        with pytest.raises(EvaluationError, match=r"another run is writing to .*lines\.jsonl; wait"), LineFile(path):
            pass
        assert contents(path) == [[1]]  # who only reads may
        first.kill()
    written(path, [[2]])
    assert contents(path) == [[1], [2]]
