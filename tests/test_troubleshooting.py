"""docs/troubleshooting.md: every message it quotes is one of the source's."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PREFIXES = ("msa: ", "skipped: ", "note: ")  # of the commands' own lines
QUOTED = [quote for bold in re.findall(r"\*\*(.+?)\*\*", PAGE, re.DOTALL) for quote in re.findall(r"`([^`]+)`", bold)]


def pieces(node):
    """What a string is made of; an empty string stands for each value that is put in."""
    if isinstance(node, ast.Constant):
        return node.value
    return "\0".join(part.value if isinstance(part, ast.Constant) else "" for part in node.values)


@pytest.fixture(scope="module")
def texts():
    """All strings of the package, without those that only explain the code."""
    found = set()
    for path in (ROOT / "src" / "msa").rglob("*.py"):
        nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                found.add(pieces(node))
    return found


def says(text, quote):
    """Whether a string holds what a quote says around its dots, in this order."""
    return re.search(".*".join(re.escape(part.strip()) for part in quote.split("…")), text, re.DOTALL) is not None


def test_the_page_quotes_messages():
    assert len(QUOTED) > 5
    assert sum(quote.startswith(PREFIXES) for quote in QUOTED) > 5


@pytest.mark.parametrize("prefix", PREFIXES)
def test_commands_begin_their_lines_so(texts, prefix):
    assert any(text.startswith(prefix) for text in texts)


@pytest.mark.parametrize("quote", QUOTED)
def test_every_message_quoted_is_one(texts, quote):
    prefix = next((prefix for prefix in PREFIXES if quote.startswith(prefix)), None)
    assert prefix, f"{quote!r} is not what a command would print: it begins with one of {PREFIXES}"
    message = quote.removeprefix(prefix)
    assert len(message.replace("…", "").strip()) > 8, "a quote of a few letters is found anywhere"
    assert any(says(text, message) for text in texts), f"no message of the source reads {message!r}"


def test_other_words_are_none(texts):
    for message in ("memory … was made by … with fingerprint x", "… another process is writing", "cannot fetch llm-…"):
        assert not any(says(text, message) for text in texts)
