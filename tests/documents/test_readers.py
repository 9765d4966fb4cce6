import io
import json
import logging
import os
import random
import time
import tracemalloc

import bs4
import pytest
from pdf_files import pdf

from msa.documents.formats import _html_title, extract
from msa.documents.readers import is_stream, read_documents
from msa.errors import DocumentError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, content=""):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def read(*paths):
    skipped = []
    documents = list(read_documents(paths, on_skip=skipped.append))
    return documents, skipped


def read_one(path):
    (document,), skipped = read(path)
    assert skipped == []
    return document


# folders and ids


def test_a_folder_is_read_in_order_without_hidden_files_and_junk():
    for path in ("b.txt", "a/z.md", "a/a.py", "B.txt", "Makefile"):
        write(f"notes/{path}", "text")
    for path in (".hidden", ".git/config", "node_modules/x.js", "a/__pycache__/x.txt", "draft.txt~", "env/pyvenv.cfg"):
        write(f"notes/{path}", "text")
    write("notes/env/readme.txt", "text")
    documents, skipped = read("notes")
    assert [d.id for d in documents] == ["notes/B.txt", "notes/Makefile", "notes/a/a.py", "notes/a/z.md", "notes/b.txt"]
    assert skipped == []


def test_a_hidden_file_is_read_when_it_is_named():
    write(".notes/.todo", "text")
    assert read_one(".notes/.todo").id == ".notes/.todo"
    assert [d.id for d in read(".notes")[0]] == []


def test_the_same_folder_elsewhere_gives_the_same_ids(tmp_path, monkeypatch):
    write("one/notes/sub/a.md", "text")
    write("two/notes/sub/a.md", "text")
    ids = {read_one(path).id for path in ("one/notes", "two/notes/", tmp_path / "one" / "notes", "./two/../one/notes")}
    monkeypatch.chdir("one/notes")
    ids.add(read_one(".").id)
    monkeypatch.chdir("sub")
    ids.add(read_one("..").id)
    assert ids == {"notes/sub/a.md"}


def test_a_single_file_is_named_by_its_path(tmp_path):
    write("notes/a.md", "text")
    assert read_one("notes/a.md").id == "notes/a.md"
    assert read_one("./notes/a.md").id == "notes/a.md"
    assert read_one(tmp_path / "notes" / "a.md").id == f"{tmp_path.as_posix()}/notes/a.md"
    assert read_one("./notes/a.md").metadata["path"] == "notes/a.md"


def test_one_file_given_twice_is_one_document():
    write("notes/a.md", "text")
    write("notes/b.jsonl", '{"text": "b"}')
    documents, _ = read("notes", "notes/a.md", "./notes", "notes/b.jsonl")
    assert len(documents) == 2


def test_two_files_with_one_id_are_refused_before_reading():
    write("one/docs/a.md", "text")
    write("two/docs/a.md", "text")
    write("two/docs/b.md", "text")
    with pytest.raises(DocumentError, match=r"one/docs/a\.md and two/docs/a\.md would both be .*'docs/a\.md'"):
        read_documents(["one/docs", "two/docs"])


def test_a_memory_is_no_folder_of_documents():
    for name in ("memory.lock", "manifest-000000000001.json", "segments/a.sqlite"):
        write(f"all/mem/{name}", "x")
    write("all/a.txt", "text")
    with pytest.raises(DocumentError, match=r"all/mem is a memory\. Give the files"):
        read_documents(["all", "all/mem"])
    assert [d.id for d in read("all")[0]] == ["all/a.txt"]


def test_symbolic_links_are_followed_once():
    write("notes/real/a.txt", "a")
    write("elsewhere/b.txt", "b")
    os.symlink("..", "notes/real/up")
    os.symlink(".", "notes/here")
    os.symlink("real", "notes/again")
    os.symlink("../elsewhere", "notes/beside")
    os.symlink("gone.txt", "notes/broken.txt")
    documents, skipped = read("notes")
    assert [d.id for d in documents] == ["notes/beside/b.txt", "notes/real/a.txt"]
    assert skipped == ["notes/broken.txt is gone, or is a link to something that is"]


