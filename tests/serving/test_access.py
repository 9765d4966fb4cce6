"""Who may do what, from where."""

import logging
import os
import shutil

import httpx
import pytest
from serving_helpers import DOCUMENTS, QUESTION, error_of

from msa.bank import MemoryBank
from msa.serving.errors import ApiError
from msa.serving.keys import ApiKey, key_digest
from msa.serving.memories import Memories
from msa.serving.snapshots import Snapshots

KEYS = {
    "sk-everything": ApiKey(digest=key_digest("sk-everything"), name="all"),
    "sk-reads-all": ApiKey(digest=key_digest("sk-reads-all"), name="reader", read_only=True),
    "sk-only-mine": ApiKey(digest=key_digest("sk-only-mine"), name="mine", memories=("mine", "mine-*")),
    "sk-reads-mine": ApiKey(digest=key_digest("sk-reads-mine"), name="r-mine", memories=("mine",), read_only=True),
}
ALL, READER, MINE, READS_MINE = KEYS


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    with start(tmp_path_factory.mktemp("guarded"), keys=tuple(KEYS.values())) as server, server.http(ALL) as http:
        for name in ("mine", "theirs"):
            http.put(f"/v1/memories/{name}", json={})
            http.post(f"/v1/memories/{name}/documents", json={"documents": DOCUMENTS})
        yield server


def ask(name):
    return {"model": f"msa-tiny@{name}", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}


def requests(name):
    """Method, address, body, and whether it changes something."""
    memory = f"/v1/memories/{name}"
    return [
        ("GET", memory, None, False),
        ("GET", f"{memory}/documents", None, False),
        ("GET", f"{memory}/documents/other", None, False),
        ("POST", f"{memory}/search", {"query": QUESTION}, False),
        ("POST", "/v1/chat/completions", ask(name), False),
        ("GET", f"/v1/models/msa-tiny@{name}", None, False),
        ("GET", f"{memory}/snapshots", None, False),
        ("POST", f"{memory}/documents", {"documents": DOCUMENTS}, True),
        ("PUT", f"{memory}/documents/other", {"text": DOCUMENTS[0]["text"], "metadata": {"lang": "en"}}, True),
        ("PATCH", f"{memory}/documents/other", {"metadata": {"lang": "en"}}, True),
        ("POST", f"{memory}/documents/delete", {"ids": ["nothing"]}, True),
        ("POST", f"{memory}/snapshots", {}, True),
        ("POST", f"{memory}/compact", {}, True),
    ]


@pytest.mark.parametrize("key", [None, "", "wrong", "sk-everythin", "sk-everything2", "Bearer sk-everything"])
def test_without_a_known_key_nothing_but_health_is_open(server, key):
    with server.http(key) as http:
        answers = {http.request(method, url, json=body).text for method, url, body, _ in requests("mine")}
        for method, url, body, _ in requests("mine"):
            response = http.request(method, url, json=body)
            error_of(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        assert len(answers) == 1
        for url in ("/v1/models", "/v1/memories", "/metrics", "/v1/operations"):
            error_of(http.get(url), 401, "invalid_api_key")
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code == 200
        assert http.get("/").status_code == 200


@pytest.mark.parametrize("scheme", ["Basic", "Token", ""])
def test_other_schemes_do_not_count(server, scheme):
    response = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"{scheme} {ALL}".strip()})
    error_of(response, 401, "invalid_api_key")


@pytest.mark.parametrize(("key", "name"), [(key, name) for key in KEYS for name in ("mine", "theirs", "nothing")])
def test_what_each_key_may_do(server, key, name):
    opens = KEYS[key].opens(name) and name != "nothing"
    with server.http(key) as http:
        for method, url, body, changes in requests(name):
            response = http.request(method, url, json=body)
            if KEYS[key].opens(name) and changes and KEYS[key].read_only:
                error_of(response, 403, "read_only_key")
            elif opens:
                assert response.status_code in (200, 201), response.text
            else:
                error_of(response, 404, "memory_not_found")


@pytest.mark.parametrize("key", [MINE, READS_MINE])
def test_a_foreign_memory_looks_like_none(server, key):
    with server.http(key) as http:
        for theirs, nothing in zip(requests("theirs"), requests("nothing"), strict=True):
            answers = [http.request(method, url, json=body).text for method, url, body, _ in (theirs, nothing)]
            assert answers[0].replace("theirs", "nothing") == answers[1]
        answers = [http.put(f"/v1/memories/{name}", json={}) for name in ("theirs", "nothing")]
        assert answers[0].status_code == 403
        assert answers[0].text.replace("theirs", "nothing") == answers[1].text


