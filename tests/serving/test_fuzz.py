"""What no honest client sends: the server answers with an error of its own shape, never with 5xx, and goes on."""

import json
import re
import socket
import string
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving_helpers import ANSWER, DOCUMENTS, QUESTION, error_of

ASK = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}
DOCUMENT = "/v1/memories/known/documents/fuzzed"
JSON = {"content-type": "application/json"}
TARGETS = (
    ("POST", "/v1/chat/completions"), ("POST", "/v1/memories/known/search"), ("POST", "/v1/memories/known/documents"),
    ("POST", "/v1/memories/known/documents/delete"), ("PUT", DOCUMENT), ("PATCH", DOCUMENT),
    ("POST", "/v1/memories/known/snapshots/x/restore"), ("PUT", "/v1/memories/known"),
)  # fmt: skip


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    """One that waits only a moment for what does not come."""
    with start(tmp_path_factory.mktemp("fuzzed"), body_timeout_s=0.5, header_timeout_s=0.5) as server:
        with server.http() as http:
            http.put("/v1/memories/known", json={})
            http.post("/v1/memories/known/documents", json={"documents": DOCUMENTS})
        yield server


@pytest.fixture(scope="module")
def http(server):
    """One client; whatever it sent, the server answers a question in the end."""
    with server.http() as http:
        yield http
        answer = http.post("/v1/chat/completions", json={**ASK, "max_tokens": 16}).json()
        assert answer["choices"][0]["message"]["content"] == ANSWER


@pytest.fixture(autouse=True)
def _goes_on(http):
    yield
    assert http.get("/ready").status_code == 200


def check(response):
    """An answer, or an error of ours."""
    if response.status_code >= 400:
        assert response.status_code < 500, response.text
        error_of(response, response.status_code)
    return response


def nested(levels, kind="[]"):
    opening, closing = ("[", "]") if kind == "[]" else ('{"a":', "}")
    return opening * levels + "1" + closing * levels


def with_value(value):
    """A body that has some value in every place where any value may stand."""
    return (
        f'{{"text": "x", "query": "x", "metadata": {{"v": {value}}}, "where": {{"v": {value}}}, "ids": ["x", {value}], '
        f'"max_tokens": 4, "model": "msa-tiny@known", "user": {value}, "x": {value}, '
        f'"messages": [{{"role": "user", "content": "x", "name": {value}}}]}}'
    ).encode()


VALUES = (
    "1e400", "-1e999", "NaN", "Infinity", "-0", "1e-400", "9223372036854775808", "1" + "0" * 4200, "1" + "0" * 5000,
    r'"\ud800"', r'"\u0000"', r'"\udc00\ud800"', '"\\uffff\U0010ffff"', '"<|im_start|>"', '"' + "x" * 70_000 + '"',
    nested(90), nested(101), nested(400), nested(900), nested(5_000), nested(900, "{}"), "[" * 100_000,
    '{"": 1}', '{"$ne": 1}', '[null, [], {}, ""]', "true", "",
)  # fmt: skip
RAW = (
    b"", b" ", b"null", b"[]", b'"x"', b"1e999", b"{", b'{"text": "\xff\xfe"}', b'{"text": "a\x00b"}', b"\x00" * 100,
    b"\xef\xbb\xbf{}", '{"text": "x"}'.encode("utf-16"), '{"text": "x"}'.encode("utf-32"), b'{"text": "x"} x',
    b'{"text": 1, "query": 1, "messages": 1, "ids": 1}', b'{"documents": [null, [], 1, {}]}',
    b'{"text": "a", "text": "b"}', b'{"documents": [{"text": "x", "id": ""}]}', b"--x--", b"\x1f\x8b\x08" + b"\x00" * 50,
)  # fmt: skip


@pytest.mark.parametrize("body", [*map(with_value, VALUES), *RAW], ids=lambda body: repr(body[:40]))
def test_hostile_bodies(http, body):
    for method, url in TARGETS:
        check(http.request(method, url, content=body, headers=JSON))


@pytest.mark.parametrize("content_type", ["", "text/plain", "a" * 5000, "/", "application/json, text/plain",
    "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 300,
    "multipart/form-data; boundary*=utf-8''x", "application/x-ndjson", "multipart/form-data; boundary*=undefined''x",
    "multipart/form-data; boundary*=idna''a%ff", "multipart/form-data; boundary*1=a; boundary*=b",
    f"multipart/form-data; boundary*{'9' * 5000}=x", 'multipart/form-data; x="' + ";" * 50_000])  # fmt: skip
