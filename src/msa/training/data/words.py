"""Words for needles and sentences for the haystack around them, each split once and for all into seen and held out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from msa.documents.readers import read_documents
from msa.errors import TrainingDataError

NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
_WORD, _SENTENCE_END = re.compile(r"[a-z]{3,}"), re.compile(r"(?<=[.!?])\s+")


def is_held_out(text: str, share: float = 0.1) -> bool:
    """Whether a word or sentence belongs to the held-out side; depends on nothing but its characters."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def needle_words(*, held_out: bool) -> tuple[list[str], list[str]]:
    """RULER's adjectives and nouns (the wonderwords package), those seen in training or those held out.

    Raises:
        TrainingDataError: wonderwords is not installed.
    """
    try:
        assets = files("wonderwords") / "assets"
    except ModuleNotFoundError as error:
        raise TrainingDataError(
            "needles need the wonderwords package: pip install 'memory-sparse-attention[train]'"
        ) from error
    lists = []
    for name in ("adjectivelist.txt", "nounlist.txt"):
        words = set((assets / name).read_text(encoding="utf-8").split())
        lists.append(sorted(word for word in words if _WORD.fullmatch(word) and is_held_out(word) is held_out))
    return lists[0], lists[1]


def haystack_sentences(paths: Sequence[str | Path] = (), *, held_out: bool) -> list[str]:
    """Sentences of 3 to 40 words from text files (none: a general text that comes with the package), and RULER's noise.

    Raises:
        DocumentError: a file that cannot be read.
        TrainingDataError: no sentence in them.
    """
    texts: Iterable[str]
    if paths:
        texts = [document.text for document in read_documents([Path(path) for path in paths])]
    else:
        lines = (files("msa") / "conversion" / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
    found = {sentence.strip() for text in texts for sentence in _SENTENCE_END.split(text)}
    kept = sorted(s for s in found if 3 <= len(s.split()) <= 40 and is_held_out(s) is held_out)
    if not kept:
        raise TrainingDataError(f"no sentences of 3 to 40 words in {', '.join(map(str, paths)) or 'the shipped text'}")
    noise = [NOISE[i % len(NOISE)] for i in range(max(len(kept) // 10, len(NOISE)))]
    return kept + noise
