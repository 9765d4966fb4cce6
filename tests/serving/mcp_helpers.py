"""What the tests of MCP share: documents, and what a call returned."""

import json
import re

from serving_helpers import NEEDLE

DOCUMENTS = [
    {"id": "notes/ages.md", "text": NEEDLE, "metadata": {"title": "Ages", "url": "https://example.com/ages"}},
    {"id": "other", "text": "The sky is blue. Here we go."},
]


def value(result):
    """What a successful call returned; the text and the structured content must say the same."""
    assert not result.is_error, result.content
    (text,) = result.content
    assert json.loads(text.text) == result.structured_content
    return result.structured_content


def failure(result):
    assert result.is_error
    (text,) = result.content
    assert "Traceback" not in text.text
    assert "/" not in re.sub(r"https://errors.pydantic.dev/\S+", "", text.text), "no paths of this machine"
    return text.text
