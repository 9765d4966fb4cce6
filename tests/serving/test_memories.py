"""The memories' own API: memories, documents, search, snapshots, operations."""

import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_helpers import ANSWER, DOCUMENTS, NEEDLE, QUESTION, error_of, until

from msa.serving.job import Lane
from msa.serving.routes import documents


def add(http, memory, *documents, **options):
    return http.post(f"{memory}/documents", json={"documents": documents}, **options)


def test_a_memory_comes_and_goes(http):
    assert http.put("/v1/memories/new", json={}).status_code == 201
    assert http.put("/v1/memories/new", json={}).status_code == 200
    about = http.get("/v1/memories/new").json()
    assert (about["id"], about["documents"], about["model_name"]) == ("new", 0, "msa-tiny")
    assert {"id": "new", "object": "memory", "available": True} in http.get("/v1/memories").json()["data"]
    add(http, "/v1/memories/new", *DOCUMENTS)
    http.post("/v1/memories/new/snapshots")
    gone = http.delete("/v1/memories/new").json()
    assert (gone["deleted"], gone["documents"], gone["snapshots"]) == (True, 2, 1)
    for response in (
        http.get("/v1/memories/new"),
        http.delete("/v1/memories/new"),
        http.get("/v1/memories/new/documents"),
        http.post("/v1/memories/new/search", json={"query": "x"}),
        add(http, "/v1/memories/new", *DOCUMENTS),
    ):
        error_of(response, 404, "memory_not_found")
    http.put("/v1/memories/new", json={})
    assert http.get("/v1/memories/new/documents").json()["data"] == []
    assert http.get("/v1/memories/new/snapshots").json()["data"] == []
    http.delete("/v1/memories/new")


@pytest.mark.parametrize(
    "name", ["a" * 65, ".hidden", "-x", "a b", "ä", "a..b", "x%0a", "%2e%2e", "..%2fknown", "a%00", "a%5cb", "*"]
)
def test_names_that_are_none(http, server, name):
    before = sorted(os.listdir(server.services.root))
    assert http.put(f"/v1/memories/{name}", json={}).status_code in (400, 404, 405)
    assert http.get(f"/v1/memories/{name}").status_code in (404, 405)
    assert sorted(os.listdir(server.services.root)) == before


def test_names_that_differ_in_case_only(http):
    error_of(http.put("/v1/memories/KNOWN", json={}), 409, "name_taken")
    error_of(http.get("/v1/memories/KNOWN"), 404, "memory_not_found")


def test_links_and_foreign_folders_are_no_memories(http, server, tmp_path):
    root = server.services.root
    os.symlink(root / "known", root / "linked")
    os.mkdir(root / "foreign")
    (root / "foreign" / "file").write_text("x")
    try:
        names = [entry["id"] for entry in http.get("/v1/memories").json()["data"]]
        assert not {"linked", "foreign"} & set(names)
        for name in ("linked", "foreign"):
            error_of(http.get(f"/v1/memories/{name}/documents"), 404, "memory_not_found")
            error_of(http.put(f"/v1/memories/{name}", json={}), 409, "name_taken")
    finally:
        os.remove(root / "linked")
        os.remove(root / "foreign" / "file")
        os.rmdir(root / "foreign")


