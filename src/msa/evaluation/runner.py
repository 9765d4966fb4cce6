"""Ask every question of a set in one way, keeping each answer as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msa.errors import EvaluationError
from msa.evaluation.records import Record, RecordLog
from msa.evaluation.sets import ANSWERABLE
from msa.evaluation.types import Answerer, Prediction, Question, QuestionSet

Scorer = Callable[[Question, Prediction], Mapping[str, float]]
Progress = Callable[[int, int], None]


def check_questions(questions: QuestionSet) -> None:
    """Refuse a set nothing can be learnt from.

    Raises:
        EvaluationError: no questions, no documents, a question without words, one with neither reference answers nor
            relevant documents that is not marked as unanswerable, an id given twice, or a relevant document that is
            not there; the question is named.
    """
    if not questions.questions:
        raise EvaluationError(f"the set {questions.name!r} has no questions")
    if not questions.documents:
        raise EvaluationError(f"the set {questions.name!r} has no documents")
    seen: set[str] = set()
    for question in questions.questions:
        where = f"question {question.id!r} of {questions.name!r}"
        if question.id in seen:
            raise EvaluationError(f"{where} is there twice; ids must differ")
        seen.add(question.id)
        if not question.question.strip():
            raise EvaluationError(f"{where} has no words")
        if not question.answers and not question.positives and question.metadata.get(ANSWERABLE) is not False:
            raise EvaluationError(f"{where} has no reference answer, and names no document that holds it")
        lost = [name for name in question.positives if name not in questions.documents]
        if lost:
            raise EvaluationError(f"{where} names the document {lost[0]!r}, which the set does not hold")


def run_questions(
    answerer: Answerer,
    questions: QuestionSet,
    log: RecordLog,
    scorer: Scorer,
    *,
    size_tokens: int,
    max_new_tokens: int = 64,
    progress: Progress | None = None,
) -> list[Record]:
    """Take in a set's documents where a question is left to answer, then :func:`ask_questions`.

    Args:
        answerer: who answers.
        questions: the set.
        log, scorer, size_tokens, max_new_tokens, progress: see :func:`ask_questions`.

    Raises:
        EvaluationError: see :func:`check_questions` and :meth:`RecordLog.missing`.
    """
    check_questions(questions)
    if log.missing(answerer.name, questions.name, size_tokens, questions.questions):
        answerer.prepare(questions.documents)
        answerer.settle()
    return ask_questions(
        answerer,
        questions.name,
        questions.questions,
        log,
        scorer,
        size_tokens=size_tokens,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )


def ask_questions(
    answerer: Answerer,
    set_name: str,
    questions: Sequence[Question],
    log: RecordLog,
    scorer: Scorer,
    *,
    size_tokens: int,
    max_new_tokens: int = 64,
    progress: Progress | None = None,
) -> list[Record]:
    """Answer what ``log`` does not hold yet, and return the records of all questions in order.

    Args:
        answerer: who answers, from the documents it has taken in.
        set_name: name of the questions' set, for the record.
        questions: what is asked.
        log: where records are kept.
        scorer: metric values of one answer.
        size_tokens: tokens of the documents, for the record.
        max_new_tokens: for questions that do not say.
        progress: called with questions done and questions in all.

    Raises:
        EvaluationError: see :meth:`RecordLog.missing`.
    """
    asked = (answerer.name, set_name, size_tokens, questions)
    left, total = log.missing(*asked), len(questions)
    for number, question in enumerate(left, start=total - len(left) + 1):
        prediction = answerer.answer(question, question.max_new_tokens or max_new_tokens)
        log.append(
            Record.of(
                question,
                prediction,
                answerer=answerer.name,
                set=set_name,
                size_tokens=size_tokens,
                resident_bytes=answerer.resident_bytes(),
                scores=dict(scorer(question, prediction)),
            )
        )
        if progress:
            progress(number, total)
    return log.of_questions(*asked)