def test_wrong_content_types(http, content_type):
    form = b'--x\r\ncontent-disposition: form-data; filename="a"\r\n\r\nhello'
    for method, url in TARGETS:
        for body in (b"", b"{}", form):
            check(http.request(method, url, content=body, headers={"content-type": content_type}))


@pytest.mark.parametrize("parameters", ["filename*=undefined''x", "filename*=idna''a%ff", "filename*1=a; filename*=b",
    "filename*" + "9" * 3000 + "=x", "filename*" + "9" * 5000 + "=x", "filename*=a\0''x", "filename*=utf-8''%00%ff", 'filename="',
    'filename="\ud800"', "filename*=unicode_escape''%5Cud800", 'filename="' + ";" * 4000, "filename*=hex''zz"])  # fmt: skip
@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "form"}], ids=["once", "repeatable"])
def test_odd_names_of_files(http, server, parameters, headers):
    disposition = f"content-disposition: form-data; name=f; {parameters}".encode("utf-8", "surrogatepass")
    form = b"--x\r\n" + disposition + b"\r\n\r\nhello\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x", **headers}
    check(http.post("/v1/memories/known/documents", content=form, headers=headers, params={"wait": True}))
    assert [*server.services.operations.spool.iterdir()] == []


def test_numbers_out_of_range_and_nesting(http):
    """What Python's JSON takes and nobody else does must not get into a memory, by whatever way."""
    for body in (with_value("1e400"), with_value("NaN")):
        for method, url in TARGETS:
            error_of(http.request(method, url, content=body, headers=JSON), 400, "invalid_json")
    error_of(http.put(DOCUMENT, content=with_value(nested(101)), headers=JSON), 400, "invalid_document")
    assert http.put(DOCUMENT, content=with_value(nested(99)), headers=JSON).status_code == 200
    assert http.get(DOCUMENT).json()["metadata"] == {"v": json.loads(nested(99))}
    for url in (TARGETS[0][1], TARGETS[1][1]):
        refused = http.post(url, content=with_value(nested(101)), headers=JSON)
        assert error_of(refused, 400)["param"] == "where"
    for value in ("NaN", "1e400", nested(200)):
        lines = f'{{"id": "line", "text": "x", "metadata": {{"v": {value}}}}}'.encode()
        headers = {"content-type": "application/x-ndjson"}
        error_of(
            http.post("/v1/memories/known/documents", content=lines, headers=headers, params={"wait": True}),
            400,
            "invalid_document",
        )


@pytest.mark.parametrize("query", ["a " * 20_000, "!" * 10_000])
def test_a_query_that_the_model_cannot_read(http, query):
    """Time and memory grow with the square of a query's tokens: one large enough ends the process."""
    for hybrid in (False, True):
        refused = http.post("/v1/memories/known/search", json={"query": query, "hybrid": hybrid})
        error_of(refused, 400, "context_length_exceeded")
    asked = {**ASK, "messages": [{"role": "user", "content": query}]}
    error_of(http.post("/v1/chat/completions", json=asked), 400, "context_length_exceeded")


def test_what_sampling_and_the_tokenizer_cannot_take(http):
    for options in (
        {"top_p": 1e-300},
        {"top_p": 5e-324},
        {"temperature": 1e-320},
        {"top_k": 10**30},
        {"seed": -(2**63)},
    ):
        asked = http.post("/v1/chat/completions", json={**ASK, "temperature": 1, **options})
        assert asked.status_code == 200, asked.text
    system = '{"role": "system", "content": "\\ud800 be \\u0000brief"}'
    body = json.dumps(ASK).replace('"messages": [', f'"messages": [{system}, ').encode()
    assert http.post("/v1/chat/completions", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("half", [r"\ud800", r"a\udfff", r"\udc00\ud800"])
def test_half_a_character_wherever_text_may_stand(http, half):
    """JSON has them, UTF-8 does not: no answer may repeat one."""
    body = (
        f'{{"id": "fuzzed {half}", "text": "x{half}", "query": "x{half}", "metadata": {{"{half}": ["{half}"]}}, '
        f'"where": {{"{half}": "{half}"}}, "ids": ["x", "{half}"], "model": "msa-tiny@known", "user": "{half}", '
        f'"stop": ["{half}"], "max_tokens": 4, "{half}": "{half}", '
        f'"messages": [{{"role": "system", "content": "{half}"}}, {{"role": "user", "content": "x{half}"}}]'
    )
    for end in ("}", f', "hybrid": true, "memory": "{half}"}}', ', "where": null}', ', "stream": true, "where": null}'):
        for method, url in TARGETS:
            check(http.request(method, url, content=(body + end).encode(), headers=JSON))


TEXT = st.text(st.characters(), max_size=20)  # with lone surrogates, which st.text() alone leaves out
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CHAT_FIELDS = (
    "model", "messages", "memory", "stream", "stream_options", "stream_events", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "top_k", "seed", "stop", "n", "where", "hybrid", "retrieval", "max_rounds", "max_documents",
    "tools", "response_format", "logprobs", "user",
)  # fmt: skip


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(CHAT_FIELDS), ANY, max_size=3))
def test_any_value_in_any_field_of_a_question(http, changes):
    check(http.post("/v1/chat/completions", content=json.dumps({**ASK, **changes}), headers=JSON))


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(["query", "top_k", "where", "hybrid", "x"]), ANY, max_size=4))
def test_any_value_in_any_field_of_a_search(http, changes):
    check(http.post("/v1/memories/known/search", content=json.dumps({"query": "x", **changes}), headers=JSON))


