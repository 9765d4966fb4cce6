"""Samples → single retrieval steps as the engine runs them (paper §3.3 and the training section).

A sample of h hops is h + 1 steps: the question alone → the first ids; the question with what was found so far → the
next ids; everything found → "enough", then the answer. Each step is one training row, tokenised exactly as
:class:`msa.generation.interleave.InterleaveState` lays the transcript out, so nothing is learnt that is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msa.documents import Protocol
from msa.training.data.samples import Sample

IGNORED = -100


@dataclass(frozen=True)
class RetrievalStep:
    """One training row before tokenisation.

    Attributes:
        query: the question.
        found: corpus ids read in each earlier round.
        target: corpus ids to write now; empty: enough was read.
        answer: what to answer then; None: no answer is learnt.
        quotation: what to quote of the texts before the answer.
    """

    query: str
    found: tuple[tuple[str, ...], ...]
    target: tuple[str, ...]
    answer: str | None
    quotation: str = ""


@dataclass(frozen=True)
class TokenizedStep:
    """One training row.

    Attributes:
        ids: token ids after the template prefix.
        routes: whether each routes.
        id_labels: what retrieval must write, :data:`IGNORED` elsewhere; aligned with ``ids``.
        answer_labels: the same for the answer.
    """

    ids: list[int]
    routes: list[bool]
    id_labels: list[int]
    answer_labels: list[int]


def retrieval_steps(sample: Sample) -> list[RetrievalStep]:
    """All steps of a sample, in order. A question without positives has no step: see :func:`refusal_step`."""
    steps = [RetrievalStep(sample.query, sample.steps[:done], target, None) for done, target in enumerate(sample.steps)]
    if sample.steps and sample.answer is not None:
        steps.append(RetrievalStep(sample.query, sample.steps, (), sample.answer, sample.quotation))
    return steps


def refusal_step(sample: Sample, *read: str) -> RetrievalStep:
    """The model has read ``read``, one a round, and none holds what is asked: enough, and the sample's answer."""
    found = tuple((document,) for document in read)
    return RetrievalStep(sample.query, found, (), sample.answer, sample.quotation)


def second_try(sample: Sample, read: str) -> RetrievalStep:
    """The model has read ``read``, which is not what it looked for: the first step once more, to another document."""
    return RetrievalStep(sample.query, ((read,),), sample.steps[0], None)


def tokenize_step(
    step: RetrievalStep, protocol: Protocol, corpus: Mapping[str, str], numbers: Mapping[str, int]
) -> TokenizedStep:
    """The row of one step.

    Args:
        step: what to learn.
        protocol: the transcript.
        corpus: document id → text.
        numbers: document id → the number the document has in this batch.
    """
    turn = protocol.question_turn(step.query)
    ids, routes = list(turn.ids), list(turn.marked)
    num_question = len(ids)
    for found in step.found:
        written = _written([numbers[i] for i in found], protocol)
        expansion = protocol.expansion([(numbers[i], corpus[i]) for i in found])
        # only the question and the newest texts route
        routes = routes[:num_question] + [False] * (len(ids) - num_question + len(written)) + expansion.marked
        ids += written + expansion.ids
    id_labels = [IGNORED] * len(ids)
    answer_labels = list(id_labels)
    if step.target:
        learnt = _written([numbers[i] for i in step.target], protocol)
        id_labels += learnt
        answer_labels += [IGNORED] * len(learnt)
        ids += learnt
    else:
        closing = protocol.template_ids(protocol.strings.end_of_retrieve)
        request = protocol.template_ids(protocol.strings.answer_request, question=step.query)
        answer = [] if step.answer is None else answer_ids(step.answer, step.quotation, protocol)
        ids += closing + request + answer
        id_labels += closing + [IGNORED] * (len(request) + len(answer))
        answer_labels += [IGNORED] * (len(closing) + len(request)) + answer
    return TokenizedStep(ids, routes + [False] * (len(ids) - len(routes)), id_labels, answer_labels)


def answer_ids(answer: str, quotation: str, protocol: Protocol) -> list[int]:
    """What the model writes after the request: what it quotes, where the checkpoint quotes, and the answer."""
    lead = protocol.strings.answer_lead
    quoted: list[int] = []
    if protocol.quotation_end_id is not None:
        quoted = [*protocol.plain_ids(quotation), protocol.quotation_end_id]
        # with the space before it, so that it is cut into tokens as in the text
        answer = f" {answer}"
    text = f"{lead} {answer}" if lead else answer
    return [*quoted, *protocol.plain_ids(text), protocol.answer_end_id]


def _written(numbers: Sequence[int], protocol: Protocol) -> list[int]:
    return [*protocol.plain_ids("".join(f"[{number}]" for number in numbers)), protocol.reference_end_id]
