import io
import math
import os
import pickle
import pickletools
import struct
import time
import tracemalloc
from collections import Counter, OrderedDict
from datetime import date
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa.errors import EvaluationError
from msa.evaluation.sets import plain_data
from msa.evaluation.sets.plain_data import read_plain_data

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=300),
)
KEYS = st.one_of(SCALARS, st.tuples(SCALARS, SCALARS))
VALUES = st.recursive(
    SCALARS,
    lambda part: st.one_of(
        st.lists(part, max_size=5),
        st.lists(part, max_size=5).map(tuple),
        st.dictionaries(KEYS, part, max_size=5),
        st.sets(KEYS, max_size=5),
        st.frozensets(SCALARS, max_size=5),
    ),
    max_leaves=20,
)


@pytest.fixture
def read(tmp_path):
    def read_bytes(data, **options):
        path = tmp_path / "x.pkl"
        path.write_bytes(data)
        return read_plain_data(path, **options)

    return read_bytes


def refused(read, data, **options):
    with pytest.raises(EvaluationError) as caught:
        read(data, **options)
    message = str(caught.value)
    assert "x.pkl" in message
    assert "Nothing of it was run or kept" in message
    assert len(message) < 500
    return message


@given(VALUES, st.sampled_from(PROTOCOLS))
def test_plain_data_comes_back_as_it_was(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "value.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    got = read_plain_data(path)
    assert got == value
    assert repr(got) == repr(pickle.loads(path.read_bytes()))  # types too: True is not 1, nor [] ()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_sets_are_made_of(read, protocol):
    shared = "a text that stands in many places"
    records = [{"query": f"q{n}", "reference_list": [shared, f"d{n}"], "answer": ["ä\n\\u0041€"]} for n in range(300)]
    value = {"questions": records, "again": records, "long": "x" * 100_000, "big": 2**1000, "pi": math.pi}
    assert read(pickle.dumps(value, protocol)) == value
    got = read(pickle.dumps([math.inf, math.nan, -0.0], protocol))
    assert (got[0], math.isnan(got[1]), math.copysign(1, got[2])) == (math.inf, True, -1)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes(read, protocol):
    value = [b"", b"abc", b"x" * 300, b"y" * 70_000]
    assert read(pickle.dumps(value, protocol)) == value


def test_texts_of_python_2(read):
    assert read(b"(lp0\nS'abc'\np1\naS\"it's\"\naI01\naL7L\na.") == ["abc", "it's", True, 7]
    assert read(b"]q\x00(U\x03abcT\x02\x00\x00\x00\xc3\xa4e.") == ["abc", "ä"]


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State:
    def __init__(self):
        self.text = "x"


class Slots(tuple):
    def __new__(cls):
        return super().__new__(cls, ("x",))


class WithId(pickle.Pickler):
    def persistent_id(self, obj):
        return "7" if isinstance(obj, State) else None


HOSTILE = {
    "os.system": Calls(os.system, "touch HACKED"),
    "eval": Calls(eval, "open('HACKED', 'w')"),
    "exec": Calls(exec, "open('HACKED', 'w')"),
    "getattr": Calls(getattr, "x", "upper"),
    "set called with a function's result": [Calls(set, Calls(os.system, "touch HACKED"))],
    "a class": State,
    "a function": os.system,
    "an object": State(),
    "a subclass": Slots(),
    "numpy array": np.arange(3),
    "numpy number": np.float64(1),
    "a counter": Counter("ab"),
    "an ordered dict": OrderedDict(a=1),
    "a date": date(2026, 1, 1),
    "a fraction": Fraction(1, 3),
    "a complex number": 1j,
    "a range": range(3),
    "an ellipsis": ...,
    "a bytearray": bytearray(b"x"),
    "an exception": ValueError("x"),
    "deep inside": {"a": [("b", {"c": Calls(os.system, "touch HACKED")})]},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HOSTILE)
def test_everything_else_is_refused(read, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "only plain data is read" in refused(read, pickle.dumps(HOSTILE[name], protocol))
    assert not (tmp_path / "HACKED").exists()


def test_the_name_that_is_asked_for_is_told(read):
    assert "posix.system" in refused(read, pickle.dumps(Calls(os.system, "x"), 2))
    assert "asks for builtins.eval" in refused(read, pickle.dumps(Calls(eval, "x"), 4))


def test_values_where_names_belong_are_not_written_out(read):
    doubled = b"]q\x000" + b"".join(b"]q%c(h%ch%ce0" % (n, n - 1, n - 1) for n in range(1, 21))
    for names in (b"h\x14\x8c\x04eval\x93.", b"\x8c\x08builtinsh\x14\x93."):
        assert len(doubled + names) < 250
        message = refused(read, doubled + names)
        assert "list" in message
        assert "only plain data is read" in message


@pytest.mark.parametrize("nested", [b"]" * 100_000 + b"a" * 99_999, b")" + b"\x85" * 100_000], ids=["lists", "tuples"])
def test_deep_values_where_names_belong_are_refused_as_others_are(read, nested):
    assert "only plain data is read" in refused(read, nested + b"\x8c\x04eval\x93.")
    assert "only plain data is read" in refused(read, b"\x8c\x04eval" + nested + b"\x93.")


def test_going_too_deep_is_damage_like_any_other(read, monkeypatch):
    def deeper(reader):
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setitem(plain_data._ACTIONS, ord("N"), deeper)
    assert "is damaged at byte 1 (RecursionError: maximum recursion depth exceeded)" in refused(read, b"]Na.")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_persistent_ids(read, protocol):
    out = io.BytesIO()
    WithId(out, protocol).dump([State()])
    assert "holds a persistent id" in refused(read, out.getvalue())


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x01.",  # extensions
        b"\x83\x01\x00.",
        b"\x84\x01\x00\x00\x00.",
        b"(ios\nsystem\n.",  # old instances
        b"(cos\nsystem\nS'x'\no.",
        b"\x80\x05\x97.",  # buffers outside the file
        b"]\x98.",
        b"\x80\x04]K\x01\x92.",
        b"cbuiltins\nset\n]b.",  # state for a container
        b"\x8c\x08builtins\x8c\x04eval\x93.",
        b"K\x01\x8c\x04eval\x93.",  # the module is a number
        b"]\x8c\x03set\x93.",
        b"cbuiltins\nset.evil\n)R.",
        b"cbuiltins.set\n__class__\n)R.",
        b"K\x01)R.",  # a number called
        b"cbuiltins\nset\n(]]tR.",  # two arguments
        b"cbuiltins\nset\n]R.",  # arguments that are no tuple
        b"\xff.",
    ],
)
def test_single_instructions(read, data):
    assert "only plain data is read" in refused(read, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"(.",
        b"]",
        b"]]K\x01.",  # two values
        b"cbuiltins\nset\n.",  # a name is no value
        b"]cbuiltins\nset\na.",
        b"(cbuiltins\nset\nt.",
        b"]0a.",
        b"K\x01a.",
        b"K\x01K\x02a.",  # append to a number
        b"(K\x01e.",
        b"e.",
        b"}(K\x01u.",  # a key without a value
        b"}](s.",
        b"]h\x09.",  # a memo that is not there
        b"g7\n.",
        b"gx\n.",
        b"q\x00.",
        b"(q\x00h\x000.",
        b"Ix\n.",
        b"Fx\n.",
        b"F" + b"x" * 10_000 + b"\n.",  # float() repeats all of it
        b"I5",
        b"V\\ud8\n.",
        b"S'a\n.",
        b"S'\\x41'\n.",
        b"X\x02\x00\x00\x00\xff\xff.",
        b"X\xff\xff\xff\xff.",  # 4 GB in 6 bytes
        b"\x8d" + struct.pack("<Q", 2**63) + b".",
        b"\x8e" + struct.pack("<Q", 2**64 - 1) + b".",
        b"T\xff\xff\xff\xff.",  # a negative length
        b"\x8b\xff\xff\xff\xff.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"}]K\x01s.",  # a list as a key
        b"\x8f(]\x90.",
        b"})\x85\x85K\x01s.",
        b"\x80\x06].",
        b"cbuiltins\nset\nK\x01\x85R.",
        b"].].",  # goes on after its end
        b"c\xff\nset\n.",
    ],
)
def test_damaged_files(read, data):
    refused(read, data)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_plain(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "noise.pkl"
    path.write_bytes(data + b".")
    try:
        value = read_plain_data(path)
    except EvaluationError:
        return
    assert repr(value) is not None


@given(st.data())
def test_a_changed_byte_gives_an_error_or_plain_data(tmp_path_factory, data):
    whole = pickle.dumps([{"query": "q" * 5, "reference_list": ["d"], "answer": {1, 2}}] * 2, 4)
    at = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "changed.pkl"
    path.write_bytes(whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :])
    try:
        value = read_plain_data(path)
    except EvaluationError:
        return
    assert type(value) in (list, tuple, dict, set, frozenset, str, bytes, int, float, bool, type(None))


