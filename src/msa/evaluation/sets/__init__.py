"""Question sets: our own JSON lines, and what others publish."""

from msa.evaluation.sets.longmemeval import write_hypotheses
from msa.evaluation.sets.ours import write_question_set
from msa.evaluation.sets.published import convert_published
from msa.evaluation.sets.questions import ANSWERABLE, CONTEXT
from msa.evaluation.sets.reading import FORMATS, read_question_set, separate

__all__ = [
    "ANSWERABLE",
    "CONTEXT",
    "FORMATS",
    "convert_published",
    "read_question_set",
    "separate",
    "write_hypotheses",
    "write_question_set",
]