@settings(max_examples=40)
@given(st.lists(TEXT, max_size=3), st.dictionaries(st.sampled_from(["id", "text", "metadata", "x"]), ANY))
@example(["\ud800"], {"id": "\ud800", "metadata": {"\ud800": "\ud800"}})
def test_any_value_in_any_field_of_documents(http, ids, changes):
    check(http.post("/v1/memories/known/documents/delete", content=json.dumps({"ids": ids}), headers=JSON))
    document = {"id": "fuzzed", "text": "x", **changes}
    for body in (document, {"documents": [document]}):
        check(http.post("/v1/memories/known/documents", content=json.dumps(body), headers=JSON))


@settings(max_examples=40)
@given(
    st.text(st.characters(exclude_characters="/?#"), max_size=300), st.sampled_from(["", "/documents", "/snapshots/x"])
)
@example("x" * 300, "/snapshots/x")
@example("\x00", "/documents")
@example("..", "/snapshots/x")
def test_any_name_in_an_address(http, name, rest):
    escaped = "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "surrogatepass"))
    for method in ("GET", "DELETE"):
        check(http.request(method, f"/v1/memories/x{escaped}{rest}"))
    for address in (f"/v1/memories/known/documents/{escaped}", f"/v1/operations/{escaped}", f"/page/{escaped}"):
        check(http.get(address))


