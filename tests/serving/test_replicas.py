"""Several read-only servers of one folder, while another process changes what is in it."""

import threading

from serving_helpers import error_of, process

MODEL = "msa-tiny@shared"
CHAT = "/v1/chat/completions"
ROUNDS = 5


def needle(number):
    return {"id": f"n{number}", "text": f"One of the special magic numbers for wandering-age is: {4216000 + number}."}


def asked(stream=False):
    question = "What is the special magic number for wandering-age mentioned in the provided text?"
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "max_tokens": 24, "stream": stream}


def test_replicas_follow_the_one_that_writes(tmp_path, start):
    """Each keeps answering, never goes back, and has with its next request what the writer has acknowledged."""
    root = tmp_path / "served"
    documents = "/v1/memories/shared/documents"
    with process(root) as (_, writer):
        assert writer.put("/v1/memories/shared", json={}).status_code == 201
        assert writer.post(documents, json=needle(0)).status_code == 200
        with start(root, read_only=True) as one, start(root, read_only=True) as two, one.http() as a, two.http() as b:
            ended = threading.Event()
            wrong: list[str] = []
            seen: dict[int, list[int]] = {0: [], 1: []}

            def keep_asking(number, replica):
                while not ended.is_set():
                    answer = replica.post(CHAT, json=asked())
                    counts = replica.get("/v1/memories/shared")
                    if (answer.status_code, counts.status_code) != (200, 200):
                        wrong.append(answer.text + counts.text)
                    elif not answer.json()["sources"]:
                        wrong.append("an answer without sources")
                    else:
                        seen[number].append(counts.json()["version"])

            threads = [threading.Thread(target=keep_asking, args=each) for each in enumerate((a, b))]
            for thread in threads:
                thread.start()
            for number in range(1, ROUNDS):
                assert writer.post(documents, json=needle(number)).status_code == 200
                assert writer.delete(f"{documents}/n{number - 1}").status_code == 200
                for replica in (a, b):
                    found = replica.post("/v1/memories/shared/search", json={"query": "wandering-age", "top_k": 9})
                    assert [hit["id"] for hit in found.json()["data"]] == [f"n{number}"]
            assert writer.post("/v1/memories/shared/compact").status_code == 200
            ended.set()
            for thread in threads:
                thread.join(60)
            assert not wrong
            for versions in seen.values():
                assert versions == sorted(versions)
                assert len({*versions}) > 1
            for replica in (a, b):
                answer = replica.post(CHAT, json=asked()).json()
                assert [source["id"] for source in answer["sources"]] == [f"n{ROUNDS - 1}"]
                assert answer["choices"][0]["message"]["content"] == str(4216000 + ROUNDS - 1)
                error_of(replica.post(documents, json=needle(99)), 403, "read_only")
