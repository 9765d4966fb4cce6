"""Where the needles of a growing memory stand: numbers of documents, which its task and sizes alone decide.

No text and no tokenizer is needed, so what a stored run asked can be told from its settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from msa.evaluation.ruler.documents import DOCUMENT_TOKENS
from msa.evaluation.ruler.tasks import Task, VtTask, find_task

GRID = tuple(10.0 * step for step in range(11))
MOST_QUESTIONS = 110


@dataclass(frozen=True)
class Placed:
    """A question and where its needles stand.

    Attributes:
        id: of the question.
        places: numbers of the documents that its needles stand in, asked for or not, in their order.
        holders: those of the needles that its answer needs.
    """

    id: str
    places: tuple[int, ...]
    holders: tuple[int, ...]


class Placement:
    """Which documents hold the needles of which questions, size by size; see :mod:`msa.evaluation.ruler.growing`.

    Args:
        task: of :data:`~msa.evaluation.ruler.tasks.TASKS`.
        sizes: tokens of the documents, growing.
        num_questions: of the first size; rounded up to the same number for each depth.
        depths: grid in percent of the memory's documents, growing.
        document_tokens: about how many tokens a document has.

    Attributes:
        num_documents: of each size.
        by_size: the questions that each size brings.
        needles: number of a document → needles in it.

    Raises:
        ValueError: an unknown task, sizes or depths that do not grow, fewer depths than a question has needles, or a
            size of fewer documents than depths.
    """

    def __init__(
        self,
        task: str,
        sizes: Sequence[int],
        *,
        num_questions: int,
        depths: Sequence[float] = GRID,
        document_tokens: int = DOCUMENT_TOKENS,
    ) -> None:
        self.task, self.sizes, self.depths = find_task(task), tuple(sizes), tuple(map(float, depths))
        if num_questions < 1 or document_tokens < 1:
            raise ValueError(
                f"expected at least one question and one token a document, found {num_questions}, {document_tokens}"
            )
        self.num_documents = tuple(max(1, round(size / document_tokens)) for size in sizes)
        self._check(document_tokens)
        self._each = -(-num_questions // len(self.depths))
        self.needles: Counter[int] = Counter()
        self.by_size: list[list[Placed]] = []
        for stage in range(len(self.sizes)):
            self.by_size.append(self._place(stage))
        self._by_id = {placed.id: placed for own in self.by_size for placed in own}

    def stage(self, size: int) -> int:
        """Which of the sizes it is.

        Raises:
            ValueError: none of them.
        """
        if size not in self.sizes:
            raise ValueError(f"expected a size of {', '.join(map(str, self.sizes))}, found {size}")
        return self.sizes.index(size)

    def ids(self, size: int) -> list[str]:
        """Ids of all questions whose needles are in the memory of that size, oldest first."""
        return [placed.id for own in self.by_size[: self.stage(size) + 1] for placed in own]

    def depth(self, question_id: str, size: int) -> tuple[float, ...]:
        """Where each needle of a question stands in the memory of that size: 0 its first document, 100 its last.

        Raises:
            ValueError: no such size, or a question that is not in the memory of that size.
        """
        stage = self.stage(size)
        placed = self._by_id.get(question_id)
        if placed is None or max(placed.holders) >= self.num_documents[stage]:
            raise ValueError(f"the memory of {size:,} tokens has no question {question_id!r}")
        return tuple(percent(place, self.num_documents[stage]) for place in placed.holders)

    def depth_map(self, size: int) -> dict[float, list[str]]:
        """For each depth of the grid ids of questions whose first needle is nearest to it in the memory of that size.

        Raises:
            ValueError: no such size.
        """
        found: dict[float, list[str]] = {depth: [] for depth in self.depths}
        for name in self.ids(size):
            here = self.depth(name, size)[0]
            found[min(self.depths, key=lambda depth: abs(depth - here))].append(name)
        return found

    def density(self, question_id: str) -> int:
        """Needles in the document that holds the answer, its own among them; the most where several hold it.

        Documents get needles with the size that brings them and no more later, so this holds at every size.
        """
        return max(self.needles[place] for place in self._by_id[question_id].holders)

    @property
    def needles_each(self) -> int:
        """Needles of one question, asked for or not."""
        if isinstance(self.task, VtTask):
            return self.task.num_hops + 1
        return self.task.hidden_keys * self.task.num_values

    def _check(self, document_tokens: int) -> None:
        sizes, depths = self.sizes, self.depths
        if not sizes or any(new <= old for old, new in pairwise(sizes)) or sizes[0] < 1:
            raise ValueError(f"expected growing sizes, found {list(sizes)}")
        growing = all(new > old for old, new in pairwise(depths))
        if not depths or not growing or depths[0] < 0 or depths[-1] > 100:
            raise ValueError(f"expected growing depths from 0 to 100, found {list(depths)}")
        if len(depths) < self.needles_each:
            raise ValueError(
                f"{self.task.name} hides {self.needles_each} needles a question; expected at least as many depths, "
                f"found {len(depths)}"
            )
        if self.num_documents[0] < len(depths):
            raise ValueError(
                f"expected at least one document for each of {len(depths)} depths; {sizes[0]:,} tokens are "
                f"{self.num_documents[0]} documents of {document_tokens}"
            )

    def _place(self, stage: int) -> list[Placed]:
        """The questions that a size brings."""
        before = self.num_documents[stage - 1] if stage else 0
        total = self.num_documents[stage]
        targets = [round(depth / 100 * (total - 1)) for depth in self.depths]
        fresh = [number for number, target in enumerate(targets) if target >= before]
        placed = []
        first = sum(map(len, self.by_size))
        # a size with fewer fresh depths than a question has needles puts several into one depth
        step = max(1, len(fresh) // self.needles_each)
        for number in range(self._each * len(fresh)):
            cells = [fresh[(number + shift * step) % len(fresh)] for shift in range(self.needles_each)]
            places = [self._free(targets[cell], before, total) for cell in cells]
            placed.append(self._placed(first + number, places))
        return placed

    def _placed(self, number: int, places: list[int]) -> Placed:
        """A chain's assignments stand in their order; of other needles the first are those asked for."""
        if isinstance(self.task, VtTask):
            places, asked = sorted(places), self.needles_each
        else:
            asked = self.task.num_queries * self.task.num_values
        return Placed(question_id(self.task, number), tuple(places), tuple(places[:asked]))

    def _free(self, target: int, before: int, total: int) -> int:
        """The document nearest to ``target`` with the fewest needles, within half a step of the grid; it gets one."""
        reach = int((total - 1) / max(len(self.depths) - 1, 1) / 2)
        most = 0
        while True:
            for away in range(reach + 1):
                for place in (target + away, target - away):
                    if before <= place < total and self.needles[place] <= most:
                        self.needles[place] += 1
                        return place
            most += 1


