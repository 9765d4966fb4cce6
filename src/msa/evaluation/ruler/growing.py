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

from collections import defaultdict
from collections.abc import Iterator, Sequence

from msa.evaluation.haystack import Essay, load_essay
from msa.evaluation.ruler.documents import DOCUMENT_TOKENS
from msa.evaluation.ruler.filler import Filler
from msa.evaluation.ruler.generate import SEED, CountTokens, assignments
from msa.evaluation.ruler.placement import GRID, Placed, Placement, density_note, percent
from msa.evaluation.ruler.tasks import (
    NiahTask,
    VtTask,
    niah_answer_prefix,
    niah_question,
    vt_answer_prefix,
    vt_question,
)
from msa.evaluation.ruler.tokens import Numbered, Words, ruler_words
from msa.evaluation.types import Question, QuestionSet


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

    Attributes:
        placement: which documents hold the needles.

    Raises:
        ValueError: as :class:`~msa.evaluation.ruler.placement.Placement`; more needles than a document has room for, or
            more keys or values than there can be distinct ones.
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
        self.placement = Placement(
            task, sizes, num_questions=num_questions, depths=depths, document_tokens=document_tokens
        )
        self.task, self.sizes, self.depths = self.placement.task, self.placement.sizes, self.placement.depths
        self._num_documents = self.placement.num_documents
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
        self._lines: defaultdict[int, list[str]] = defaultdict(list)
        self._asked: list[tuple[Question, ...]] = []  # by size
        for stage, own in enumerate(self.placement.by_size):
            first = sum(map(len, self._asked))
            self._asked.append(tuple(self._ask(number, stage, placed) for number, placed in enumerate(own, first)))
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
            yield _id(number), self._filler.document(number, self._lines.get(number, ()))

    def base_questions(self) -> tuple[Question, ...]:
        """Questions of the first size, to be asked at every size."""
        return self._asked[0]

    def questions(self, size: int) -> tuple[Question, ...]:
        """All questions whose needles are in the memory of that size, oldest first."""
        return tuple(question for own in self._asked[: self._stage(size) + 1] for question in own)

    def depth(self, question_id: str, size: int) -> tuple[float, ...]:
        """Where each needle of a question stands in the memory of that size: 0 its first document, 100 its last.

        Raises:
            ValueError: no such size, or a question that is not in the memory of that size.
        """
        return self.placement.depth(question_id, size)

    def depth_map(self, size: int) -> dict[float, tuple[Question, ...]]:
        """For each depth of the grid the questions whose first needle is nearest to it in the memory of that size."""
        by_id = {question.id: question for question in self.questions(size)}
        return {depth: tuple(map(by_id.__getitem__, ids)) for depth, ids in self.placement.depth_map(size).items()}

    def question_set(self, size: int) -> QuestionSet:
        """The memory of that size, all of its documents held at once, and all of its questions."""
        stage = self._stage(size)
        documents = {name: text for part in self.sizes[: stage + 1] for name, text in self.documents(part)}
        name = f"{self.task.name}-shared-{size}"
        return QuestionSet(name=name, documents=documents, questions=self.questions(size), notes=self.notes)

    def _stage(self, size: int) -> int:
        return self.placement.stage(size)

    def _check_distinct(self) -> None:
        """Keys and values of questions are numbered from the beginning, those of filler lines from the end."""
        questions = sum(map(len, self._asked))
        lines = self._filler.lines_per_document * self._num_documents[-1]
        if isinstance(self.task, VtTask):
            keys, values = self.placement.needles_each, 1
        else:
            keys, values = self.task.hidden_keys, self.placement.needles_each
        for tokens, each in ((self._keys, keys), (self._values, values)):
            if questions * each + lines > tokens.size:
                raise ValueError(
                    f"{questions:,} questions and {lines:,} lines of needles take {questions * each + lines:,} "
                    f"distinct {tokens.kind}, there are {tokens.size:,}; make the memory smaller"
                )

    def _check_room(self, count: CountTokens, document_tokens: int) -> None:
        fullest = max(self._lines.values(), key=len)
        tokens = sum(map(count, fullest))
        if tokens > document_tokens:
            raise ValueError(
                f"{len(fullest)} needles of {tokens} tokens would go into one document of {document_tokens}; "
                "ask fewer questions, or make the first size or the documents larger"
            )

    def _ask(self, number: int, stage: int, placed: Placed) -> Question:
        """Write a question, and its lines into their documents."""
        task = self.task
        if isinstance(task, VtTask):
            each = self.placement.needles_each
            variables = [self._keys[number * each + hop] for hop in range(each)]
            value = self._values[number]
            lines, answers = assignments(variables, value), tuple(variables)
            words, prefix = vt_question(value), vt_answer_prefix(task, value)
        else:
            keys = [self._keys[number * task.hidden_keys + own] for own in range(task.hidden_keys)]
            pairs = [
                (key, self._values[(number * task.hidden_keys + own) * task.num_values + one])
                for own, key in enumerate(keys)
                for one in range(task.num_values)
            ]
            lines = [task.needle(key, value) for key, value in pairs]
            queries = keys[: task.num_queries]
            answers = tuple(value for key, value in pairs if key in queries)
            words, prefix = niah_question(task, queries), niah_answer_prefix(task, queries)
        for place, line in zip(placed.places, lines, strict=True):
            self._lines[place].append(line)
        positives = tuple(dict.fromkeys(map(_id, placed.holders)))
        depths = [round(percent(place, self._num_documents[stage]), 2) for place in placed.holders]
        return Question(
            id=placed.id,
            question=words,
            answers=answers,
            positives=positives,
            hops=tuple((name,) for name in positives) if isinstance(task, VtTask) else (),
            task=task.name,
            answer_prefix=prefix,
            max_new_tokens=task.tokens_to_generate,
            metadata={"size": self.sizes[stage], "depths": depths, "depth": round(sum(depths) / len(depths), 2)},
        )

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
        return tuple(note for note in (*notes, words.note, density_note(self.placement)) if note)


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
