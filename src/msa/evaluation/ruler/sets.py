"""RULER as question sets: each sample a memory of its own, which is RULER's protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msa.evaluation.haystack import Essay
from msa.evaluation.ruler.documents import DOCUMENT_TOKENS, question_set
from msa.evaluation.ruler.generate import SAMPLES, SEED, CountTokens, SampleMaker
from msa.evaluation.ruler.samples import Sample
from msa.evaluation.ruler.tasks import find_task
from msa.evaluation.ruler.tokens import Words
from msa.evaluation.types import QuestionSet


def ruler_sets(
    task: str,
    size: int,
    count: CountTokens,
    *,
    num_samples: int = SAMPLES,
    seed: int = SEED,
    document_tokens: int = DOCUMENT_TOKENS,
    essay: Essay | None = None,
    words: Words | None = None,
) -> Iterator[QuestionSet]:
    """Samples of a task, each as a memory with one question; made one by one.

    Args:
        task: of :data:`~msa.evaluation.ruler.tasks.TASKS`.
        size: tokens of prompt and answer together, RULER's ``max_seq_length``; the documents hold a little less.
        count: tokens of a text.
        num_samples: how many; RULER's are 500.
        seed: RULER's is 42.
        document_tokens: about how many tokens a document is to have (see :mod:`~msa.evaluation.ruler.documents`).
        essay: running text for the essay tasks; None: the shipped text, a substitute that the notes name.
        words: for keys; None: RULER's.

    Raises:
        ValueError: an unknown task, or a size into which no sample fits.
        EvaluationError: wonderwords is missing.
    """
    maker = SampleMaker(task, size, count, seed=seed, essay=essay, words=words)
    return sample_sets(maker.samples(num_samples), count, document_tokens=document_tokens)


def sample_sets(
    samples: Iterable[Sample], count: CountTokens, *, document_tokens: int = DOCUMENT_TOKENS
) -> Iterator[QuestionSet]:
    """The same of samples made elsewhere: :func:`~msa.evaluation.ruler.files.read_samples`.

    Raises:
        EvaluationError: a sample whose context does not hold its answers.
    """
    for sample in samples:
        allowed = find_task(sample.task).tokens_to_generate
        yield question_set(sample, count, document_tokens=document_tokens, max_new_tokens=allowed)