def default_questions(
    task: str,
    size: int,
    *,
    depths: Sequence[float] = GRID,
    document_tokens: int = DOCUMENT_TOKENS,
    most: int = MOST_QUESTIONS,
) -> int:
    """The most questions whose needles each have a document of their own in a first size; at least one for each depth.

    Raises:
        ValueError: as :class:`Placement`.

    >>> [default_questions("niah_single_2", size) for size in (8_000, 16_000, 64_000, 256_000)]
    [11, 22, 77, 110]
    """
    for each in range(most // len(depths), 1, -1):
        number = each * len(depths)
        placement = Placement(task, (size,), num_questions=number, depths=depths, document_tokens=document_tokens)
        if max(placement.needles.values()) == 1:
            return number
    return len(depths)


def density_note(placement: Placement) -> str:
    """What a reader of the curve must know where questions of the first size share documents; empty where none do."""
    first, *later = [[placement.density(placed.id) for placed in own] for own in placement.by_size]
    if max(first) == 1:
        return ""
    alone = first.count(1)
    held = f"{min(first)} to {max(first)}" if min(first) < max(first) else f"{max(first)}"
    text = (
        f"of the {len(first)} questions of {placement.sizes[0]:,} tokens, {alone or 'none'} "
        f"{'have' if alone > 1 else 'has'} a document of its own: their documents hold {held} needles each"
    )
    found = [number for own in later for number in own]
    if found:
        text += f", while {found.count(1)} of the {len(found)} questions of later sizes stand alone in theirs"
    return text + "; a document of several needles is another task than one of a single needle, at every size"


def question_id(task: Task, number: int) -> str:
    """Id of the question of that number."""
    return f"{task.name}-{number:06d}"


def percent(place: int, total: int) -> float:
    """Where a document stands among ``total``: 0 the first, 100 the last."""
    return 100 * place / max(total - 1, 1)
