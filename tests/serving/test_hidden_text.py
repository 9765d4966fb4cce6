"""What the model and the engine say to each other stays between them, however short an answer is cut."""

import json

import pytest
from serving_helpers import ANSWER, QUESTION

LEAD = "The answer is:"  # msa-tiny's opening, which is not shown


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def said(request, http):
    """Asks; returns the content and the finish reason, whole or put together from a stream."""

    def ask(**options):
        body = {"model": "msa-tiny@known", "messages": [{"role": "user", "content": QUESTION}], **options}
        response = http.post("/v1/chat/completions", json={**body, "stream": request.param})
        assert response.status_code == 200, response.text
        if not request.param:
            choice = response.json()["choices"][0]
            return choice["message"]["content"], choice["finish_reason"]
        events = [json.loads(event[6:]) for event in response.text.split("\n\n") if event.startswith("data: {")]
        choices = [event["choices"][0] for event in events]
        return "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]["finish_reason"]

    return ask


def test_an_answer_cut_inside_its_hidden_opening(said):
    lengths = set()
    for tokens in range(1, 15):
        content, reason = said(max_completion_tokens=tokens)
        assert ANSWER.startswith(content), f"with {tokens} tokens: {content!r}"
        assert reason == ("length" if content != ANSWER else reason)
        lengths.add(len(content))
    assert 0 in lengths
    assert len(lengths) > 5, "some answers were cut before the value, some in it"


@pytest.mark.parametrize("stop", ["The", "answer", " is:", "is", ":", "4", "42"])
def test_stop_strings_do_not_show_the_opening(said, stop):
    content, reason = said(stop=stop)
    assert (content, reason) == (ANSWER.partition(stop)[0] if stop in ANSWER else ANSWER, "stop")


def test_control_tokens_are_never_shown(said):
    """Sampled so hot that the model writes anything, its own control tokens among it."""
    for seed in range(5):
        content, _ = said(temperature=2, seed=seed, max_tokens=40)
        assert "<|" not in content
        assert not content.startswith(LEAD)