def test_what_cannot_be_read_in_a_folder_is_skipped_and_reported(caplog):
    write("notes/a.txt", "text")
    write("notes/empty.md", " \n")
    write("notes/image.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    write("notes/noise.bin", bytes(range(256)) * 20)
    write("notes/page.html", "<script>1</script>")
    write("notes/scan.pdf", pdf("", ""))
    os.mkfifo("notes/pipe")
    with caplog.at_level(logging.INFO, "msa.documents.readers"):
        documents, skipped = read("notes")
    assert [d.id for d in documents] == ["notes/a.txt"]
    assert [message.split(" ", 1) for message in skipped] == [
        ["notes/empty.md", "is empty"],
        ["notes/image.png", "is a binary file. Convert it to PDF, HTML or plain text first"],
        ["notes/noise.bin", "is a binary file. Convert it to PDF, HTML or plain text first"],
        ["notes/page.html", "holds no text"],
        ["notes/pipe", "is not a regular file"],
        [
            "notes/scan.pdf",
            "holds no text on its 2 pages, so it is probably scanned. Add a text layer first: ocrmypdf IN.pdf OUT.pdf",
        ],
    ]
    assert [record.message for record in caplog.records if record.name == "msa.documents.readers"] == [
        f"skipped: {message}" for message in skipped
    ]


def test_a_binary_file_is_refused_by_its_beginning():
    """It was read and decoded whole: two gigabytes of memory for a film of 150 MB."""
    write("notes/film.mkv", bytes(range(256)) * 80_000)
    tracemalloc.start()
    try:
        _, skipped = read("notes")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert skipped == ["notes/film.mkv is a binary file. Convert it to PDF, HTML or plain text first"]
    assert peak < 2_000_000


def test_a_file_too_large_for_memory_is_passed_over_in_a_folder(monkeypatch):
    def extract_in_no_memory(data, name):
        if name == "a.txt":
            raise MemoryError
        return extract(data, name)

    monkeypatch.setattr("msa.documents.readers.extract", extract_in_no_memory)
    write("notes/a.txt", "text")
    write("notes/b.txt", "text")
    documents, skipped = read("notes")
    assert [d.id for d in documents] == ["notes/b.txt"]
    assert skipped == ["notes/a.txt is too large to be read into memory. Split it into several files"]
    with pytest.raises(DocumentError, match="too large to be read into memory"):
        read("notes/a.txt")


def test_an_empty_folder_is_reported():
    os.mkdir("notes")
    assert read("notes") == ([], ["notes holds no files to read"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions():
    write("notes/secret/a.txt", "text")
    write("notes/b.txt", "text")
    os.chmod("notes/secret", 0)
    os.chmod("notes/b.txt", 0)
    try:
        assert len(read("notes")[1]) == 2
        with pytest.raises(DocumentError, match=r"notes/secret cannot be listed \(Permission denied\)"):
            read("notes/secret")
        with pytest.raises(DocumentError, match=r"notes/b.txt cannot be read \(Permission denied\)"):
            read("notes/b.txt")
    finally:
        os.chmod("notes/secret", 0o700)


def test_a_file_name_that_is_not_utf8():
    write(b"notes/caf\xe9.txt", b"text")
    document = read_one("notes")
    assert document.id == r"notes/caf\xe9.txt"
    assert document.metadata == {"path": r"notes/caf\xe9.txt", "title": r"caf\xe9.txt"}


# files the user named


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.txt", "gone.txt does not exist. It was looked for from /"),
        ("https://example.org/a.html", "a.html does not exist. Download it first"),
        ("dangling", "dangling does not exist. It is a symbolic link to something that is gone"),
        ("image.png", "image.png is a binary file. Convert it to PDF, HTML or plain text first"),
        ("noise.txt", "noise.txt is a binary file. Convert it to PDF, HTML or plain text first"),
        ("russian.txt", "russian.txt is not UTF-8 text. Convert it first, for example: iconv -f"),
        ("broken.pdf", "broken.pdf is not a PDF that can be read ("),
        ("locked.pdf", "locked.pdf is encrypted. Remove its password first: qpdf --decrypt"),
        ("scan.pdf", "scan.pdf holds no text on its 1 page, so it is probably scanned"),
    ],
)
def test_a_named_file_that_cannot_be_read_says_what_to_do(path, message):
    os.symlink("gone.txt", "dangling")
    write("image.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    write("noise.txt", bytes(range(32)) * 50)
    write("russian.txt", ("Все счастливые семьи похожи друг на друга " * 3).encode("cp1251"))
    write("broken.pdf", b"%PDF-1.7\nnothing of the kind")
    write("locked.pdf", pdf("text", password="secret"))
    write("scan.pdf", pdf(""))
    with pytest.raises(DocumentError) as caught:
        read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), (" \n", "is empty"), ("\ufeff\n", "holds no text"), ("<p> </p>", "holds no text")],
)
def test_a_named_file_without_a_text_is_passed_over_as_in_a_folder(content, message):
    name = "a.html" if content.startswith("<") else "a.md"
    write(f"notes/{name}", content)
    assert read(f"notes/{name}") == read("notes") == ([], [f"notes/{name} {message}"])


