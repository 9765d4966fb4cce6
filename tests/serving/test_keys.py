"""Keys files and the environment."""

import hashlib
import os

import pytest

from msa.serving import ServingError
from msa.serving.keys import find_key, keys_from_environment, read_keys


def write(path, text, mode=0o600):
    path.write_text(text)
    os.chmod(path, mode)
    return path


def test_a_keys_file(tmp_path):
    digest = hashlib.sha256(b"sk-hashed-key").hexdigest()
    keys = read_keys(
        write(
            tmp_path / "keys",
            f"# ours\n\nsk-everything\nsk-two-memories a,b-*\nsk-reader-of-a a read\nsha256:{digest} * read\n",
        )
    )
    assert [key.memories for key in keys] == [("*",), ("a", "b-*"), ("a",), ("*",)]
    assert [key.read_only for key in keys] == [False, False, True, True]
    assert find_key(keys, "sk-hashed-key") is keys[3]
    assert find_key(keys, "sk-everything") is keys[0]
    for wrong in ("", "sk-everythin", "sk-everything ", digest, f"sha256:{digest}", "é\udcff"):
        assert find_key(keys, wrong) is None
    assert keys[1].opens("b-1")
    assert not keys[1].opens("B-1")
    assert not keys[1].opens("c")
    assert "everything" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("short\n", "at least 8 characters"),
        ("sk-long-enough a read more\n", "line 1: expected KEY"),
        ("sk-long-enough ../etc\n", "line 1: expected KEY"),
        ("sk-long-enough read\n", "line 1: 'read' alone .* write '\\* read'"),
        ("sha256:abc\n", "64 hexadecimal digits"),
        ("sk-long-enough\nsk-long-enough a\n", "names one key twice"),
    ],
)
def test_broken_files_are_named_and_keys_are_not(tmp_path, text, message):
    with pytest.raises(ServingError, match=message) as error:
        read_keys(write(tmp_path / "keys", text))
    assert "sk-long" not in str(error.value)


def test_files_that_cannot_be_trusted(tmp_path, caplog):
    with pytest.raises(ServingError, match="chmod 600"):
        read_keys(write(tmp_path / "keys", "sk-long-enough\n", 0o666))
    read_keys(write(tmp_path / "keys", "sk-long-enough\n", 0o644))
    assert "can be read by anybody" in caplog.text
    with pytest.raises(ServingError, match="cannot be read"):
        read_keys(tmp_path / "missing")


def test_the_environment():
    keys = keys_from_environment({"MSA_API_KEYS": " sk-first-key, ,sk-second-key"})
    assert [key.is_unrestricted for key in keys] == [True, True]
    assert keys_from_environment({}) == keys_from_environment({"MSA_API_KEYS": ""}) == ()
    for listed in (" ", " , "):
        with pytest.raises(ServingError, match="MSA_API_KEYS holds no key"):
            keys_from_environment({"MSA_API_KEYS": listed})
    with pytest.raises(ServingError, match="MSA_API_KEYS: a key needs"):
        keys_from_environment({"MSA_API_KEYS": "x"})
