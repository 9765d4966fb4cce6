"""``/openapi.json`` says what really comes: its shapes, statuses and headers, against a server on a socket."""

import json
import os
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from serving_helpers import DOCUMENTS, QUESTION

from msa.serving import schemas
from msa.serving.keys import ApiKey, key_digest

# of each operation and kind; a long run has more, or is: schemathesis run http://…/openapi.json
EXAMPLES = int(os.environ.get("MSA_FUZZ_EXAMPLES", "4"))
CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection",
]  # fmt: skip


@pytest.fixture(scope="module")
def description(server):
    with server.http() as http:
        return http.get("/openapi.json").json()


def operations(description):
    for path, found in description["paths"].items():
        for method, operation in found.items():
            yield f"{method.upper()} {path}", operation


def test_every_reference_leads_somewhere(description):
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(description)))
    assert named <= set(description["components"]["schemas"])
    assert "ChatCompletion" in named


def test_every_route_is_described(server, description):
    """A route without a shape of its answer, or with an error that is never sent, was forgotten."""
    for label, operation in operations(description):
        answers = {status: answer for status, answer in operation["responses"].items() if status < "400"}
        assert all(content["schema"] for answer in answers.values() for content in answer["content"].values()), label
        assert "HTTPValidationError" not in json.dumps(operation), label
        assert {"421", "500", "503"} <= set(operation["responses"]), label
    assert not description["components"].get("securitySchemes"), "this server has no keys"


def test_keys_are_described(start, tmp_path):
    key = ApiKey(digest=key_digest("sk-everything"), name="all")
    with start(tmp_path, keys=(key,)) as server, server.http() as http:
        described = http.get("/openapi.json").json()
        assert described["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
        for label, operation in operations(described):
            is_open = label in ("GET /health", "GET /ready")
            assert ("401" in operation["responses"], "security" in operation) == (not is_open, not is_open), label


def test_the_methods_of_a_path(http):
    for path, methods in (
        ("/health", "GET, HEAD"),
        ("/v1/chat/completions", "POST"),
        ("/v1/memories/known", "DELETE, GET, PUT"),
        ("/v1/memories/known/documents", "GET, POST"),
        ("/v1/memories/known/documents/a", "DELETE, GET, PATCH, PUT"),
    ):
        refused = http.request("PROPFIND", path)
        assert (refused.status_code, refused.headers.get_list("allow")) == (405, [methods]), path
    assert http.head("/health").status_code == 200


def test_an_answer_is_what_is_described(http):
    """With sources, rounds and a citation, which made-up requests rarely get."""
    answer = http.post(
        "/v1/chat/completions",
        json={"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}]},
    ).json()
    described = schemas.ChatCompletion.model_validate(answer)
    assert described.sources
    assert described.msa.rounds
    assert described.choices[0].message.annotations
    assert described.model_dump() == answer, "it has a field that is not described"


def test_what_comes_is_what_is_described(server, http):
    """Requests made from the description, right and wrong ones; answers checked against it."""
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    statuses = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        http.put("/v1/memories/fuzzed", json={})
        http.post("/v1/memories/fuzzed/documents", json={"documents": DOCUMENTS})
        modes = [schemathesis.GenerationMode.POSITIVE]
        if "requestBody" in operation.definition.raw:  # a path alone cannot be wrong
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        for mode in modes:
            statuses |= run(operation.as_strategy(generation_mode=mode), checks)
    assert {200, 201, 202, 400, 404} <= statuses, "the requests did not get far"


def run(strategy, checks):
    """Send what a strategy makes; returns the statuses that came."""
    statuses = set()

    @settings(max_examples=EXAMPLES, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
    @given(case=strategy)
    def send(case):
        if "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = "fuzzed"
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body |= {"model": "msa-tiny@fuzzed", "max_completion_tokens": 4}
        response = case.call(timeout=20)
        statuses.add(response.status_code)
        case.validate_response(response, checks=checks)

    send()
    return statuses