def test_one_path_instead_of_a_list_is_refused(tmp_path):
    for path in ("notes", tmp_path):
        with pytest.raises(TypeError, match="put it into a list"):
            read_documents(path)


def test_files_are_read_one_by_one():
    write("a.txt", "first")
    write("b.txt", "second")
    documents = read_documents(["a.txt", "b.txt"])
    assert next(documents).text == "first"
    write("b.txt", "changed")
    assert next(documents).text == "changed"


# decoding


@pytest.mark.parametrize(
    ("data", "text", "decoding"),
    [
        ("naïve\r\nline\rend".encode(), "naïve\nline\nend", None),
        ("\ufeffwith a mark".encode(), "with a mark", None),
        ("漢字 and 👍".encode("utf-16"), "漢字 and 👍", None),
        (b"\xfe\xff" + "big end\r\n".encode("utf-16-be"), "big end\n", None),
        ("漢字 and 👍".encode("utf-32"), "漢字 and 👍", None),
        (b"\0\0\xfe\xff" + "big end\r\n".encode("utf-32-be"), "big end\n", None),
        ("café crème “brûlée”".encode("cp1252"), "café crème “brûlée”", "windows-1252"),
        (b"caf\xe9\x81", "café\x81", "latin-1"),
        ("naïve café ".encode() + b"caf\xe9", "naïve café caf\ufffd", "utf-8 with replacements"),
        (b"\xff\xfea\0b", "a\ufffd", "utf-16 with replacements"),
        (b"nul\0character", "nulcharacter", None),
    ],
)
def test_decoding(data, text, decoding):
    write("a.txt", data)
    document = read_one("a.txt")
    assert document.text == text
    assert document.metadata.get("decoding") == decoding


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0"])
def test_a_byte_order_mark_makes_no_text_of_a_binary_file(mark):
    write("notes/a.bin", mark + random.Random(0).randbytes(400))
    write("notes/b.txt", mark + random.Random(1).randbytes(4_000))
    documents, skipped = read("notes")
    assert documents == []
    assert [" is a binary file" in message for message in skipped] == [True, True]


def test_what_is_not_utf8_is_told_once_a_file():
    write("notes/a.txt", b"caf\xe9")
    write("notes/b.txt", "naïve".encode() + b"\xe9")
    write("notes/c.txt", "naïve")
    write("notes/d.jsonl", b'{"text": "caf\xe9"}\n{"text": "x"}\n{"text": "\xe9t\xe9"}')
    notes = []
    list(read_documents(["notes"], on_note=notes.append))
    advice = "If that is wrong, convert it: iconv -f ENCODING -t UTF-8 IN > OUT"
    assert notes == [
        f"notes/a.txt: not UTF-8, read as windows-1252. {advice}",
        "notes/b.txt: not all of it is UTF-8; the other bytes became U+FFFD",
        f"2 lines of notes/d.jsonl: not UTF-8, read as windows-1252. {advice}",
    ]