@pytest.mark.parametrize("name", ["theirs", "nothing"])
def test_a_foreign_memory_costs_no_look_at_the_disk(server, name, monkeypatch):
    """How long a look takes would tell whether it exists."""
    looked = []

    def watch(owner, method):
        real = getattr(owner, method)

        def watched(*arguments, **options):
            looked.append(method)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, method, staticmethod(watched) if owner is MemoryBank else watched)

    for owner, methods in (
        (Memories, ("names", "exists", "fits", "create", "delete", "verify", "pinned", "check_free", "building")),
        (Memories, ("_identity", "_acquire", "_folder_names", "_opened")),
        (MemoryBank, ("exists", "open")),
        (Snapshots, ("list", "get", "delete", "check_source")),
        (os, ("scandir", "listdir")),
    ):
        for method in methods:
            watch(owner, method)
    memory = f"/v1/memories/{name}"
    more = [
        ("PUT", memory, {}, True),
        ("DELETE", memory, None, True),
        ("DELETE", f"{memory}/documents/other", None, True),
        ("POST", f"{memory}/verify", {}, False),
        ("GET", f"{memory}/snapshots/snap_0", None, False),
        ("DELETE", f"{memory}/snapshots/snap_0", None, True),
        ("POST", f"{memory}/snapshots/snap_0/restore", {"memory": "mine-2"}, True),
        ("POST", "/v1/memories/mine/snapshots/snap_0/restore", {"memory": name}, True),
    ]
    for key in (MINE, READS_MINE):
        with server.http(key) as http:
            for method, url, body, _ in requests(name) + more:
                assert http.request(method, url, json=body).status_code in (403, 404)
                assert not looked, (method, url)
    with server.http(MINE) as http:
        http.get("/v1/memories/mine")
        assert "_acquire" in looked, "nothing was watched"


@pytest.mark.parametrize(
    "target",
    [
        "theirs", "th%65irs", "THEIRS", "theirs/", "theirs%00", "theirs%20", "./theirs", "/theirs", "mine/../theirs",
        "mine%2f..%2ftheirs", "mine;/../theirs", "mine,theirs", "*", "t*", "work-*", "work-../theirs", "mine%0d%0atheirs",
        "mine/documents/../../theirs", "mine/documents/..%2f..%2ftheirs%2fdocuments%2fother", "mine/snapshots/..%2ftheirs",
    ],
)  # fmt: skip
def test_no_way_to_write_an_address_leads_to_others(server, target):
    with server.http(MINE) as http, server.http(ALL) as all_of_it:
        for method in ("GET", "DELETE", "PATCH", "POST"):
            for rest in ("", "/documents", "/documents/other"):
                address = f"/v1/memories/{target}{rest}".encode()
                answer = http.request(method, "/", extensions={"target": address}, json={"text": "x"})
                assert answer.status_code in (404, 405), answer.text
                assert DOCUMENTS[0]["text"] not in answer.text
        found = all_of_it.get("/v1/memories/theirs/documents/other").json()
        assert found["text"] == DOCUMENTS[0]["text"]


def test_listings_show_what_the_key_opens(server):
    for key, names in (
        (ALL, ["mine", "theirs"]),
        (READER, ["mine", "theirs"]),
        (MINE, ["mine"]),
        (READS_MINE, ["mine"]),
    ):
        with server.http(key) as http:
            assert [entry["id"] for entry in http.get("/v1/memories").json()["data"]] == names
            assert [entry["memory"] for entry in http.get("/v1/models").json()["data"]] == names
            assert http.get("/metrics").status_code == (200 if KEYS[key].is_unrestricted else 403)


def test_operations_and_snapshots_of_others(server):
    with server.http(ALL) as http, server.http(MINE) as mine:
        operation = http.post("/v1/memories/theirs/snapshots", params={"wait": False}).json()
        address = f"/v1/operations/{operation['id']}"
        assert http.get(address).status_code == 200
        error_of(mine.get(address), 404, "operation_not_found")
        error_of(mine.delete(address), 404, "operation_not_found")
        assert operation["id"] not in mine.get("/v1/operations").text
        assert mine.get("/v1/operations", params={"memory": "theirs"}).json()["data"] == []
        snapshot = mine.post("/v1/memories/mine/snapshots").json()["id"]
        restore = f"/v1/memories/mine/snapshots/{snapshot}/restore"
        error_of(mine.post(restore, json={"memory": "theirs"}), 403, "memory_not_allowed")
        error_of(mine.post(restore, json={"memory": "yours"}), 403, "memory_not_allowed")
        assert mine.post(restore, json={"memory": "mine-2"}).status_code == 201
        assert mine.delete("/v1/memories/mine-2").status_code == 200


def test_idempotency_keys_are_each_client_s_own(server):
    for key in (ALL, MINE):
        with server.http(key) as http:
            headers = {"idempotency-key": "same"}
            response = http.post("/v1/memories/mine/documents", json={"id": key, "text": key}, headers=headers)
            assert (response.status_code, response.json()["ids"]) == (200, [key])