@pytest.mark.parametrize("cut", [1, 10, 50])
def test_a_file_that_was_cut_off(read, cut):
    refused(read, pickle.dumps([{"query": "a question of some length", "answer": ["x"]}], 4)[:-cut])


@pytest.mark.parametrize(
    "nested",
    [
        lambda depth: b"]" * depth + b"a" * (depth - 1) + b".",
        lambda depth: b"(" * depth + b"t" * depth + b".",
        lambda depth: b")" + b"\x85" * (depth - 1) + b".",
        lambda depth: b"}N" * (depth - 1) + b"}" + b"s" * (depth - 1) + b".",
    ],
    ids=["lists", "tuples", "tuples of one", "dicts"],
)
def test_nesting_is_limited(read, nested):
    assert read(nested(100)) is not None
    for depth in (101, 100_000):
        assert "more than 100 deep" in refused(read, nested(depth))


def test_long_tuples_are_no_keys(read):
    """Each use of one as a key hashes all of it: a small file would keep the reader busy for hours."""
    assert read(pickle.dumps({(1,) * 64: "x"})) == {(1,) * 64: "x"}
    assert "a tuple of 65 as a key" in refused(read, pickle.dumps({(1,) * 65: "x"}))


def test_a_container_inside_itself(read):
    loop = []
    loop.append(loop)
    assert "contains itself" in refused(read, pickle.dumps(loop))
    loop = {"a": []}
    loop["a"].append((loop,))
    assert "contains itself" in refused(read, pickle.dumps(loop))