# formats


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.md", "intro\n\n```sh\n# a comment\n```\n## The `title` of [this](x.md) ##\n# Later", "The title of this"),
        ("a.md", "---\ntitle: 'From the front matter'\nx: 1\n---\n# Heading", "From the front matter"),
        ("a.md", "---\nx: 1\n---\n# Heading", "Heading"),
        ("a.markdown", "Underlined\n==========\n", "Underlined"),
        ("a.md", '---\ntitle:  "Quoted" \n---', "Quoted"),
        ("a.md", "---\ntitle: 'Half\n---\n# Heading", "'Half"),
        ("a.md", "---\ntitle: \n---\n# Heading", "Heading"),
        ("a.md", "# #\n  ### A  B \t## \t", "A B"),
        ("a.md", "#hashtag\nno heading", "a.md"),
        ("a.rst", ".. note:: x\n\n=====\nTitle\n=====\n\nSub\n---\n", "Title"),
        ("a.rst", "no title\n--\n", "a.rst"),
        ("a.txt", "# not a heading", "a.txt"),
        ("sub/a.py", "# code", "a.py"),
    ],
)
def test_titles(name, text, title):
    write(name, text)
    document = read_one(name)
    assert document.text == text
    assert document.metadata == {"path": name, "title": title}


@pytest.mark.parametrize(
    ("beginning", "middle", "end"),
    [
        ("# a", " ", "b"), ("# a", "# ", "b"), ("# a", "[", ""), ("# ", "](", ""), ("# a", "<", ""), ("# ", "[](", ""),
        ("---\ntitle: x", " ", "y\n---"), ("---\ntitle: '", "' ", "y\n---"), ("", "=", "x"), ("", "- ", "x"),
        ("a\n", "-", "x"), ("a\n", "= ", "x"),
    ],
)  # fmt: skip
def test_titles_take_time_in_proportion_to_a_text(beginning, middle, end):
    """Some lines took the square or the cube of their length: hours for one that has 64 KB."""
    text = (beginning + middle * (60_000 // len(middle)) + end).encode()
    started = time.process_time()
    for name in ("a.md", "a.rst"):
        extract(text, name)
    assert time.process_time() - started < 2


def test_titles_of_a_page_take_time_in_proportion_to_its_depth():
    """Looking upwards from each took the square of it: a second here, hours for some megabytes."""
    page = bs4.BeautifulSoup("<h1> <div>" * 3_000 + "<title> </title>" * 3_000, "html.parser")
    started = time.process_time()
    assert _html_title(page) is None
    assert time.process_time() - started < 0.5


def test_html_is_its_visible_text():
    write(
        "a.html",
        """<!DOCTYPE html><html><head><title> The
        title </title><style>p {}</style></head><body><!-- comment --><nav hidden>menu</nav>
        <h1>Heading</h1><p>One
        <b>bold</b>, <i>two</i>&nbsp;&amp;<br>three</p><script>var x</script><div>four</div><div>five</div>
        <ul><li>six</li><li><p>seven</p></li></ul><pre>def f():
    return  1

    # end</pre><table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>
        <p style="color: red; display: none">invisible</p></body></html>""",
    )
    document = read_one("a.html")
    assert document.metadata["title"] == "The title"
    assert document.text == (
        "Heading\n\nOne bold, two &\nthree\n\nfour\nfive\n\n- six\n- seven\n\n"
        "def f():\n    return  1\n\n    # end\n\na\tb\nc\td"
    )


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>-</p><p>next</p>", "-\n\nnext"),
        ("<div>-</div><div>next</div>", "-\nnext"),
        ("<ul><li><p></p><p>a</p><ul><li>b</ul><li><ul><li>c", "- a\n\n- b\n\n- - c"),
        ("<ul><li>a\x05b</ul>", "- ab"),
    ],
)
def test_only_an_item_of_a_list_keeps_its_hyphen_beside_it(page, text):
    assert extract(page.encode(), "a.html").text == text


