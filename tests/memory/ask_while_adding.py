"""One process adds, changes and deletes documents while this one keeps asking, each with a model of its own.

The tests run a small one; for more documents: ``python tests/memory/ask_while_adding.py FOLDER 2000 5``, FOLDER not
existing yet, five documents a commit.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from tiny import tiny_model

from msa import Answer, Done, Hit, Memory

_TEXT = re.compile(r"Document (\d+), revision (\d+)\. The (?:moon|sun|sea) \d+\.")


def text_of(number: int, revision: int = 0) -> str:
    """A text that says which it is."""
    return f"Document {number}, revision {revision}. The {('moon', 'sun', 'sea')[number % 3]} {number * 7}."


def is_deleted(number: int, total: int) -> bool:
    """Whether :func:`write` deletes this document in the end."""
    return number % 11 == 5 and number <= total // 2


def write(memory: Memory, total: int, each: int, committed: Callable[[int], None]) -> None:
    """Add ``total`` documents, ``each`` a commit; change some and delete some on the way.

    Args:
        memory: open for writing.
        total: documents to add in all.
        each: documents of a commit.
        committed: called with the number of documents added so far.
    """
    for first in range(1, total + 1, each):
        numbers = range(first, min(first + each, total + 1))
        memory.add({"id": f"d{n}", "text": text_of(n)} for n in numbers)
        committed(numbers[-1])
        for n in range(first // 2, first // 2 + each):  # added long ago
            if n and is_deleted(n, total):
                memory.delete([f"d{n}"])
            elif n and n % 7 == 1:
                memory.add([{"id": f"d{n}", "text": text_of(n, 1), "metadata": {"changed": True}}])


class Asker:
    """Asks one memory in every way, and checks each answer against what :func:`write` may have done.

    Attributes:
        questions: how many were asked; version: the newest that was seen.
    """

    def __init__(self, memory: Memory, total: int) -> None:
        self.questions, self.version = 0, -1
        self._memory, self._total = memory, total
        self._ways: Iterator[Callable[[str], list[Hit]]] = itertools.cycle(
            (
                lambda text: memory.search(text, top_k=5),
                lambda text: self._sources(memory.ask(text, retrieval="routed", max_documents=3, max_new_tokens=3)),
                lambda text: memory.search(text, top_k=5, hybrid=True),
                lambda text: self._sources(memory.ask(text, retrieval="generative", max_rounds=2, max_new_tokens=3)),
                lambda text: self._streamed(text),
                lambda text: self._all(text),
            )
        )

    def ask(self, added: int) -> None:
        """One question, when ``added`` documents had been acknowledged."""
        before = self._memory.bank.version
        assert before >= self.version, "an older version was seen"
        hits = next(self._ways)(f"Where is document {1 + self.questions % added}?")
        self.version = self._memory.bank.version
        assert self.version >= before
        for hit in hits:
            self._check(hit)
        self.questions += 1

    def _check(self, hit: Hit) -> None:
        """The source is there, with a text that it has or had."""
        found = _TEXT.fullmatch(hit.text)
        assert found, hit.text
        number, revision = int(found[1]), int(found[2])
        assert hit.id == f"d{number}"
        assert hit.text == text_of(number, revision)
        assert hit.metadata == ({"changed": True} if revision else {})
        document = self._memory.get(hit.id)
        if document is None:
            assert is_deleted(number, self._total), f"{hit.id} is not there"
        else:
            assert document.text in (text_of(number), text_of(number, 1))

    def _sources(self, answer: Answer) -> list[Hit]:
        assert answer.rounds
        assert sorted(name for one in answer.rounds for name in one.retrieved) == sorted(s.id for s in answer.sources)
        return answer.sources

    def _streamed(self, text: str) -> list[Hit]:
        *_, done = self._memory.stream(text, retrieval="routed", max_new_tokens=3)
        assert isinstance(done, Done)
        return self._sources(done.answer)

    def _all(self, text: str) -> list[Hit]:
        """Everything acknowledged before can be found, each document once."""
        least = [document.id for document in self._memory.list()]
        hits = self._memory.search(text, top_k=10 * self._total)
        ids = {hit.id for hit in hits}
        assert len(ids) == len(hits)
        assert {name for name in least if not is_deleted(int(name[1:]), self._total)} <= ids
        return hits[:10]


def check_finished(memory: Memory, total: int) -> None:
    """All that :func:`write` did is there."""
    assert memory.verify() == []
    kept = [n for n in range(1, total + 1) if not is_deleted(n, total)]
    assert [document.id for document in memory.list()] == [f"d{n}" for n in kept]
    changed = {n for n in kept if n % 7 == 1 and n < total // 2}
    assert {n for n in kept if memory.get(f"d{n}").text == text_of(n, 1)} >= changed  # type: ignore[union-attr]


def main(folder: Path, total: int, each: int) -> tuple[int, int]:
    """Write in another process and ask in this one.

    Returns:
        How many questions were asked, and of how many versions.
    """
    Memory.open(folder, tiny_model()).close()
    command = [sys.executable, __file__, "write", str(folder), str(total), str(each)]
    acknowledged = folder.with_name(f"{folder.name} acknowledged")
    with (
        acknowledged.open("w") as out,
        subprocess.Popen(command, stdout=out) as writer,
        Memory.open(folder, tiny_model(), read_only=True) as memory,
    ):
        asker = Asker(memory, total)
        versions = set()
        while writer.poll() is None:
            added = len(acknowledged.read_text().split())
            if not added:
                time.sleep(0.02)
                continue
            asker.ask(each * (added - 1) or 1)
            versions.add(asker.version)
        assert writer.returncode == 0, "the writer failed"
        asker.ask(total)
        check_finished(memory, total)
    return asker.questions, len(versions)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "write":
        with Memory.open(sys.argv[2], tiny_model()) as memory:
            write(memory, int(sys.argv[3]), int(sys.argv[4]), lambda n: print(n, flush=True))  # noqa: T201
    else:
        started = time.monotonic()
        questions, versions = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
        print(f"{questions} questions, {versions} versions, {time.monotonic() - started:.0f} s")  # noqa: T201
