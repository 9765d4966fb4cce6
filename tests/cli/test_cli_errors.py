import errno
import logging

import pytest

import msa as package
from msa.cli.main import main

WRONG = [
    ("search", "m", "q", "--where", "lang"),
    ("search", "m", "q", "--where", "=en"),
    ("search", "m", "q", "--where", "lang=en", "--where", "lang=de"),
    ("search", "m", "q", "--device", "gpu"),
    ("search", "m", "q", "--device", "cuda:x"),
    ("search", "m", "q", "--dtype", "int8"),
    ("search", "m", "q", "--top-k", "0"),
    ("search", "m", "q", "--top", "3"),
    ("search", "m"),
    ("ask", "m", "q", "--temperature", "hot"),
    ("ask", "m", "q", "--temperature", "nan"),
    ("ask", "m", "q", "--top-p", "0"),
    ("ask", "m", "q", "--seed", "-1"),
    ("ask", "m", "q", "--max-new-tokens", "0"),
    ("ask", "m", "q", "--retrieval", "magic"),
    ("add", "m"),
    ("add", "m", ""),
    ("ask", "m", "q", "--model", ""),
    ("bench", "routing", "--model", ""),
    ("list", "m", "--limit", "-1"),
    ("nonsense",),
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_usage_is_one_line_and_code_2(msa, arguments):
    result = msa(*arguments)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert result.err.startswith("msa: ")


@pytest.mark.parametrize("command", [("list", "m"), ("eval", "ruler", "--out", "o"), ("eval", "ways")])
def test_an_unknown_option_points_to_the_help_of_its_command(msa, command):
    named = " ".join(word for word in command if word.isalpha() and len(word) > 1)
    result = msa(*command, "--nonsense", "1")
    assert (result.code, result.err) == (2, f"msa: unrecognized arguments: --nonsense 1; see 'msa {named} --help'\n")


def test_commands_without_a_model_take_its_options_and_say_that_they_do_not_use_them(msa, made_once):
    options = ["--model", "gone", "--device", "cuda:99", "--dtype", "float32"]
    for command in (["list", made_once], ["eval", "ways"]):
        assert msa(*command, *options).out == msa(*command).out != ""
        shown = msa(*command, "--help").out
        assert shown.index("without effect on this one:\n  --model") < shown.rindex("--dtype")
    assert msa("list", made_once, "--device", "gpu").code == 2
    assert msa("eval", "--model", "x", "ways").code == 2  # a task's options stand behind it
    assert "without effect" not in msa("ask", "--help").out + msa("bench", "--help").out


def test_without_a_command(msa):
    result = msa()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("usage: msa ")


def test_help_and_version(msa):
    assert msa("--version").out == f"msa {package.__version__}\n"
    for command in ("add", "ask", "search", "list", "show", "delete", "stats", "verify", "compact", "convert"):
        result = msa(command, "--help")
        assert (result.code, result.err) == (0, "")
        assert f"\n  msa {command} " in result.out[result.out.index("\nexample") :]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "m/x"), "m/x: No space left on device. Free disk space"),
        (PermissionError(errno.EACCES, "Permission denied", "m"), "m: Permission denied. Check the permissions"),
        (FileExistsError("m already exists"), "m already exists"),
        (ValueError("two\nlines"), "two lines"),
        (MemoryError(), "out of memory. "),
        (ZeroDivisionError("division by zero"), "unexpected ZeroDivisionError: division by zero. Run it again with"),
    ],
)
def test_every_error_is_one_line(msa, monkeypatch, error, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("msa.memory.Memory.open", fail)
    result = msa("stats", "m")
    assert (result.code, result.out, len(result.err.splitlines())) == (1, "", 1)
    assert result.err.startswith(f"msa: {line}")


def test_debug_shows_the_traceback(capsys, tmp_path):
    assert main(["stats", str(tmp_path / "gone"), "--debug"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("msa: no memory at ")


def test_a_missing_device(msa, made_once):
    result = msa("search", made_once, "moon", "--device", "cuda:99")
    assert result.code == 1
    assert result.err.startswith("msa: device 'cuda:99' was asked for")


@pytest.mark.parametrize("command", [("search", "moon"), ("add", "notes.txt")])
def test_variables_that_torchrun_did_not_set(msa, made_once, monkeypatch, command):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "abc")
    found = msa(command[0], made_once, *command[1:])
    assert (found.code, found.err) == (
        2, "msa: $WORLD_SIZE is 'abc', expected a number of processes; unset it, or start with torchrun\n"
    )  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = msa(command[0], made_once, *command[1:])
    assert found.code == 1
    assert "RANK, MASTER_ADDR, MASTER_PORT not set" in found.err
    assert "or unset WORLD_SIZE, which is 4" in found.err


def test_an_unknown_model(msa, made_once):
    result = msa("search", made_once, "moon", "--model", "nonsense")
    assert result.code == 1
    assert result.err.startswith("msa: no model 'nonsense'")


def test_verbose_leaves_no_trace(msa, made_once):
    logger = logging.getLogger("msa")
    before = logger.level, list(logger.handlers)
    assert msa("search", made_once, "moon", "--verbose").code == 0
    assert (logger.level, logger.handlers) == before


def test_warnings_are_plain_lines(msa, made_once, monkeypatch):
    monkeypatch.setattr("msa.memory.Memory.stats", lambda _: logging.getLogger("msa.bank").warning("look out") or {})
    assert msa("stats", made_once, "--json").err == "look out\n"