def test_html_with_a_declared_encoding():
    write("a.htm", '<meta charset="windows-1252"><h1>Café</h1>'.encode("cp1252"))
    document = read_one("a.htm")
    assert (document.text, document.metadata) == ("Café", {"path": "a.htm", "title": "Café"})
    write("a.htm", '<meta charset="no-such-thing"><p>Café'.encode("cp1252"))
    assert read_one("a.htm").metadata["decoding"] == "windows-1252"


def test_html_with_tags_left_open():
    write("a.html", "<html><head><title>T</title><body><svg><title>icon</title></svg><p>one<p>two<ul><li>three<li>four")
    document = read_one("a.html")
    assert (document.text, document.metadata["title"]) == ("one\n\ntwo\n\n- three\n- four", "T")


@pytest.mark.parametrize(
    ("page", "title"),
    [
        ("<svg><g><title>icon</title></g></svg><p>x<title>T</title>", "T"),
        ("<svg><title>icon</title><h1>In a drawing</h1></svg>", "In a drawing"),
        ("<h1> </h1><h1><b>Head</b>ing</h1><h1>Later</h1>", "Heading"),
        ("<h1>Heading</h1><title> </title><div><title>T</title></div><title>Later</title>", "T"),
        ("<svg><title>icon</title>", "a.html"),
    ],
)
def test_titles_of_html(page, title):
    write("a.html", "text" + page)
    assert read_one("a.html").metadata["title"] == title


def test_html_nested_deeper_than_python_recurses():
    write("a.html", "<div>" * 5_000 + "deep")
    assert read_one("a.html").text == "deep"


def test_pdf():
    write("a.pdf", pdf("Page one", "Page two", title="A title"))
    document = read_one("a.pdf")
    assert document.text == "Page one\n\nPage two"
    assert document.metadata == {"path": "a.pdf", "title": "A title", "pages": 2}
    write("b.pdf", pdf("Page", "", password=""))  # encrypted, but for nobody
    document = read_one("b.pdf")
    assert (document.text, document.metadata["title"], document.metadata["pages"]) == ("Page", "b.pdf", 2)


# JSON lines


