"""Documents of haystack for one large memory: each depends on its number alone, so none has to be kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from msa.evaluation.haystack import NOISE_LINE, Essay
from msa.evaluation.ruler.tasks import NiahTask, Task
from msa.evaluation.ruler.tokens import Numbered

_MEASURED_LINES = 64


class Filler:
    """Maker of documents of about ``document_tokens`` tokens, with given lines put in.

    Running text begins anew in each document, at a sentence drawn for it, so that a text shorter than the memory
    returns in other documents, cut elsewhere. Lines of needles have keys and values of their own, numbered from the end
    of what there is; questions take theirs from the beginning.

    Args:
        task: whose haystack it is.
        count: tokens of a text.
        document_tokens: about how many tokens a document is to have.
        seed: of the draws.
        essay: running text, where the haystack is that.
        keys, values: what lines of needles are made of.
    """

    def __init__(
        self,
        task: Task,
        count: Callable[[str], int],
        document_tokens: int,
        seed: str,
        essay: Essay | None,
        keys: Numbered,
        values: Numbered,
    ) -> None:
        self.task, self._count, self._document_tokens, self._seed = task, count, document_tokens, seed
        self._essay, self._keys, self._values = essay, keys, values
        self._known: dict[str, int] = {}
        self.lines_per_document = 0
        if isinstance(task, NiahTask) and task.haystack == "needle":
            sample = sum(count(self._line(task, number)) for number in range(_MEASURED_LINES))
            self.lines_per_document = max(1, round(document_tokens * _MEASURED_LINES / max(sample, 1)))

    def document(self, number: int, inserted: Sequence[str] = ()) -> str:
        """Document ``number`` of the memory, with ``inserted`` at places drawn for it, in order."""
        rng = random.Random(f"{self._seed}/document/{number}")
        left = self._document_tokens - sum(self._count(line) for line in inserted)
        if isinstance(self.task, NiahTask) and self.task.haystack == "needle":
            lines = self._needles(self.task, number, len(inserted))
        elif self._essay:
            lines = self._text(self._essay, rng.randrange(len(self._essay.ends)), left)
        else:
            lines = [NOISE_LINE] * max(1, round(left / max(self.tokens(NOISE_LINE), 1)))
        places = sorted(rng.randint(0, len(lines)) for _ in inserted)
        for shift, (place, line) in enumerate(zip(places, inserted, strict=True)):
            lines.insert(place + shift, line)
        return (" " if self._essay else "\n").join(lines)

    def _needles(self, task: NiahTask, number: int, replaced: int) -> list[str]:
        first = number * self.lines_per_document
        return [self._line(task, first + line) for line in range(self.lines_per_document - replaced)]

    def _line(self, task: NiahTask, number: int) -> str:
        return task.needle(self._keys[-1 - number], self._values[-1 - number])

    def _text(self, essay: Essay, sentence: int, tokens: int) -> list[str]:
        """Sentences up to the one whose end is nearest to so many tokens."""
        found: list[str] = []
        while True:
            text = essay.sentence(sentence + len(found))
            more = self.tokens(text)
            if found and more / 2 > tokens:
                return found
            found.append(text)
            tokens -= max(more, 1)

    def tokens(self, text: str) -> int:
        """Tokens of a sentence or line that returns in other documents; counted once."""
        if text not in self._known:
            self._known[text] = self._count(text)
        return self._known[text]
