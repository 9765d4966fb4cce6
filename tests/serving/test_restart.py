"""Servers in processes of their own: killed at work, started again, stopped by a signal."""

import json
import signal

from serving_helpers import ENDLESS, NEEDLE, QUESTION, process, until

NDJSON = {"content-type": "application/x-ndjson"}


def test_killed_while_it_adds_and_started_again(tmp_path):
    lines = [{"id": f"d{n}", "text": f"Document {n}. " + "The grass is green. " * 100} for n in range(20)]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    documents = "/v1/memories/m/documents"
    key = {"idempotency-key": "first"}
    with process(tmp_path / "root", drain_s=20) as (server, http):
        assert http.put("/v1/memories/m", json={}).status_code == 201
        first = http.post(documents, json={"id": "needle", "text": NEEDLE}, headers=key)
        assert first.status_code == 200
        snapshot = http.post("/v1/memories/m/snapshots").json()["id"]
        accepted = http.post(documents, content=body, headers=NDJSON, params={"wait": False})
        waiting = http.post(documents, content=body[:100], headers=NDJSON, params={"wait": False})
        broken = waiting.headers["location"]
        address = accepted.headers["location"]
        until(lambda: 0 < http.get(address).json()["progress"].get("documents", 0) < len(lines))
        server.kill()
        server.wait()

    with process(tmp_path / "root", drain_s=20) as (server, http):
        assert http.get(f"{documents}/needle").json()["text"] == NEEDLE, "what was acknowledged is there"
        again = http.post(documents, json={"id": "needle", "text": NEEDLE}, headers=key)
        assert (again.json(), again.headers["idempotency-replayed"]) == (first.json(), "true")
        assert [entry["id"] for entry in http.get("/v1/memories/m/snapshots").json()["data"]] == [snapshot]
        until(lambda: http.get(address).json()["status"] not in ("queued", "running"))
        operation = http.get(address).json()
        assert (operation["status"], operation["result"]["documents"]) == ("succeeded", len(lines))
        assert operation["result"]["unchanged"] > 0, "what had been committed is not encoded again"
        assert http.get("/v1/memories/m").json()["documents"] == len(lines) + 1
        until(lambda: http.get(broken).json()["status"] == "failed")
        assert http.get(broken).json()["error"]["code"] == "invalid_document"
        assert http.post("/v1/memories/m/verify").json()["ok"] is True
        hits = http.post("/v1/memories/m/search", json={"query": QUESTION}).json()["data"]
        assert hits[0]["id"] == "needle"

        body = {"model": "msa-tiny@m", **ENDLESS, "max_tokens": 200, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            pieces = response.iter_text()
            next(pieces)
            server.send_signal(signal.SIGTERM)
            text = "".join(pieces)
        assert text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"' in text, "SIGTERM lets a running answer end"
        assert server.wait(30) == 0