def test_jsonl():
    lines = [{"id": "a", "text": "x\ud800", "metadata": {"lang": "en", "title": "own"}, "title": "T"}, {"text": "y"}]
    write("sub/a.jsonl", "\ufeff\n" + "\r\n".join(json.dumps(line) for line in lines) + "\n\n")
    write("sub/b.ndjson", b'{"id": 7, "text": "caf\xe9"}')
    documents, skipped = read("sub")
    assert [(d.id, d.text, d.metadata) for d in documents] == [
        ("a", "x\ufffd", {"title": "own", "lang": "en"}),
        ("sha256-a1fce4363854ff88", "y", {}),
        ("7", "café", {"decoding": "windows-1252"}),
    ]
    assert skipped == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "a.jsonl, line 2: not JSON (Expecting ',' delimiter at column 13). Write one object on each"),
        ("[" * 100_000, "a.jsonl, line 2: not JSON (nested too deeply)"),
        ("[1]", 'a.jsonl, line 2: expected an object such as {"id": "a", "text": "..."}, found a list'),
        ('"text"', "line 2: expected an object such as"),
        ('{"title": "a", "body": "b"}', 'a.jsonl, line 2: has no "text" (its keys: "title", "body")'),
        ('{"text": null}', 'a.jsonl, line 2: "text" is null. Give it as a string'),
        ('{"text": 1}', '"text" is a number'),
        ('{"text": "a", "metadata": [1]}', '"metadata" is a list. Give it as an object'),
        ('{"text": "a", "id": true}', '"id" is a boolean. Give it as a string'),
        ('{"text": "a", "id": 1.0}', '"id" is a number'),
        ('{"text": "a", "id": ""}', '"id" is an empty string'),
    ],
)
def test_a_broken_line_is_named(line, message):
    write("a.jsonl", '{"text": "fine"}\n' + line)
    documents = read_documents(["a.jsonl"])
    assert next(documents).text == "fine"
    with pytest.raises(DocumentError) as caught:
        next(documents)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_lines_that_are_no_documents_do_not_block_a_folder():
    write("notes/app.ndjson", '{"ts": 1, "msg": "x"}\n')
    write("notes/cut.jsonl", '\n{"text": "a"')
    write("notes/good.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    write("notes/none.jsonl", "\n")
    write("notes/note.md", "text")
    documents, skipped = read("notes")
    assert [d.text for d in documents] == ["a", "b", "text"]
    assert [message.split(". ")[0] for message in skipped] == [
        'notes/app.ndjson, line 1: has no "text" (its keys: "ts", "msg")',
        "notes/cut.jsonl, line 2: not JSON (Expecting ',' delimiter at column 13)",
    ]
    with pytest.raises(DocumentError, match="line 1: has no"):
        read("notes/app.ndjson")
    write("notes/good.jsonl", '{"text": "a"}\n{"ts": 1}\n')
    with pytest.raises(DocumentError, match=r"good\.jsonl, line 2: has no"):
        read("notes")


def test_jsonl_in_utf16():
    write("a.jsonl", '{"text": "漢"}\r\n{"text": "字"}\r\n'.encode("utf-16"))
    assert [d.text for d in read("a.jsonl")[0]] == ["漢", "字"]


def test_jsonl_in_utf32():
    write("a.jsonl", '{"text": "漢"}\r\n{"text": "字"}\r\n'.encode("utf-32") + b"\xff" * 4)
    documents = read_documents(["a.jsonl"])
    assert [next(documents).text, next(documents).text] == ["漢", "字"]


# standard input


def test_a_binary_file_on_standard_input_is_refused(monkeypatch):
    for data, reason in [
        (random.Random(0).randbytes(4_000), "is a binary file|is not UTF-8 text"),
        ("Все счастливые семьи похожи друг на друга".encode("cp1251"), "is not UTF-8 text"),
    ]:
        with pytest.raises(DocumentError, match=f"standard input ({reason})"):
            read_input(monkeypatch, data)


class Input:
    closed = False

    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def read_input(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", Input(data) if isinstance(data, bytes) else io.StringIO(data))
    return read("-")[0]


@pytest.mark.parametrize(
    "data",
    [
        b'\n \r\n{"text": "a"}\n{"text": "b"}',
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n',
        '\n{"text": "a"}\n{"text": "b"}\n'.encode("utf-16"),
        '{"text": "a"}\n{"text": "b"}\n',
    ],
)
def test_json_lines_on_standard_input(monkeypatch, data):
    assert [d.text for d in read_input(monkeypatch, data)] == ["a", "b"]


@pytest.mark.parametrize("data", [b"\nline\r\nline {\n", "\ufeff\nline\nline {\n".encode("utf-16"), "\nline\nline {\n"])
def test_a_text_on_standard_input(monkeypatch, data):
    (document,) = read_input(monkeypatch, data)
    assert document.text.strip("\ufeff") == "\nline\nline {\n"
    assert document.id.startswith("stdin-")
    assert len(document.id) == len("stdin-") + 16
    assert document.metadata == {"path": "standard input", "title": "standard input"}


def test_standard_input_errors(monkeypatch):
    with pytest.raises(DocumentError, match=r"standard input is empty\. Pipe a text"):
        read_input(monkeypatch, b" \n")
    with pytest.raises(DocumentError, match="standard input, line 2: not JSON"):
        read_input(monkeypatch, b"\n{oops\n")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DocumentError, match="standard input is closed"):
        read("-")


def test_what_can_be_read_only_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    found = {name: is_stream(tmp_path / name) for name in ("pipe", "file", ".", "gone")}
    assert found == {"pipe": True, "file": False, ".": False, "gone": False}
    assert is_stream("-")
    assert is_stream("/dev/null")


def test_a_named_pipe_is_read_like_standard_input(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b'{"id": "a", "text": "piped"}\n')
    os.close(writing)
    try:
        assert read_one(f"/dev/fd/{reading}").id == "a"
    finally:
        os.close(reading)
