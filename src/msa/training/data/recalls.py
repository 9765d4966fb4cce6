"""One text with several needles and a question about each, in a row: where a fresh network learns to compare keys.

Reading an answer out of a text takes more than copying: the needle with the asked key must be told from all others,
and from none at all. Where a text holds one needle that is hardly learnt, as whatever stands there is nearly always
right, and a row of the method's own asks one question. Here every row asks several (multi-query associative recall,
arXiv 2312.04927), in the very words with which the engine asks for an answer, and without the memory's cost.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from msa.documents import Protocol
from msa.training.data.collate import RowBucket, draw_numbers, rows_alone
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.data.steps import IGNORED, answer_ids, refusal_step, tokenize_step
from msa.training.ranges import check_numbers


@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """Rows without a memory.

    Attributes:
        rows: rows of a step.
        questions: asked one after the other in a row, each about another needle of its text, at most; at least 2.
        two_hop, unanswerable: share of questions of that kind; the rest are plain.
        max_filler: words of other text around the needles, at most.
        hard_negatives: probability that beside a question's needle the text has one with a twin of its key.
    """

    rows: int = 8
    questions: int = 6
    two_hop: float = 0.0
    unanswerable: float = 0.25
    max_filler: int = 30
    hard_negatives: float = 0.3

    def __post_init__(self) -> None:
        check_numbers(self, from_one=("rows",), shares=("two_hop", "unanswerable", "hard_negatives"))
        if self.questions < 2 or self.two_hop + self.unanswerable > 1:
            raise ValueError(
                f"recall needs questions of 2 or more, and two_hop and unanswerable of at most 1 together, got "
                f"{self.questions}, {self.two_hop} and {self.unanswerable}"
            )


def recall_rows(
    config: RecallConfig, worlds: NeedleWorlds, needles: NeedleConfig, protocol: Protocol, id_digits: int, seed: str
) -> RowBucket:
    """Rows whose keys and values are of the kinds that ``needles`` names; learnt are all answers."""
    alone = replace(
        needles,
        documents=1,
        min_filler=0,
        plain_documents=0.0,
        distractors=0.0,
        two_hop=config.two_hop,
        unanswerable=config.unanswerable,
        hard_negatives=config.hard_negatives,
    )
    rows = [_row(worlds, config, alone, protocol, id_digits, f"{seed} recall {row}") for row in range(config.rows)]
    return rows_alone(rows, ["recall"] * config.rows)


def _row(
    worlds: NeedleWorlds, config: RecallConfig, needles: NeedleConfig, protocol: Protocol, id_digits: int, seed: str
) -> tuple[list[int], list[int]]:
    """Token ids and labels: the text is read for the first question, then all are answered."""
    rng = random.Random(seed)
    needles = replace(needles, questions=rng.randint(2, config.questions), max_filler=rng.randint(0, config.max_filler))
    drawn = worlds.world(needles, seed)
    (name,) = drawn.corpus
    (number,) = draw_numbers(1, id_digits, rng)
    first, *others = drawn.samples
    read = tokenize_step(refusal_step(first, name), protocol, drawn.corpus, {name: number})
    ids, labels = list(read.ids), list(read.answer_labels)
    for sample in others:
        request = protocol.template_ids(protocol.strings.answer_request, question=sample.query)
        answer = answer_ids(sample.answer or "", sample.quotation, protocol)
        ids += request + answer
        labels += [IGNORED] * len(request) + answer
    return ids, labels
