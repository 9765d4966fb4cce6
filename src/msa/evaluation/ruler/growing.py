"""One memory for many questions, and the same memory grown: quality against size, and against depth at every size.

A memory only grows: documents are added after those it has and none is encoded again. So the memory of one size holds
all documents of the sizes before it, in the same order, and a needle at the end of a small memory is near the beginning
of a large one. What that allows is:

* **Quality against size.** The questions of the first size, spread over its depths, are asked at every size: the same
  questions, needles and documents, and only more text after them. As it grows they all come to lie at its beginning, so
  this curve mixes size with depth.
* **Quality against depth, at every size.** Each size brings questions of its own: for each depth of the grid that lies
  in the range it added, as many as the first size has for each depth. Depths in the older range are covered by the
  questions of the sizes before, wherever these stand by now. :meth:`GrowingMemory.depth_map` says which.

Everything is numbered and nothing stored but the questions: document n is a function of its number, keys and values are
distinct by construction (:class:`~msa.evaluation.ruler.tokens.Numbered`), so a memory of 100M tokens is made while it
is read. Another size added at the end changes nothing before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from msa.evaluation.haystack import Essay, load_essay
from msa.evaluation.ruler.documents import DOCUMENT_TOKENS
from msa.evaluation.ruler.filler import Filler
from msa.evaluation.ruler.generate import SEED, CountTokens, assignments
from msa.evaluation.ruler.tasks import (
    NiahTask,
    VtTask,
    find_task,
    niah_answer_prefix,
    niah_question,
    vt_answer_prefix,
    vt_question,
)
from msa.evaluation.ruler.tokens import Numbered, Words, ruler_words
from msa.evaluation.types import Question, QuestionSet

GRID = tuple(10.0 * step for step in range(11))


@dataclass(frozen=True)
class _Asked:
    """A question and the numbers of the documents that hold its needles, in their order."""

    question: Question
    places: tuple[int, ...]


@dataclass
class _Plan:
    """Which lines go into which documents, and who asks for them."""

    lines: dict[int, list[str]] = field(default_factory=dict)
    asked: list[list[_Asked]] = field(default_factory=list)  # by size


class GrowingMemory:
    """A memory that holds the needles of many questions, in one or more sizes; see the module.

    Args:
        task: of :data:`~msa.evaluation.ruler.tasks.TASKS`.
        sizes: tokens of the documents, growing.
        count: tokens of a text.
        num_questions: of the first size; rounded up to the same number for each depth.
        depths: grid in percent of the memory's documents, growing: where the first needle of a question stands. Others
            of the same question follow at equal distances on the grid, from its end again at its beginning; the
            assignments of a chain then stand in their order.
        seed: of everything drawn.
        document_tokens: about how many tokens a document has.
        essay: running text for the essay tasks; None: the shipped text.
        words: for keys; None: RULER's.

    Raises:
        ValueError: an unknown task, sizes or depths that do not grow, fewer depths than a question has needles, a size
            of fewer documents than depths, more needles than a document has room for, or more keys or values than
            there can be distinct ones.
        EvaluationError: wonderwords is missing.
    """

    def __init__(
        self,
        task: str,
        sizes: Sequence[int],
        count: CountTokens,
        *,
        num_questions: int = 100,
        depths: Sequence[float] = GRID,
        seed: int = SEED,
        document_tokens: int = DOCUMENT_TOKENS,
        essay: Essay | None = None,
        words: Words | None = None,
    ) -> None:
        self.task, self.sizes, self.depths = find_task(task), tuple(sizes), tuple(map(float, depths))
        if num_questions < 1 or document_tokens < 1:
            raise ValueError(
                f"expected at least one question and one token a document, found {num_questions}, {document_tokens}"
            )
        self._num_documents = tuple(max(1, round(size / document_tokens)) for size in sizes)
        self._check(document_tokens)
        self._each = -(-num_questions // len(self.depths))
        uses_words = isinstance(self.task, NiahTask) and self.task.key == "words"
        own_words = (words or ruler_words()) if uses_words else Words(("",), ("",))
        own_essay = (essay or load_essay()) if self.task.haystack == "essay" else None
        keyed = f"{seed}/{task}"
        if isinstance(self.task, NiahTask):
            self._keys = Numbered(self.task.key, own_words, f"{keyed}/key")
            self._values = Numbered(self.task.value, own_words, f"{keyed}/value")
        else:
            self._keys, self._values = (Numbered(kind, own_words, keyed) for kind in ("variables", "assigned"))
        self._filler = Filler(self.task, count, document_tokens, keyed, own_essay, self._keys, self._values)
        self._plan = _Plan()
        for stage in range(len(self.sizes)):
            self._plan.asked.append(self._place(stage))
        self._by_id = {asked.question.id: asked for own in self._plan.asked for asked in own}
        self._check_distinct()
        self._check_room(count, document_tokens)
        self.notes = self._notes(own_essay, own_words, document_tokens)

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def asked(self, size: int) -> tuple[Question, ...]:
        """What every way of answering is asked at that size: the questions of the first, whatever the size."""
        self._stage(size)
        return self.base_questions()

    def num_documents(self, size: int) -> int:
        """Documents of the memory of that size."""
        return self._num_documents[self._stage(size)]

    def documents(self, size: int) -> Iterator[tuple[str, str]]:
        """What the memory of that size has beyond the one before: (id, text), made one by one, the same each time."""
        stage = self._stage(size)
        first = self._num_documents[stage - 1] if stage else 0
        for number in range(first, self._num_documents[stage]):
            yield _id(number), self._filler.document(number, self._plan.lines.get(number, ()))

    def base_questions(self) -> tuple[Question, ...]:
        """Questions of the first size, to be asked at every size."""
        return tuple(asked.question for asked in self._plan.asked[0])

    def questions(self, size: int) -> tuple[Question, ...]:
        """All questions whose needles are in the memory of that size, oldest first."""
        stage = self._stage(size)
        return tuple(asked.question for own in self._plan.asked[: stage + 1] for asked in own)

    def depth(self, question_id: str, size: int) -> tuple[float, ...]:
        """Where each needle of a question stands in the memory of that size: 0 its first document, 100 its last.

        Raises:
            ValueError: no such size, or a question that is not in the memory of that size.
        """
        stage = self._stage(size)
        asked = self._by_id.get(question_id)
        if asked is None or max(asked.places) >= self._num_documents[stage]:
            raise ValueError(f"the memory of {size:,} tokens has no question {question_id!r}")
        return tuple(_percent(place, self._num_documents[stage]) for place in asked.places)

    def depth_map(self, size: int) -> dict[float, tuple[Question, ...]]:
        """For each depth of the grid the questions whose first needle is nearest to it in the memory of that size."""
        stage = self._stage(size)
        found: dict[float, list[Question]] = {depth: [] for depth in self.depths}
        for asked in (asked for own in self._plan.asked[: stage + 1] for asked in own):
            here = _percent(asked.places[0], self._num_documents[stage])
            found[min(self.depths, key=lambda depth: abs(depth - here))].append(asked.question)
        return {depth: tuple(questions) for depth, questions in found.items()}

    def question_set(self, size: int) -> QuestionSet:
        """The memory of that size, all of its documents held at once, and all of its questions."""
        stage = self._stage(size)
        documents = {name: text for part in self.sizes[: stage + 1] for name, text in self.documents(part)}
        name = f"{self.task.name}-shared-{size}"
        return QuestionSet(name=name, documents=documents, questions=self.questions(size), notes=self.notes)

    def _stage(self, size: int) -> int:
        if size not in self.sizes:
            raise ValueError(f"expected a size of {', '.join(map(str, self.sizes))}, found {size}")
        return self.sizes.index(size)

    @property
    def _needles(self) -> int:
        """Needles of one question."""
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
        if len(depths) < self._needles:
            raise ValueError(
                f"{self.task.name} hides {self._needles} needles a question; expected at least as many depths, found "
                f"{len(depths)}"
            )
        if self._num_documents[0] < len(depths):
            raise ValueError(
                f"expected at least one document for each of {len(depths)} depths; {sizes[0]:,} tokens are "
                f"{self._num_documents[0]} documents of {document_tokens}"
            )

    def _check_distinct(self) -> None:
        """Keys and values of questions are numbered from the beginning, those of filler lines from the end."""
        questions = sum(map(len, self._plan.asked))
        lines = self._filler.lines_per_document * self._num_documents[-1]
        if isinstance(self.task, VtTask):
            keys, values = self._needles, 1
        else:
            keys, values = self.task.hidden_keys, self._needles
        for tokens, each in ((self._keys, keys), (self._values, values)):
            if questions * each + lines > tokens.size:
                raise ValueError(
                    f"{questions:,} questions and {lines:,} lines of needles take {questions * each + lines:,} "
                    f"distinct {tokens.kind}, there are {tokens.size:,}; make the memory smaller"
                )

    def _check_room(self, count: CountTokens, document_tokens: int) -> None:
        fullest = max(self._plan.lines.values(), key=len)
        tokens = sum(map(count, fullest))
        if tokens > document_tokens:
            raise ValueError(
                f"{len(fullest)} needles of {tokens} tokens would go into one document of {document_tokens}; "
                "ask fewer questions, or make the first size or the documents larger"
            )

    def _place(self, stage: int) -> list[_Asked]:
        """The questions that a size brings, and their lines put into its documents."""
        before = self._num_documents[stage - 1] if stage else 0
        total = self._num_documents[stage]
        targets = [round(depth / 100 * (total - 1)) for depth in self.depths]
        fresh = [number for number, target in enumerate(targets) if target >= before]
        asked = []
        first = sum(map(len, self._plan.asked))
        # a size with fewer fresh depths than a question has needles puts several into one depth
        step = max(1, len(fresh) // self._needles)
        for number in range(self._each * len(fresh)):
            cells = [fresh[(number + shift * step) % len(fresh)] for shift in range(self._needles)]
            places = [self._free(targets[cell], before, total) for cell in cells]
            asked.append(self._ask(first + number, stage, places))
        return asked

    def _free(self, target: int, before: int, total: int) -> int:
        """The document nearest to ``target`` with the fewest lines put in, within half a step of the grid; reserved."""
        reach = int((total - 1) / max(len(self.depths) - 1, 1) / 2)
        most = 0
        while True:
            for away in range(reach + 1):
                for place in (target + away, target - away):
                    if before <= place < total and len(self._plan.lines.get(place, ())) <= most:
                        self._plan.lines.setdefault(place, []).append("")
                        return place
            most += 1

    def _ask(self, number: int, stage: int, places: list[int]) -> _Asked:
        """Write a question and its lines into the places reserved for them."""
        task = self.task
        if isinstance(task, VtTask):
            places = sorted(places)
            variables = [self._keys[number * self._needles + hop] for hop in range(self._needles)]
            value = self._values[number]
            lines, holders = assignments(variables, value), places
            words, prefix, answers = vt_question(value), vt_answer_prefix(task, value), tuple(variables)
        else:
            keys = [self._keys[number * task.hidden_keys + own] for own in range(task.hidden_keys)]
            pairs = [
                (key, self._values[(number * task.hidden_keys + own) * task.num_values + one])
                for own, key in enumerate(keys)
                for one in range(task.num_values)
            ]
            lines = [task.needle(key, value) for key, value in pairs]
            queries = keys[: task.num_queries]
            wanted = [(pair, place) for pair, place in zip(pairs, places, strict=True) if pair[0] in queries]
            holders, answers = [place for _, place in wanted], tuple(pair[1] for pair, _ in wanted)
            words, prefix = niah_question(task, queries), niah_answer_prefix(task, queries)
        for place, line in zip(places, lines, strict=True):
            reserved = self._plan.lines[place]
            reserved[reserved.index("")] = line
        positives = tuple(dict.fromkeys(map(_id, holders)))
        depths = [round(_percent(place, self._num_documents[stage]), 2) for place in holders]
        question = Question(
            id=f"{task.name}-{number:06d}",
            question=words,
            answers=answers,
            positives=positives,
            hops=tuple((name,) for name in positives) if isinstance(task, VtTask) else (),
            task=task.name,
            answer_prefix=prefix,
            max_new_tokens=task.tokens_to_generate,
            metadata={"size": self.sizes[stage], "depths": depths, "depth": round(sum(depths) / len(depths), 2)},
        )
        return _Asked(question, tuple(holders))

    def _notes(self, essay: Essay | None, words: Words, document_tokens: int) -> tuple[str, ...]:
        notes = [
            f"one memory for all questions of the task, where RULER has a context for each; documents of about "
            f"{document_tokens} tokens; depth is that of a needle's document among all, in the order they were added"
        ]
        if essay:
            notes.append(essay.note)
            sentences = map(essay.sentence, range(len(essay.ends)))
            rounds = self.sizes[-1] / max(sum(map(self._filler.tokens, sentences)), 1)
            if rounds > 1:
                notes.append(f"the text of the haystack is repeated about {rounds:.0f} times, cut elsewhere each time")
        return tuple(note for note in (*notes, words.note) if note)


def shared_memory(
    task: str,
    size: int,
    count: CountTokens,
    *,
    num_questions: int = 100,
    depths: Sequence[float] = GRID,
    seed: int = SEED,
    document_tokens: int = DOCUMENT_TOKENS,
    essay: Essay | None = None,
    words: Words | None = None,
) -> QuestionSet:
    """One memory of ``size`` tokens with the needles of all questions, as many at each depth of the grid.

    Not RULER's protocol, in which each sample has a context of its own, and the notes say so; it is what a large memory
    is for, and what makes sizes affordable that could not be encoded once a question.

    Raises:
        ValueError, EvaluationError: as :class:`GrowingMemory`.
    """
    memory = GrowingMemory(
        task,
        (size,),
        count,
        num_questions=num_questions,
        depths=depths,
        seed=seed,
        document_tokens=document_tokens,
        essay=essay,
        words=words,
    )
    return memory.question_set(size)


def third(depth: float) -> str:
    """Which third of the memory a depth in percent is in: ``begin``, ``middle`` or ``end``."""
    return "begin" if depth < 100 / 3 else "middle" if depth < 200 / 3 else "end"


def _id(number: int) -> str:
    return f"{number:08d}"


def _percent(place: int, total: int) -> float:
    return 100 * place / max(total - 1, 1)