def test_documents_are_added_changed_listed_and_removed(http, memory):
    added = add(http, memory, *DOCUMENTS, {"text": "no id"}).json()
    assert (added["documents"], added["encoded"], added["unchanged"]) == (3, 3, 0)
    assert added["ids"][:2] == ["other", "notes/ages.md"]
    assert add(http, memory, *DOCUMENTS).json()["unchanged"] == 2
    assert http.post(f"{memory}/documents", json={"id": "one", "text": "alone"}).json()["ids"] == ["one"]
    page = http.get(f"{memory}/documents", params={"limit": 2}).json()
    assert ([entry["id"] for entry in page["data"]], page["has_more"]) == (["other", "notes/ages.md"], True)
    assert page["data"][0]["text"] == DOCUMENTS[0]["text"]
    rest = http.get(f"{memory}/documents", params={"after": page["last_id"], "text": False}).json()
    assert [entry["id"] for entry in rest["data"]] == [added["ids"][2], "one"]
    assert (rest["has_more"], rest["total"], "text" in rest["data"][0]) == (False, 4, False)
    changed = http.patch(f"{memory}/documents/one", json={"metadata": {"a": 1}}).json()
    assert (changed["text"], changed["metadata"]) == ("alone", {"a": 1})
    assert http.put(f"{memory}/documents/notes/ages.md", json={"text": "new"}).json()["metadata"] == {}
    assert http.get(f"{memory}/documents/notes%2Fages.md").json()["text"] == "new"
    assert http.delete(f"{memory}/documents/notes/ages.md").json()["deleted"] is True
    for response in (
        http.get(f"{memory}/documents/notes/ages.md"),
        http.delete(f"{memory}/documents/notes/ages.md"),
        http.patch(f"{memory}/documents/notes/ages.md", json={"text": "x"}),
    ):
        error_of(response, 404, "document_not_found")
    for doc_id, path in (("two\nlines", "two%0Alines"), ("ends\n", "ends%0A")):
        add(http, memory, {"id": doc_id, "text": "odd"})
        assert http.patch(f"{memory}/documents/{path}", json={"text": "still"}).json()["id"] == doc_id
        assert http.get(f"{memory}/documents/{path}").json()["text"] == "still"
        assert http.delete(f"{memory}/documents/{path}").json() == {
            "id": doc_id,
            "object": "document.deleted",
            "deleted": True,
        }
    several = http.post(f"{memory}/documents/delete", json={"ids": ["one", "nothing", "one"]}).json()
    assert (several["deleted"], several["unknown"]) == (["one"], ["nothing"])
    error_of(http.get(f"{memory}/documents", params={"after": "gone"}), 400, "document_not_found")
    assert error_of(http.get(f"{memory}/documents", params={"limit": 0}), 400)["param"] == "limit"


@pytest.mark.parametrize(("text", "on_the_page"), [(False, 3), (True, 2)])
def test_a_page_is_short_where_texts_or_metadata_are_long(http, memory, monkeypatch, text, on_the_page):
    monkeypatch.setattr(documents, "_PAGE_BYTES", 2500)
    add(http, memory, *({"id": f"d{n}", "text": "word " * 100, "metadata": {"m": "x" * 1000}} for n in range(5)))
    page = http.get(f"{memory}/documents", params={"text": text}).json()
    assert (len(page["data"]), page["has_more"], page["last_id"]) == (on_the_page, True, f"d{on_the_page - 1}")
    rest = http.get(f"{memory}/documents", params={"text": text, "after": page["last_id"]}).json()
    assert rest["first_id"] == f"d{on_the_page}"


@pytest.mark.parametrize(
    "doc_id", ["../../etc/passwd", "a?b#c&d", "%2e%2e", "ü/日本 語", "a//b", "/abs", "x" * 512, "'\"\\"]
)
def test_any_string_is_an_id(http, memory, doc_id):
    from urllib.parse import quote

    add(http, memory, {"id": doc_id, "text": "text"})
    found = http.get(f"{memory}/documents/{quote(doc_id, safe='')}")
    assert found.json()["id"] == doc_id
    assert http.post(f"{memory}/documents/delete", json={"ids": [doc_id]}).json()["deleted"] == [doc_id]


@pytest.mark.parametrize(
    "body",
    [
        {}, [], "x", 7, None, {"documents": {}}, {"documents": [{"id": "a"}]}, {"documents": [{"text": 7}]},
        {"documents": [{"text": "x", "id": ""}]}, {"documents": [{"text": "x", "id": []}]}, {"documents": [None]},
        {"documents": [{"text": "x", "metadata": []}]}, {"documents": [{"text": "x", "id": "y" * 513}]},
    ],
)  # fmt: skip
def test_documents_that_are_none(http, memory, body):
    error_of(http.post(f"{memory}/documents", json=body), 400, "invalid_document")
    assert http.get(memory).json()["documents"] == 0


@pytest.mark.parametrize(
    "body", ["{", '{"text": NaN}', "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff"]
)
def test_bodies_that_are_no_json(http, memory, body):
    error_of(http.post(f"{memory}/documents", content=body, headers={"content-type": "application/json"}), 400)