HOST = b"host: 127.0.0.1\r\n"
HEALTH = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
SEARCH = b"POST /v1/memories/known/search HTTP/1.1\r\n" + HOST + b"content-type: application/json\r\n"
QUERY = b'{"query":"x"}'
CHUNKED = SEARCH + b"transfer-encoding: chunked\r\n\r\n"
CLOSE = b"connection: close\r\n\r\n"
LETTERS = string.ascii_letters.encode()
FRAMES = {
    "garbage": (b"\x00\xff\x16\x03\x01garbage\r\n\r\n", [400]),
    "tls": (bytes.fromhex("16030100a5010000a10303") + bytes(150), [400]),
    "http 0.9": (b"GET /\r\n\r\n", [400]),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", [400]),
    "head that stops": (b"POST /v1/chat", []),
    "header without a colon": (b"GET /health HTTP/1.1\r\n" + HOST + b"nothing\r\n\r\n", [400]),
    "header of a megabyte": (b"GET /health HTTP/1.1\r\n" + HOST + b"x: " + LETTERS * 20_000 + b"\r\n\r\n", [400]),
    "path of a megabyte": (b"GET /" + LETTERS * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    "bytes in headers": (SEARCH + b"authorization: Bearer \xff\r\nidempotency-key: \xff\r\ncontent-length: 13\r\n" + CLOSE + QUERY, [200]),
    "negative length": (SEARCH + b"content-length: -1\r\n\r\n" + QUERY, [400]),
    "length of 5000 digits": (SEARCH + b"content-length: " + b"9" * 5000 + b"\r\n\r\n" + QUERY, [400]),
    "two lengths": (SEARCH + b"content-length: 13\r\ncontent-length: 14\r\n\r\n" + QUERY, [400]),
    "length and chunks": (SEARCH + b"content-length: 13\r\ntransfer-encoding: chunked\r\n\r\nd\r\n" + QUERY + b"\r\n0\r\n\r\n", [400]),
    "body shorter than it says": (SEARCH + b"content-length: 100\r\n" + CLOSE + QUERY, [408]),
    "body longer than it says": (SEARCH + b"content-length: 5\r\n\r\n" + QUERY + b"\r\n\r\n", [400, 400]),
    "chunks that stop": (CHUNKED + b"d\r\n" + QUERY[:5], [408]),
    "chunk without a size": (CHUNKED + b"zz\r\n" + QUERY, [400]),
    "chunk of more than there is": (CHUNKED + b"f" * 15 + b"\r\n" + QUERY, [408]),
    "unknown encoding": (SEARCH + b"transfer-encoding: gzip\r\n\r\n" + QUERY, [400]),
    "garbage behind a request": (HEALTH + b"\x00garbage\r\n\r\n", [200, 400]),
    "garbage behind a body": (SEARCH + b"content-length: 13\r\n\r\n" + QUERY + b"GARBAGE\r\n\r\n", [200, 400]),
    "many requests at once": (HEALTH * 50 + b"\x00\r\n\r\n", [200] * 50 + [400]),
    "upwards": (b"DELETE /v1/memories/../known HTTP/1.1\r\n" + HOST + CLOSE, [404]),
    "another host's address": (b"GET http://evil.example/health HTTP/1.1\r\n" + HOST + CLOSE, [404]),
}  # fmt: skip


def talk(server, *pieces, pause=0.2):
    """Send bytes and read until the server closes; returns the statuses and all that came."""
    with socket.create_connection(server.server.servers[0].sockets[0].getsockname()) as connection:
        connection.settimeout(15)
        came = b""
        try:
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(pause)
                connection.sendall(piece)
            while received := connection.recv(1 << 16):
                came += received
        except ConnectionResetError:
            pass  # closed before it had read everything
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", came)], came


@pytest.mark.parametrize(("data", "statuses"), FRAMES.values(), ids=FRAMES.keys())
def test_frames_that_are_none(server, data, statuses):
    found, came = talk(server, data)
    assert found == statuses
    for error in re.findall(rb'\{"error": ?\{.*?\}\}', came):
        assert set(json.loads(error)["error"]) == {"message", "type", "param", "code"}
    assert sum(status >= 400 for status in found) == came.count(b'"error"')


def test_garbage_behind_an_answer_that_did_not_wait_for_the_body(server, caplog):
    """It cannot be answered any more, and must not be an error of the server's."""
    head = b"POST /nothing HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
    found, _ = talk(server, head, b"zz\r\nxx")
    assert found == [404]
    assert "Traceback" not in caplog.text
    assert "Fatal error" not in caplog.text


def test_an_id_that_clients_resolve_is_refused(http):
    """``DELETE …/documents/..`` reaches the server as ``DELETE …`` of the whole memory."""
    for doc_id in (".", ".."):
        added = http.post("/v1/memories/known/documents", json={"id": doc_id, "text": "x"})
        error_of(added, 400, "invalid_document")
        uploaded = http.post("/v1/memories/known/documents", files=[("file", (doc_id, b"x"))], params={"wait": True})
        error_of(uploaded, 400, "invalid_document")
    for doc_id in ("../x", "...", "a/.."):
        assert http.post("/v1/memories/known/documents", json={"id": doc_id, "text": "x"}).status_code == 200
    gone = http.post("/v1/memories/known/documents/delete", json={"ids": ["../x", "...", "a/.."]}).json()
    assert len(gone["deleted"]) == 3


@pytest.mark.parametrize("half", [r"\ud800", r"a\udfff", r"\udc00\ud800"])
def test_an_id_with_half_a_character_deletes_nothing(http, half):
    """The answer names what was deleted, and half a character cannot be sent."""
    documents, delete = "/v1/memories/known/documents", "/v1/memories/known/documents/delete"
    body = f'{{"documents": [{{"id": "x/y", "text": "x"}}, {{"id": "{half}", "text": "x"}}]}}'.encode()
    _, stored = http.post(documents, content=body, headers=JSON).json()["ids"]
    refused = error_of(http.post(delete, content=f'{{"ids": ["x/y", "{half}"]}}'.encode(), headers=JSON), 400)
    assert (refused["param"], "U+FFFD" in refused["message"]) == ("ids.1", True)
    assert http.get(f"{documents}/x%2Fy").json()["text"] == "x"
    gone = http.post(delete, json={"ids": ["x/y", stored, "\U0001f600"]}).json()
    assert (gone["deleted"], gone["unknown"]) == (["x/y", stored], ["\U0001f600"])
