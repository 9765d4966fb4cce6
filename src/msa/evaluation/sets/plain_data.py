"""Read Python's serialised plain data without the machinery that can run code.

The published sets of the paper are files of Python's own serialisation, whose reader calls whatever function a file
names. This one knows plain containers, texts, numbers, bytes and None, and has no way to look up a name: what asks for
a class or function is refused, whichever it is (``set`` and ``frozenset``, which old protocols write that way, are two
fixed words here). The format is that of Python's ``pickletools``, protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msa.errors import EvaluationError

MAX_BYTES = 4 * 2**30
MAX_DEPTH = 100
_MAX_INT_BYTES = 255
_MOST_IN_KEY = 64

_MARK = object()
# what an old protocol names before it makes one; any other name is refused
_SETS: Mapping[tuple[str, str], type] = {
    (module, name): kind
    for module in ("builtins", "__builtin__")
    for name, kind in (("set", set), ("frozenset", frozenset))
}
_REFUSED: Mapping[int, str] = {
    ord("P"): "a persistent id",
    ord("Q"): "a persistent id",
    ord("b"): "an object's state",
    ord("i"): "an instance of a class",
    ord("o"): "an instance of a class",
    0x81: "an instance of a class",
    0x92: "an instance of a class",
    0x82: "an extension",
    0x83: "an extension",
    0x84: "an extension",
    0x96: "a bytearray",
    0x97: "an outside buffer",
    0x98: "an outside buffer",
}
_DAMAGE = (ValueError, UnicodeError, LookupError, AttributeError, TypeError, RecursionError, struct.error)


class _Refusal(Exception):
    """What is wrong, as the end of a sentence."""


def read_plain_data(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a file, made of lists, tuples, dicts, sets, frozensets, str, bytes, int, float, bool and None.

    Args:
        path: the file.
        max_bytes: of the file, and of the value written out in full, as parts of it may stand in many places.

    Raises:
        EvaluationError: a file that cannot be read or is too large, names a class or function, nests containers more
            than 100 deep or into themselves, grows beyond ``max_bytes``, or is damaged; nothing of it was run.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise _Refusal(f"has {size:,} bytes, {max_bytes:,} are allowed")
        value = _Reader(path.read_bytes()).read()
        _check_size(value, max_bytes)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror or error})") from error
    except _Refusal as error:
        raise EvaluationError(f"{path} {error}. Nothing of it was run or kept") from error
    return value


class _Reader:
    """A stack, a memo, and a method for every instruction that makes plain data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def read(self) -> Any:
        while True:
            start, code = self._at, self.take(1)[0]
            if code == ord("."):
                break
            action = _ACTIONS.get(code)
            if action is None:
                what = f"holds {_REFUSED[code]}" if code in _REFUSED else f"has the unknown instruction {code:#04x}"
                raise _Refusal(f"{what} at byte {start}; only plain data is read")
            try:
                action(self)
            except _DAMAGE as error:
                raise _Refusal(f"is damaged at byte {start} ({type(error).__name__}: {error!s:.200})") from error
        if self._at != len(self._data):
            raise _Refusal(f"goes on after its end at byte {self._at}")
        if len(self._stack) != 1 or self._stack[0] is _MARK or isinstance(self._stack[0], type):
            raise _Refusal("is damaged: it does not end with one value")
        return self._stack[0]

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise _Refusal(
                f"is cut off: {count:,} bytes are needed from byte {self._at} on, it has {len(self._data):,}"
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> bytes:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise _Refusal(f"is cut off: the line from byte {self._at} on has no end")
        return self.take(end + 1 - self._at)[:-1]

    def text(self, size: int) -> str:
        # lone surrogates are written out by Python, so they are read; the reader of the records replaces them
        return self.take(self.number(size)).decode("utf-8", "surrogatepass")

    def data(self, size: int) -> bytes:
        return self.take(self.number(size))

    def long(self, size: int) -> int:
        length = self.number(size)
        if length > _MAX_INT_BYTES:
            raise _Refusal(f"holds a number of {length:,} bytes; {_MAX_INT_BYTES} are allowed")
        return self.number(length, signed=True)

    def decimal(self) -> int | bool:
        line = self.line()
        if line in (b"00", b"01"):  # how protocol 0 writes truth values
            return line == b"01"
        if len(line) > 2 * _MAX_INT_BYTES:
            raise _Refusal(f"holds a number of {len(line):,} digits")
        return int(line.rstrip(b"L"))

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("no value where one is needed")
        return value

    def plain(self) -> Any:
        value = self.pop()
        if isinstance(value, type):
            raise ValueError("the name of a container where a value is needed")
        return value

    def last(self, kind: type) -> Any:
        """The container on top of the stack, which stays there."""
        value = self._stack[-1]
        if type(value) is not kind:
            raise ValueError(f"expected a {kind.__name__}, found {type(value).__name__}")
        return value

    def marked(self) -> list[Any]:
        """Everything since the last mark, which goes too."""
        index = len(self._stack) - 1
        while self._stack[index] is not _MARK:
            if index <= 0:
                raise ValueError("no mark")
            index -= 1
        values = self._stack[index + 1 :]
        del self._stack[index:]
        if any(isinstance(value, type) for value in values):
            raise ValueError("the name of a container where a value is needed")
        return values

    def pack(self, count: int) -> None:
        values = [self.plain() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def pairs(self, values: list[Any]) -> dict[Any, Any]:
        if len(values) % 2:
            raise ValueError("a key without a value")
        return dict(zip(map(_hashable, values[::2]), values[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.plain(), self.plain()
        self.last(dict)[_hashable(key)] = value

    def append(self) -> None:
        value = self.plain()
        self.last(list).append(value)

    def many(self, kind: type) -> None:
        """Add everything since the mark to the container below it."""
        values = self.marked()
        container = self.last(kind)
        if isinstance(container, dict):
            container.update(self.pairs(values))
        elif isinstance(container, list):
            container.extend(values)
        else:
            container.update(map(_hashable, values))

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            # what stands there is not written out: a few bytes make a list whose text would fill the memory
            kinds = f"{type(module).__name__} and {type(name).__name__}"
            raise _Refusal(f"asks for what {kinds} name, not two texts; only plain data is read")
        kind = _SETS.get((module, name))
        if kind is None:
            raise _Refusal(f"asks for {module:.60}.{name:.60}; only plain data is read")
        self.push(kind)

    def make_set(self) -> None:
        arguments, kind = self.plain(), self.pop()
        if kind not in (set, frozenset) or type(arguments) is not tuple or len(arguments) > 1:
            raise _Refusal("calls something that is no plain container; only plain data is read")
        items = arguments[0] if arguments else []
        if type(items) not in (list, tuple, set, frozenset):
            raise ValueError(f"a set of a {type(items).__name__}")
        # a set is filled from a list that is in the file once; many sets filled from the same one would fill the RAM
        self._copied += len(items)
        if self._copied > len(self._data):
            raise _Refusal("fills more sets than its size allows")
        self.push(kind(map(_hashable, items)))

    def remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]
        if self._stack[-1] is _MARK:
            raise ValueError("a mark is no value")

    def recall(self, index: int) -> None:
        self.push(self._memo[index])

    def memoize(self) -> None:
        self.remember(len(self._memo))

    def protocol(self) -> None:
        version = self.number(1)
        if version > 5:
            raise _Refusal(f"is of protocol {version}; 0 to 5 are read")

    def repeat(self) -> None:
        value = self.pop()
        self.push(value)
        self.push(value)

    def drop(self) -> None:
        self._stack.pop()

    def old_string(self, raw: bytes) -> None:
        self.push(raw.decode("utf-8"))


def _hashable(value: Any) -> Any:
    """A key or member; deeper ones than tuples of plain values are refused, as hashing them goes down without limit.

    So are long tuples: each use hashes all of one.
    """
    if type(value) is tuple and len(value) > _MOST_IN_KEY:
        raise ValueError(f"a tuple of {len(value):,} as a key or in a set")
    for part in value if type(value) is tuple else (value,):
        if type(part) not in (str, bytes, int, float, bool, type(None)):
            raise ValueError(f"a {type(part).__name__} as a key or in a set")
    return value


def _quoted(reader: _Reader) -> None:
    line = reader.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"') or b"\\" in line:
        raise ValueError("a quoted string of Python 2")
    reader.old_string(line[1:-1])


_ACTIONS: Mapping[int, Callable[[_Reader], Any]] = {
    0x80: _Reader.protocol,
    0x95: lambda r: r.number(8),
    ord("("): lambda r: r.push(_MARK),
    ord("0"): _Reader.drop,
    ord("1"): _Reader.marked,
    ord("2"): _Reader.repeat,
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("I"): lambda r: r.push(r.decimal()),
    ord("L"): lambda r: r.push(r.decimal()),
    ord("J"): lambda r: r.push(r.number(4, signed=True)),
    ord("K"): lambda r: r.push(r.number(1)),
    ord("M"): lambda r: r.push(r.number(2)),
    0x8A: lambda r: r.push(r.long(1)),
    0x8B: lambda r: r.push(r.long(4)),
    ord("F"): lambda r: r.push(float(r.line())),
    ord("G"): lambda r: r.push(struct.unpack(">d", r.take(8))[0]),
    ord("S"): _quoted,
    ord("T"): lambda r: r.old_string(r.data(4)),
    ord("U"): lambda r: r.old_string(r.data(1)),
    ord("V"): lambda r: r.push(r.line().decode("raw-unicode-escape")),
    ord("X"): lambda r: r.push(r.text(4)),
    0x8C: lambda r: r.push(r.text(1)),
    0x8D: lambda r: r.push(r.text(8)),
    ord("B"): lambda r: r.push(r.data(4)),
    ord("C"): lambda r: r.push(r.data(1)),
    0x8E: lambda r: r.push(r.data(8)),
    ord("]"): lambda r: r.push([]),
    ord("}"): lambda r: r.push({}),
    ord(")"): lambda r: r.push(()),
    0x8F: lambda r: r.push(set()),
    ord("l"): lambda r: r.push(r.marked()),
    ord("d"): lambda r: r.push(r.pairs(r.marked())),
    ord("t"): lambda r: r.push(tuple(r.marked())),
    0x91: lambda r: r.push(frozenset(map(_hashable, r.marked()))),
    0x85: lambda r: r.pack(1),
    0x86: lambda r: r.pack(2),
    0x87: lambda r: r.pack(3),
    ord("a"): _Reader.append,
    ord("e"): lambda r: r.many(list),
    ord("s"): _Reader.set_item,
    ord("u"): lambda r: r.many(dict),
    0x90: lambda r: r.many(set),
    ord("c"): lambda r: r.name(r.line().decode(), r.line().decode()),
    0x93: lambda r: r.name(*reversed((r.plain(), r.plain()))),
    ord("R"): _Reader.make_set,
    ord("p"): lambda r: r.remember(int(r.line())),
    ord("q"): lambda r: r.remember(r.number(1)),
    ord("r"): lambda r: r.remember(r.number(4)),
    0x94: _Reader.memoize,
    ord("g"): lambda r: r.recall(int(r.line())),
    ord("h"): lambda r: r.recall(r.number(1)),
    ord("j"): lambda r: r.recall(r.number(4)),
}


_CONTAINERS = (list, tuple, dict, set, frozenset)


def _check_size(value: Any, max_bytes: int) -> None:
    """Refuse a value that holds itself, is nested too deeply, or is too large when written out in full."""
    sizes: dict[int, int] = {}  # of finished containers, by identity: a part that stands in many places is walked once
    open_ids: set[int] = set()
    stack: list[tuple[Any, bool]] = [(value, False)] if isinstance(value, _CONTAINERS) else []
    while stack:
        item, finished = stack.pop()
        if not finished and id(item) in sizes:
            continue
        parts = [*item.keys(), *item.values()] if isinstance(item, dict) else item
        if finished:
            open_ids.discard(id(item))
            sizes[id(item)] = 1 + sum(sizes.get(id(part), 0) or _size(part) for part in parts)
            if sizes[id(item)] > max_bytes:
                raise _Refusal(f"grows beyond {max_bytes:,} bytes when its repeated parts are written out")
            continue
        if id(item) in open_ids:
            raise _Refusal("holds a container that contains itself")
        open_ids.add(id(item))
        if len(open_ids) > MAX_DEPTH:
            raise _Refusal(f"nests containers more than {MAX_DEPTH} deep")
        stack.append((item, True))
        stack.extend((part, False) for part in parts if isinstance(part, _CONTAINERS))


def _size(part: Any) -> int:
    return 1 + len(part) if isinstance(part, str | bytes) else 8
