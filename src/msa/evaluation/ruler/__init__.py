"""RULER's needle tasks and variable tracking, as prompts, as files and as memories."""

from msa.evaluation.ruler.documents import DOCUMENT_TOKENS, cut, question_set
from msa.evaluation.ruler.files import read_by_size, read_folder, read_samples, write_samples
from msa.evaluation.ruler.generate import SampleMaker
from msa.evaluation.ruler.growing import GrowingMemory, shared_memory, third
from msa.evaluation.ruler.placement import GRID, MOST_QUESTIONS, Placement, default_questions, density_note
from msa.evaluation.ruler.samples import Needle, Sample
from msa.evaluation.ruler.score import RulerScore, TaskScore, score, string_match_all, string_match_part
from msa.evaluation.ruler.sets import ruler_sets, sample_sets
from msa.evaluation.ruler.tasks import NIAH, TASKS, NiahTask, VtTask, find_task
from msa.evaluation.ruler.tokens import Words, ruler_words

__all__ = [
    "DOCUMENT_TOKENS",
    "GRID",
    "MOST_QUESTIONS",
    "NIAH",
    "TASKS",
    "GrowingMemory",
    "Needle",
    "NiahTask",
    "Placement",
    "RulerScore",
    "Sample",
    "SampleMaker",
    "TaskScore",
    "VtTask",
    "Words",
    "cut",
    "default_questions",
    "density_note",
    "find_task",
    "question_set",
    "read_by_size",
    "read_folder",
    "read_samples",
    "ruler_sets",
    "ruler_words",
    "sample_sets",
    "score",
    "shared_memory",
    "string_match_all",
    "string_match_part",
    "third",
    "write_samples",
]