def test_other_content_types_are_refused(http, memory):
    """A foreign web page could send these without asking."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        body = json.dumps({"text": "x"})
        error_of(http.post(f"{memory}/documents", content=body, headers={"content-type": kind}), 415)


def test_search(http, memory):
    assert http.post(f"{memory}/search", json={"query": "anything"}).json()["data"] == []
    add(http, memory, *DOCUMENTS)
    hits = http.post(f"{memory}/search", json={"query": QUESTION, "top_k": 1}).json()["data"]
    assert [(hit["id"], hit["text"], hit["metadata"]) for hit in hits] == [
        ("notes/ages.md", NEEDLE, {"title": "Ages", "lang": "en"})
    ]
    assert hits[0]["score"] > 0.9
    assert (hits[0]["part"], hits[0]["parts"], hits[0]["offset"]) == (1, 1, 0)
    for where, count in (({"lang": "en"}, 2), ({"title": "Ages"}, 1), ({"lang": ["de", "fr"]}, 0)):
        body = {"query": QUESTION, "where": where}
        assert len(http.post(f"{memory}/search", json=body).json()["data"]) == count
    hybrid = http.post(f"{memory}/search", json={"query": "wandering-age", "hybrid": True}).json()["data"]
    assert (hybrid[0]["id"], hybrid[0]["ranking"]) == ("notes/ages.md", "hybrid")
    for body, param in (
        ({"query": " "}, "query"),
        ({}, "query"),
        ({"query": "x", "top_k": 0}, "top_k"),
        ({"query": "x", "where": {"": 1}}, "where"),
    ):
        assert error_of(http.post(f"{memory}/search", json=body), 400)["param"] == param


def upload(http, memory, lines, **options):
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    headers = {"content-type": "application/x-ndjson", **options.pop("headers", {})}
    return http.post(f"{memory}/documents", content=body, headers=headers, **options)


def test_json_lines(http, memory):
    operation = upload(http, memory, DOCUMENTS).json()
    assert (operation["status"], operation["result"]["ids"]) == ("succeeded", ["other", "notes/ages.md"])
    assert http.get(f"{memory}/documents/other").json()["metadata"] == {"lang": "en"}
    broken = upload(http, memory, [{"id": "x", "text": "fine"}, {"id": "y"}])
    assert "body, line 2" in error_of(broken, 400, "invalid_document")["message"]
    assert http.get(memory).json()["documents"] == 2, "nothing of a broken upload is added"


def test_files(http, memory):
    files = [
        ("file", ("notes/a.md", b"# Heading\n\nText of a.", "text/markdown")),
        ("file", ("b.html", b"<title>B</title><p>Hello", "text/html")),
        ("file", ("c.jsonl", json.dumps(DOCUMENTS[1]).encode(), "application/jsonl")),
        ("file", ("../../d.txt", b"harmless", "text/plain")),
    ]
    operation = http.post(f"{memory}/documents", files=files, data={"ignored": "field"}).json()
    assert operation["result"]["ids"] == ["notes/a.md", "b.html", "notes/ages.md", "../../d.txt"]
    a = http.get(f"{memory}/documents/notes/a.md").json()
    assert (a["text"], a["metadata"]) == ("# Heading\n\nText of a.", {"path": "notes/a.md", "title": "Heading"})
    assert http.get(f"{memory}/documents/b.html").json()["metadata"]["title"] == "B"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("file", ("x.bin", bytes(range(256)) * 9, "application/octet-stream"))], "x.bin is a binary file"),
        ([("file", ("x.pdf", b"%PDF-1.4 broken", "application/pdf"))], "x.pdf is not a PDF"),
        ([("field", (None, b"no file", "text/plain"))], "the form holds no file"),
    ],
)
def test_files_that_hold_no_text(http, memory, server, files, message):
    assert message in error_of(http.post(f"{memory}/documents", files=files), 400, "invalid_document")["message"]
    assert os.listdir(server.services.operations.spool) == []


def test_forms_that_are_broken(http, memory):
    for kind, body in (
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"nonsense"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\ncut off',
        ),
    ):
        error_of(http.post(f"{memory}/documents", content=body, headers={"content-type": kind}), 400)


def test_large_bodies_become_operations(http, memory):
    lines = [{"id": f"d{n}", "text": f"Document {n}. " + "The grass is green. " * 20} for n in range(40)]
    accepted = upload(http, memory, lines, params={"wait": False})
    assert accepted.status_code == 202
    address = accepted.headers["location"]
    until(lambda: http.get(address).json()["status"] == "succeeded")
    operation = http.get(address).json()
    assert (operation["kind"], operation["error"]) == ("add_documents", None)
    assert operation["progress"]["documents"] == operation["progress"]["documents_total"] == 40
    assert http.get(memory).json()["documents"] == 40
    listed = http.get("/v1/operations", params={"memory": memory.rsplit("/", 1)[1]}).json()["data"]
    assert operation["id"] in [entry["id"] for entry in listed]
    big = [
        {"id": "big", "text": "x", "metadata": {"m": "y" * 200_000}},
        {"id": "two", "text": "z", "metadata": {"m": "z" * 90_000}},
    ]
    assert add(http, memory, *big).status_code == 202
    waited = add(http, memory, *big, params={"wait": True})
    assert (waited.status_code, waited.json()["result"]["documents"]) == (200, 2)
    error_of(http.get("/v1/operations/op_nothing"), 404, "operation_not_found")


def test_questions_are_answered_while_a_large_body_is_encoded(http, memory):
    lines = [{"id": f"d{n}", "text": "The grass is green. " * 400} for n in range(60)]
    address = upload(http, memory, lines, params={"wait": False}).headers["location"]
    until(lambda: http.get(address).json()["progress"].get("phase") == "encoding")
    ask = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]}
    assert http.post("/v1/chat/completions", json=ask).json()["choices"][0]["message"]["content"] == ANSWER
    assert http.get(address).json()["status"] == "running"
    http.delete(address)
    until(lambda: http.get(address).json()["status"] == "cancelled")


def test_deleting_a_memory_ends_its_operations(http, server):
    http.put("/v1/memories/doomed", json={})
    lines = [{"id": f"d{n}", "text": "The grass is green. " * 400} for n in range(60)]
    address = upload(http, "/v1/memories/doomed", lines, params={"wait": False}).headers["location"]
    until(lambda: http.get(address).json()["progress"].get("phase") == "encoding")
    assert http.delete("/v1/memories/doomed").status_code == 200
    http.put("/v1/memories/doomed", json={})
    until(lambda: http.get(address).json()["status"] == "cancelled")
    assert http.get("/v1/memories/doomed").json()["documents"] == 0
    http.delete("/v1/memories/doomed")


def test_the_same_key_is_answered_once(http, memory):
    def send(key, *documents):
        return add(http, memory, *documents, headers={"idempotency-key": key})

    first = send("k1", {"text": "a text", "id": "a"})
    again = send("k1", {"text": "a text", "id": "a"})
    assert (again.json(), again.status_code) == (first.json(), 200)
    assert again.json()["encoded"] == 1
    assert again.headers["idempotency-replayed"] == "true"
    error_of(send("k1", {"text": "another"}), 422, "idempotency_key_reused")
    error_of(send("k2", {"id": "broken"}), 400)
    assert send("k2", {"id": "broken", "text": "mended"}).status_code == 200, "a failed request can be sent again"
    error_of(send("k" * 256, {"text": "x"}), 400)


def test_the_same_key_while_the_first_request_is_answered(http, memory, server):
    def send():
        return add(http, memory, {"id": "a", "text": "a text"}, headers={"idempotency-key": "busy"})

    held, scheduler = threading.Event(), server.services.scheduler
    scheduler.submit(lambda job: held.wait(30), Lane.WRITE)
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(send)
            until(lambda: scheduler.waiting(Lane.WRITE) == 1)
            refused = send()
            error_of(refused, 409, "idempotency_key_in_use")
            assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("1", "true")
        finally:
            held.set()
        assert first.result().json()["encoded"] == 1
    again = send()
    assert (again.json(), again.headers["idempotency-replayed"]) == (first.result().json(), "true")


def test_the_same_key_for_uploads_and_snapshots(http, memory, server):
    headers = {"idempotency-key": "upload"}
    first, again = (upload(http, memory, DOCUMENTS, headers=headers).json() for _ in range(2))
    assert first == again
    error_of(upload(http, memory, DOCUMENTS[:1], headers=headers), 422, "idempotency_key_reused")
    form = {"files": [("file", ("a.txt", b"text " * 50))], "headers": {"idempotency-key": "form"}}
    first, again = (http.post(f"{memory}/documents", **form).json() for _ in range(2))
    assert first["id"] == again["id"], "another boundary is no other form"
    form["files"] = [("file", ("a.txt", b"other text"))]
    error_of(http.post(f"{memory}/documents", **form), 422, "idempotency_key_reused")
    first, again = (http.post(f"{memory}/snapshots", headers={"idempotency-key": "s"}).json() for _ in range(2))
    assert first == again
    assert os.listdir(server.services.operations.spool) == []


def test_a_deleted_memory_s_keys_are_forgotten(http):
    for _ in range(2):
        http.put("/v1/memories/again", json={})
        headers = {"idempotency-key": "same"}
        assert add(http, "/v1/memories/again", {"id": "a", "text": "x"}, headers=headers).json()["encoded"] == 1
        assert http.get("/v1/memories/again").json()["documents"] == 1
        http.delete("/v1/memories/again")


def test_snapshots(http, memory):
    add(http, memory, *DOCUMENTS)
    made = http.post(f"{memory}/snapshots")
    assert (made.status_code, made.json()["documents"]) == (201, 2)
    snapshot = made.json()["id"]
    http.delete(f"{memory}/documents/other")
    assert [entry["id"] for entry in http.get(f"{memory}/snapshots").json()["data"]] == [snapshot]
    address = f"{memory}/snapshots/{snapshot}"
    restored = http.post(f"{address}/restore", json={"memory": "restored"})
    assert (restored.status_code, restored.json()["documents"]) == (201, 2)
    assert http.get("/v1/memories/restored/documents/other").status_code == 200
    ask = {"model": "msa-tiny@restored", "messages": [{"role": "user", "content": QUESTION}]}
    assert http.post("/v1/chat/completions", json=ask).json()["choices"][0]["message"]["content"] == ANSWER
    error_of(http.post(f"{address}/restore", json={"memory": "restored"}), 409, "name_taken")
    error_of(http.post(f"{address}/restore", json={"memory": "../x"}), 400, "invalid_memory_name")
    error_of(http.post(f"{memory}/snapshots/snap_0/restore", json={"memory": "y"}), 404, "snapshot_not_found")
    later = http.post(f"{memory}/snapshots", params={"wait": False})
    assert later.status_code == 202
    until(lambda: http.get(later.headers["location"]).json()["status"] == "succeeded")
    assert http.delete(address).json()["deleted"] is True
    error_of(http.get(address), 404, "snapshot_not_found")
    http.delete("/v1/memories/restored")


def test_verifying_and_compacting(http, memory):
    add(http, memory, *DOCUMENTS)
    http.delete(f"{memory}/documents/other")
    assert http.post(f"{memory}/verify").json()["ok"] is True
    assert http.post(f"{memory}/compact").json()["removed_parts"] == 1


def test_metrics_health_and_root(http):
    text = http.get("/metrics").text
    for name in (
        'msa:num_requests_running{model_name="msa-tiny"} 0.0',
        "msa:request_success_total{",
        "msa:time_to_first_token_seconds_bucket{",
        'msa:kv_cache_usage_perc{model_name="msa-tiny"} 0.0',
        'msa:memory_documents{memory="known"} 2.0',
        'msa:memory_host_bytes{memory="known"} 0.0',  # content is mapped from disk
        'msa:http_responses_total{method="POST",route="/v1/memories/{name}/search",status="200"}',
    ):
        assert name in text
    (kept,) = re.findall(r'^msa:memory_device_bytes\{memory="known"\} (.*)$', text, re.MULTILINE)
    chunks = http.get("/v1/memories/known").json()["chunks"]
    assert float(kept) > 0
    assert float(kept) % chunks == 0, "routing keys of every chunk"
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json()["model"] == "msa-tiny"
    assert http.get("/").status_code == 200
    for name in ("nothing", "../app.py", "..%2fapp.py", "%2e%2e/app.py"):
        assert http.get(f"/page/{name}").status_code == 404
    assert "/v1/chat/completions" in http.get("/openapi.json").json()["paths"]
