"""API keys: where they come from, what each may do, and comparing them without telling how nearly one was guessed."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from msa.serving.errors import ServingError

logger = logging.getLogger(__name__)

VARIABLE = "MSA_API_KEYS"
_HASHED = "sha256:"
_LEAST_CHARACTERS = 8
_LINE = 'KEY [MEMORY,MEMORY…|*] [read], for instance "sk-1f83c9a0 notes,work-* read"'


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key; only its hash is kept.

    Attributes:
        digest: SHA-256 of the key.
        name: what logs call it.
        memories: names of the memories it opens, ``*`` standing for any characters.
        read_only: whether it may change nothing.
    """

    digest: bytes
    name: str
    memories: tuple[str, ...] = ("*",)
    read_only: bool = False

    @property
    def is_unrestricted(self) -> bool:
        """Whether it opens every memory."""
        return "*" in self.memories

    def opens(self, memory: str) -> bool:
        """Whether it opens a memory of this name."""
        return any(fnmatchcase(memory, pattern) for pattern in self.memories)


ANYBODY = ApiKey(digest=b"", name="anybody")


def key_digest(secret: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def find_key(keys: Iterable[ApiKey], secret: str) -> ApiKey | None:
    """The key that was presented; None: none of them. Takes the same time whichever it is."""
    presented = key_digest(secret)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, presented):
            found = key
    return found


def keys_from_environment(environment: Mapping[str, str] = os.environ) -> tuple[ApiKey, ...]:
    """Keys in ``MSA_API_KEYS``, separated by commas; each opens everything.

    Raises:
        ServingError: a key that is too short, or none where the variable is not empty.
    """
    listed = environment.get(VARIABLE, "")
    secrets = list(filter(None, (secret.strip() for secret in listed.split(","))))
    if listed and not secrets:  # whoever sets it wants a closed server
        raise ServingError(f"{VARIABLE} holds no key; list keys separated by commas, or unset it for an open server")
    return tuple(_key(secret, f"{VARIABLE} {number}", VARIABLE) for number, secret in enumerate(secrets, start=1))


def read_keys(path: str | Path) -> tuple[ApiKey, ...]:
    """Keys of a file, one a line: the key or ``sha256:`` and its SHA-256 in hex, memories, and ``read``.

    Empty lines and lines that begin with ``#`` are passed over.

    Raises:
        ServingError: the file cannot be read, can be changed by anybody, holds no key or a broken line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ServingError(f"the keys file {path} cannot be read ({reason})") from error
    if mode & stat.S_IWOTH:
        raise ServingError(f"the keys file {path} can be changed by anybody on this machine. Run: chmod 600 {path}")
    if mode & stat.S_IROTH:
        logger.warning("the keys file %s can be read by anybody on this machine; chmod 600 keeps it to you", path)
    keys = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            keys.append(_from_line(line.split(), number, f"{path}, line {number}"))
    if not keys:
        raise ServingError(f"the keys file {path} holds no key; write one a line: {_LINE}")
    if len({key.digest for key in keys}) < len(keys):
        raise ServingError(f"the keys file {path} names one key twice; give each one line")
    return tuple(keys)


def _from_line(words: list[str], number: int, where: str) -> ApiKey:
    secret, *rest = words
    if rest == ["read"]:  # whoever writes this hardly means a memory of this name, and that with write permission
        raise ServingError(
            f"{where}: 'read' alone may be a right or a memory; write '* read' for a key that reads everything, "
            "'read,' for one that opens the memory 'read'"
        )
    read_only = rest[-1:] == ["read"] and len(rest) > 1
    memories = rest[:-1] if read_only else rest
    if len(memories) > 1 or any(not re.fullmatch(r"[A-Za-z0-9_.*,-]+", names) for names in memories):
        raise ServingError(f"{where}: expected {_LINE}")
    names = tuple(filter(None, ",".join(memories).split(","))) or ("*",)
    return _key(secret, f"key {number}", where, names, read_only)


def _key(secret: str, name: str, where: str, memories: tuple[str, ...] = ("*",), read_only: bool = False) -> ApiKey:
    if secret.startswith(_HASHED):
        if not re.fullmatch("[0-9a-fA-F]{64}", secret.removeprefix(_HASHED)):
            raise ServingError(f"{where}: after {_HASHED} there must be 64 hexadecimal digits")
        digest = bytes.fromhex(secret.removeprefix(_HASHED))
    elif len(secret) < _LEAST_CHARACTERS:
        raise ServingError(f"{where}: a key needs at least {_LEAST_CHARACTERS} characters")
    else:
        digest = key_digest(secret)
    return ApiKey(digest=digest, name=name, memories=memories, read_only=read_only)
