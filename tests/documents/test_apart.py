"""A PDF or HTML page read in a process of its own: the same text and reasons, and an end to what has none."""

import os
import time

import pytest
from pdf_files import pdf, slow_pdf

from msa.documents import apart
from msa.documents.apart import extract_apart
from msa.documents.formats import NotTextError, extract, needs_limits


def saved(folder, data):
    file = folder / "part-1"
    file.write_bytes(data)
    return file


def reason_of(read, *args):
    with pytest.raises(NotTextError) as caught:
        read(*args)
    return str(caught.value)


def test_the_text_is_that_of_reading_in_place(tmp_path):
    data = pdf("One page", "and another", title="A title")
    found = extract_apart(saved(tmp_path, data), "x.pdf", 60.0)
    assert found == extract(data, "x.pdf")
    assert found.text == "One page\n\nand another"
    assert found.title == "A title"
    assert found.metadata == {"pages": 2}


def test_so_is_that_of_a_page(tmp_path):
    data = "<title>A title</title><h1>Heading</h1><p>caf\xe9<ul><li>one".encode("latin-1")
    found = extract_apart(saved(tmp_path, data), "x.HTML", 60.0)
    assert found == extract(data, "x.HTML")
    assert found.text == "Heading\n\ncafé\n\n- one"
    assert (found.title, found.metadata) == ("A title", {"decoding": "windows-1252"})


@pytest.mark.parametrize(
    "data",
    [b"", b"%PDF-1.4 broken", pdf("", ""), pdf("secret", password="x")],
    ids=["empty", "broken", "scan", "locked"],
)
def test_so_are_the_reasons_why_there_is_none(tmp_path, data):
    assert reason_of(extract_apart, saved(tmp_path, data), "x.pdf", 60.0) == reason_of(extract, data, "x.pdf")


def test_what_never_ends_is_ended(tmp_path):
    os.mkfifo(tmp_path / "endless")  # nobody writes to it
    started = time.monotonic()
    reason = reason_of(extract_apart, tmp_path / "endless", "x.pdf", 1.5)
    assert reason == "took longer than 1.5 s to read. Send its text instead: pdftotext IN.pdf OUT.txt"
    assert time.monotonic() - started < 30


def test_what_takes_too_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "MAX_BYTES", 16 << 20)  # less than Python itself needs for pypdf
    assert "within 16 MiB of memory" in reason_of(extract_apart, saved(tmp_path, pdf("One page")), "x.pdf", 60.0)


def test_a_small_file_can_take_long(tmp_path):
    """Why there are limits: no file size protects from it."""
    data = slow_pdf()
    assert len(data) < 100_000
    assert "took longer than 1 s" in reason_of(extract_apart, saved(tmp_path, data), "x.pdf", 1.0)


def test_so_can_a_small_page(tmp_path):
    reason = reason_of(extract_apart, saved(tmp_path, b"<a " * 60_000), "x.html", 1.0)
    assert reason == "took longer than 1 s to read. Send its text instead: pandoc -t plain -o OUT.txt IN.html"


@pytest.mark.parametrize(("name", "wanted"), [("a.pdf", True), ("a.XHTML", True), ("a.md", False), ("a.csv", False)])
def test_what_can_be_made_to_take_long_is_known_by_its_name_or_its_beginning(name, wanted):
    assert needs_limits(b"x", name) is wanted
    assert needs_limits(b"%PDF-1.4", name)
