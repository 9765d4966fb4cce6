"""What is kept of an upload: synced before it counts, read again where it was lost, and refused where it is odd."""

import codecs
import json
import os
import shutil
from pathlib import Path

import pytest
from serving_helpers import DOCUMENTS, error_of

from msa.documents import Document
from msa.errors import DocumentError
from msa.serving.errors import to_api_error
from msa.serving.intake import Limits, boundary_of, holds_lines, read_lines, read_upload, write_lines
from msa.serving.operations import Operation
from msa.serving.services import BODY
from msa.serving.services import DOCUMENTS as LINES

LIMITS = Limits(max_document_bytes=1000, max_id_characters=100)
FORM = "multipart/form-data; boundary=x"
# parameters that parsers of headers, Python's own among them, fail on in ways of their own
ODD = {
    "an unknown encoding": "{}*=undefined''x",
    "an encoding that replaces nothing": "{}*=idna''a%ff",
    "no encoding": "{}*=a\0b''x",
    "a number of 5,000 digits": "{}*" + "9" * 5000 + "=x",
    "numbered and not": "{0}*1=a; {0}*=b",
}


def odd(name):
    return [parameter.format(name) for parameter in ODD.values()]


def test_lines_are_synced_before_they_have_their_name_and_the_name_after(tmp_path, monkeypatch):
    steps = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (steps.append(what(number)), sync(number)))
    monkeypatch.setattr(
        Path, "replace", lambda file, to: (steps.append(f"{file.name} -> {to.name}"), replace(file, to))
    )
    documents = [Document(id=str(number), text="é\n" * 5000, metadata={"n": number}) for number in range(3)]
    assert write_lines(iter(documents), tmp_path / "d.jsonl") == (3, 30_000)
    size = (tmp_path / "d.jsonl").stat().st_size
    assert steps == [f"d.tmp of {size}", "d.tmp -> d.jsonl", tmp_path.name]
    assert [*read_lines(tmp_path / "d.jsonl")] == documents


def what(number):
    """What is synced: a folder, or a file and how much of it has been written."""
    path = Path(os.readlink(f"/proc/self/fd/{number}"))
    return path.name if path.is_dir() else f"{path.name} of {path.stat().st_size}"


def test_lines_are_counted(tmp_path):
    file = tmp_path / "d.jsonl"
    assert not holds_lines(file, 0)
    write_lines((Document(id=str(number), text="a\nb" * 1000, metadata={}) for number in range(500)), file)
    assert holds_lines(file, 500)
    file.write_bytes(file.read_bytes()[:-1])
    assert not holds_lines(file, 500)


@pytest.fixture
def left_over(server, memory):
    """Makes an operation of which a failed power supply left these files."""
    operations = server.services.operations
    folder = operations.folder_of("op_cut")
    folder.mkdir()

    def made(request, progress=None, **files):
        for name, data in files.items():
            (folder / {"body": BODY, "lines": LINES}[name]).write_bytes(data)
        name = memory.rsplit("/", 1)[1]
        return Operation("op_cut", name, "add_documents", request, progress=progress or {})

    yield made
    shutil.rmtree(folder)


TOTALS = {"documents_total": 2, "characters_total": 10}


@pytest.mark.parametrize("lines", [None, b"", b'{"id": "other"'], ids=["no file", "an empty file", "half a line"])
def test_documents_that_a_power_failure_took_are_read_again(server, memory, http, left_over, lines):
    files = {"body": "".join(json.dumps(line) + "\n" for line in DOCUMENTS).encode()}
    files |= {} if lines is None else {"lines": lines}
    operation = left_over({"content_type": "application/x-ndjson", "bytes": 100}, TOTALS, **files)
    assert server.services.run_add_documents(operation)["documents"] == 2
    assert http.get(memory).json()["documents"] == 2


def test_documents_that_are_lost_for_good_are_no_success(server, left_over):
    operation = left_over(TOTALS, lines=b"")
    with pytest.raises(FileNotFoundError) as caught:
        server.services.run_add_documents(operation)
    assert to_api_error(caught.value).code == "storage_error"


def test_a_line_of_utf16_is_as_long_as_a_document_may_be(tmp_path):
    text = "\u0a0a" * 2000  # every other byte of it looks like the end of a line
    for size, message in ((20, None), (1 << 18, "x.jsonl, line 1: is longer than")):
        body = codecs.BOM_UTF16_LE + f'{{"id": "a", "text": "{text[:size]}"}}'.encode("utf-16-le")
        body += b"" if message is None else text.encode("utf-16-le") * 200
        (tmp_path / BODY).write_bytes(form(b'filename="x.jsonl"', body))
        if message is None:
            assert [document.text for document in read_upload(tmp_path / BODY, FORM, LIMITS)] == [text[:size]]
        else:
            with pytest.raises(DocumentError, match=message):
                [*read_upload(tmp_path / BODY, FORM, LIMITS)]


def form(parameters, content=b"hello"):
    return b"--x\r\ncontent-disposition: form-data; name=f; " + parameters + b"\r\n\r\n" + content + b"\r\n--x--\r\n"


@pytest.mark.parametrize("parameters", odd("filename"), ids=ODD)
def test_a_file_name_that_cannot_be_read_is_no_reason_to_lose_a_file(tmp_path, parameters):
    (tmp_path / BODY).write_bytes(form(parameters.encode()))
    with pytest.raises(DocumentError, match="a file name that cannot be read|Maximum header size"):
        [*read_upload(tmp_path / BODY, FORM, LIMITS)]
    assert [path.name for path in tmp_path.iterdir()] == [BODY]


@pytest.mark.parametrize("parameters", odd("boundary"), ids=ODD)
def test_a_boundary_that_cannot_be_read_is_none(parameters, monkeypatch):
    import python_multipart.multipart

    assert boundary_of(f"multipart/form-data; {parameters}") == b""

    def fails(value):
        raise UnicodeError(value)  # as versions that go by the email package do

    monkeypatch.setattr(python_multipart.multipart, "parse_options_header", fails)
    assert boundary_of(f"multipart/form-data; {parameters}") == b""


@pytest.mark.parametrize("parameters", odd("boundary"), ids=ODD)
@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}], ids=["once", "repeatable"])
def test_nothing_stays_of_a_form_whose_parts_cannot_be_told(http, server, memory, parameters, headers):
    if "\0" in parameters:
        pytest.skip("no header can have it")
    headers = {"content-type": f"multipart/form-data; {parameters}", **headers}
    refused = http.post(f"{memory}/documents", content=form(b'filename="a.txt"'), headers=headers)
    error_of(refused, 400, "invalid_document")
    assert os.listdir(server.services.operations.spool) == []


def test_nothing_stays_of_a_body_that_cannot_be_read_again(http, server, memory, monkeypatch):
    from msa.serving import bodies

    def fails(file, boundary):
        raise OSError("the disk")

    monkeypatch.setattr(bodies, "_digest_without", fails)
    headers = {"content-type": FORM, "idempotency-key": "unreadable"}
    refused = http.post(f"{memory}/documents", content=form(b'filename="a.txt"'), headers=headers)
    error_of(refused, 503, "storage_error")
    assert os.listdir(server.services.operations.spool) == []


def test_documents_of_json_are_synced_with_their_folder(http, server, memory, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(what(number)), sync(number)))
    accepted = http.post(f"{memory}/documents", json={"id": "a", "text": "x"}, params={"wait": False})
    assert accepted.status_code == 202
    lines, *folders = synced[:3]
    assert lines.startswith("documents.tmp of ")
    assert folders == [accepted.json()["id"], server.services.operations.spool.name]