def test_repeated_parts_may_not_grow_without_limit(read):
    bomb = ["x" * 100]
    for _ in range(60):
        bomb = [bomb, bomb]
    started = time.monotonic()
    assert "grows beyond" in refused(read, pickle.dumps(bomb))
    assert time.monotonic() - started < 2
    shared = ["x" * 100] * 50
    assert read(pickle.dumps(shared), max_bytes=6_000) == shared
    refused(read, pickle.dumps(shared), max_bytes=5_000)


def test_many_sets_from_one_list_do_not_fill_the_memory(read):
    remember_list = b"](" + b"K\x01" * 50_000 + b"eq\x000"
    remember_name = b"cbuiltins\nfrozenset\nq\x010"
    bomb = remember_list + remember_name + b"(" + b"h\x01h\x00\x85R" * 20_000 + b"t."
    started = time.monotonic()
    tracemalloc.start()
    assert "fills more sets than its size allows" in refused(read, bomb)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert time.monotonic() - started < 5


def test_the_size_of_the_file_is_limited(read, tmp_path):
    data = pickle.dumps("x" * 1_000)
    assert "are allowed" in refused(read, data, max_bytes=1_000)
    huge = tmp_path / "huge.pkl"
    with open(huge, "wb") as file:
        file.truncate(5 * 2**30)  # takes no room
    with pytest.raises(EvaluationError, match=r"5,368,709,120 bytes, 4,294,967,296 are allowed"):
        read_plain_data(huge)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.pkl"):
        with pytest.raises(EvaluationError, match="cannot be read"):
            read_plain_data(path)


def test_every_instruction_is_known_by_name():
    codes = {ord(code.code) for code in pickletools.opcodes} - {ord(".")}
    assert codes == plain_data._ACTIONS.keys() | plain_data._REFUSED.keys()
    assert not plain_data._ACTIONS.keys() & plain_data._REFUSED.keys()
