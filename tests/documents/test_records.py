import codecs
import datetime
import itertools
import tracemalloc

import pytest

from msa.documents.formats import decode
from msa.documents.readers import documents_from_mappings
from msa.documents.records import _decoded_lines, read_jsonl
from msa.documents.types import Document
from msa.errors import DocumentError


def test_mappings_documents_and_texts():
    items = [
        {"id": 7, "text": "a\r\nb\0", "metadata": {"n": 1}, "title": "T"},
        Document(id="d", text="\ud83d\ude00\udc00", metadata={"tags": ("x", "y")}),
        "bare",
        {"text": "bare", "id": None, "metadata": None},
    ]
    documents = list(documents_from_mappings(items))
    assert documents[0] == Document(id="7", text="a\nb", metadata={"n": 1, "title": "T"})
    assert documents[1] == Document(id="d", text="😀\ufffd", metadata={"tags": ["x", "y"]})
    assert documents[2] == documents[3]
    assert documents[2].id.startswith("sha256-")


def test_metadata_is_a_copy():
    metadata = {"list": [1]}
    (document,) = documents_from_mappings([{"text": "a", "metadata": metadata}])
    metadata["list"].append(2)
    assert document.metadata == {"list": [1]}


def test_surrogates_in_ids_and_metadata():
    (document,) = documents_from_mappings([{"id": "a\ud800", "text": "", "metadata": {"k\udc00": ["v\ud800"]}}])
    assert (document.id, document.metadata) == ("a\ufffd", {"k\ufffd": ["v\ufffd"]})


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, "upload: item 1: expected an object such as .*, found a number"),
        ({"body": "b"}, r'upload: item 1: has no "text" \(its keys: "body"\)'),
        ({}, r'has no "text" \(its keys: none\)'),
        ({"text": b"b"}, '"text" is of type bytes. Give it as a string'),
        ({"text": "a", "id": 1.5}, '"id" is a number'),
        ({"text": "a", "metadata": "m"}, '"metadata" is a string'),
        ({"text": "a", "when": datetime.date(2026, 1, 1)}, "cannot be stored as JSON .*date is not JSON serializable"),
        (Document(id="", text="a"), '"id" is an empty string'),
        ({"text": "a", "score": float("nan")}, r"cannot be stored as JSON \(nan is not a number of JSON\)"),
        (Document(id="a", text="a", metadata={"k": [float("-inf")]}), r"\(-inf is not a number of JSON\)"),
        ({"text": "a", "metadata": {"n": 10**5000}}, r"limit \(4300 digits\) for integer string conversion\)\. Use"),
    ],
)
def test_an_item_in_error_is_named_by_its_position(item, message):
    documents = documents_from_mappings(["fine", item], source="upload")
    assert next(documents).text == "fine"
    with pytest.raises(DocumentError, match=message):
        next(documents)


def test_metadata_that_contains_itself():
    metadata = {}
    metadata["self"] = metadata
    with pytest.raises(DocumentError, match="cannot be stored as JSON"):
        list(documents_from_mappings([{"text": "a", "metadata": metadata}]))


@pytest.mark.parametrize("items", ["a text", {"text": "a"}, Document(id="a", text="a")])
def test_one_document_instead_of_a_list_is_refused(items):
    with pytest.raises(TypeError, match="put it into a list"):
        documents_from_mappings(items)


def test_items_are_checked_one_by_one():
    def endless():
        while True:
            yield "text"

    assert next(documents_from_mappings(endless())).text == "text"


@pytest.mark.parametrize("levels", [100, 200, 950, 100_000])
def test_metadata_nested_too_deeply(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    with pytest.raises(DocumentError, match="item 0.*nested more than 100 levels deep"):
        list(documents_from_mappings([{"text": "a", "metadata": {"k": value}}]))


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "[" * 101 + "]" * 101])
def test_lines_with_values_that_cannot_be_kept(value):
    lines = [b'{"text": "fine"}', b'{"text": "a", "metadata": {"k": %s}}' % value.encode()]
    documents = read_jsonl(lines, "a.jsonl")
    assert next(documents).text == "fine"
    with pytest.raises(DocumentError, match=r"a\.jsonl, line 2: \"metadata\" cannot be stored as JSON"):
        next(documents)


UNITS = ["a", "\n", "\r\n", "\r", "\u0a0a", "\u000a\u0a00", "\u0d0d", "😀", "\ufeff", "\ud83d", "\ude00", "\ufffd"]


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("tail", [b"", b"x"], ids=["whole", "half a character"])
def test_utf16_is_decoded_piece_by_piece_as_it_would_be_as_a_whole(order, tail):
    mark = {"le": codecs.BOM_UTF16_LE, "be": codecs.BOM_UTF16_BE}[order]
    for units in itertools.product(UNITS, repeat=3):
        data = mark + "".join(units).encode(f"utf-16-{order}", "surrogatepass") + tail
        text, decoding = decode(data)
        for cut in range(3, len(data) + 1):
            found = [*_decoded_lines([data[:cut], data[cut:]], None)]
            assert [line for line, _ in found] == text.split("\n"), (data, cut)
            assert any(flag for _, flag in found) == bool(decoding)


def test_only_the_lines_that_had_invalid_utf16_say_so():
    lines = ['{"text": "a"}\n', '{"text": "\ud800"}\n', '{"text": "\ufffd"}\n']
    data = codecs.BOM_UTF16_LE + "".join(lines).encode("utf-16-le", "surrogatepass")
    documents = [*read_jsonl(data.splitlines(keepends=True), "a.jsonl")]
    assert [document.text for document in documents] == ["a", "\ufffd", "\ufffd"]
    assert [document.metadata for document in documents] == [{}, {"decoding": "utf-16 with replacements"}, {}]


def test_utf16_takes_no_more_memory_than_a_line():
    line = ('{"text": "' + "x" * 10_000 + '"}\n').encode("utf-16-le")
    pieces = itertools.chain([codecs.BOM_UTF16_LE], itertools.repeat(line, 500))
    tracemalloc.start()
    try:
        assert sum(len(document.text) for document in read_jsonl(pieces, "a.jsonl")) == 5_000_000
        assert tracemalloc.get_traced_memory()[1] < 20 * len(line)
    finally:
        tracemalloc.stop()


def test_a_line_of_utf16_that_does_not_end_is_refused():
    endless = itertools.chain([codecs.BOM_UTF16_LE + b'{\0\n\0{\0"\0'], itertools.repeat("\u0a0a".encode("utf-16-le")))
    documents = read_jsonl(endless, "a.jsonl", max_characters=1000)
    with pytest.raises(DocumentError, match="a.jsonl, line 1: not JSON"):
        next(documents)
    endless = itertools.chain([codecs.BOM_UTF16_LE + b"\n\0"], itertools.repeat("\u0a0a".encode("utf-16-le")))
    with pytest.raises(DocumentError, match=r"a\.jsonl, line 2: is longer than 1,000 characters"):
        next(read_jsonl(endless, "a.jsonl", max_characters=1000))