def test_keys_are_never_logged(server, caplog):
    caplog.set_level(logging.DEBUG)
    for key in (MINE, "sk-wrong-key"):
        with server.http(key) as http:
            http.get("/v1/models", params={"key": key})
    assert '"key": "mine"' in caplog.text
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("msa")]
    assert lines
    assert not [line for line in lines if MINE in line or "sk-wrong-key" in line]


def test_foreign_pages_and_names(start, tmp_path):
    """A page in somebody's browser must not reach a server that trusts its machine."""
    with start(tmp_path, allowed_hosts=("127.0.0.1", "localhost")) as server, server.http() as http:
        evil = {"origin": "https://evil.example"}
        error_of(http.put("/v1/memories/a", json={}, headers=evil), 403, "origin_not_allowed")
        error_of(http.put("/v1/memories/a", json={}, headers={"origin": "null"}), 403, "origin_not_allowed")
        assert http.put("/v1/memories/a", json={}, headers={"origin": server.url}).status_code == 201
        answer = http.get("/v1/memories", headers=evil)
        assert "access-control-allow-origin" not in answer.headers
        preflight = {**evil, "access-control-request-method": "PUT"}
        assert "access-control-allow-origin" not in http.options("/v1/memories/a", headers=preflight).headers
        for host in ("evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "[::1"):
            error_of(http.get("/v1/memories", headers={"host": host}), 421, "wrong_host")
        assert http.get("/v1/memories", headers={"host": "localhost:1"}).status_code == 200


def test_origins_that_were_allowed(start, tmp_path, monkeypatch):
    with start(tmp_path, cors_origins=("https://ours.example",)) as server, server.http() as http:
        ours = {"origin": "https://ours.example"}
        answer = http.put("/v1/memories/a", json={}, headers=ours)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, "https://ours.example")
        preflight = {
            **ours,
            "access-control-request-method": "DELETE",
            "access-control-request-headers": "authorization",
        }
        allowed = http.options("/v1/memories/a", headers=preflight)
        assert allowed.status_code == 200
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        error_of(http.put("/v1/memories/a", json={}, headers={"origin": "https://evil.example"}), 403)
        # also what no route expected can be read there, with the id to look for in the log
        monkeypatch.setattr(server.services.memories, "names", lambda: 1 // 0)
        broken = http.get("/v1/memories", headers=ours)
        error_of(broken, 500)
        assert broken.headers["access-control-allow-origin"] == "https://ours.example"
        assert broken.headers["x-request-id"].startswith("req_")


def test_another_key_s_memory_is_in_nobody_s_way_and_cannot_be_guessed(server):
    """``Mine-b`` is not opened by the key that opens ``mine-*``: its names must not tell of it."""
    with server.http(ALL) as everything, server.http(MINE) as mine:
        everything.put("/v1/memories/Mine-b", json={})
        snapshot = mine.post("/v1/memories/mine/snapshots").json()["id"]
        address = f"/v1/memories/mine/snapshots/{snapshot}"
        try:
            free = mine.put("/v1/memories/mine-a", json={})
            assert mine.put("/v1/memories/mine-b", json={}).status_code == free.status_code == 201
            mine.delete("/v1/memories/mine-b")
            for headers in ({}, {"idempotency-key": "once"}):
                restored = mine.post(f"{address}/restore", json={"memory": "mine-b"}, headers=headers)
                documents = mine.get("/v1/memories/mine").json()["documents"]
                assert (restored.status_code, restored.json()["documents"]) == (201, documents)
                assert everything.get("/v1/memories/Mine-b").json()["documents"] == 0
                taken = mine.post(f"{address}/restore", json={"memory": "mine-b"})
                assert error_of(taken, 409, "name_taken")
                mine.delete("/v1/memories/mine-b")
            # who knows of both is told
            error_of(everything.put("/v1/memories/mine-b", json={}), 409, "name_taken")
            error_of(everything.post(f"{address}/restore", json={"memory": "mine-b"}), 409, "name_taken")
        finally:
            for name in ("Mine-b", "mine-a", "mine-b"):
                everything.delete(f"/v1/memories/{name}")


def test_a_file_system_that_takes_two_names_for_one(server, tmp_path):
    memories = server.services.memories
    with memories.building() as folder:
        folder.mkdir()
        (folder / "x").write_text("x")
        os.mkdir(memories.root / "foreign")
        (memories.root / "foreign" / "file").write_text("x")
        try:
            with pytest.raises(ApiError) as error:
                memories.place(folder, "foreign")
            assert (error.value.status, error.value.code) == (409, "name_taken")
        finally:
            shutil.rmtree(memories.root / "foreign")
