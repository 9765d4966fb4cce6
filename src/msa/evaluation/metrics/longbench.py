"""LongBench's own metrics (THUDM/LongBench, ``metrics.py`` and ``eval.py``): numbers compare with published ones.

Two differences, both where theirs depends on the machine: a text too long for the ROUGE library's recursion is scored
instead of counting 0, and code similarity is always difflib's, which theirs is unless python-Levenshtein is installed.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import re
import string
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msa.errors import EvaluationError
from msa.evaluation.metrics.answers import bag_f1, normalise_answer

# their list of Chinese punctuation, which is not all there is
_CHINESE = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、"
    "〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_PUNCTUATION = str.maketrans("", "", string.punctuation + _CHINESE)


@dataclass(frozen=True)
class LongBenchTask:
    """How one data set is answered and scored.

    Attributes:
        metric: a key of :data:`METRICS`.
        max_new_tokens: tokens the answer may have.
        first_line: whether only the first line of the answer counts.
    """

    metric: str
    max_new_tokens: int
    first_line: bool = False


TASKS: Mapping[str, LongBenchTask] = {
    "narrativeqa": LongBenchTask("qa_f1", 128),
    "qasper": LongBenchTask("qa_f1", 128),
    "multifieldqa_en": LongBenchTask("qa_f1", 64),
    "multifieldqa_zh": LongBenchTask("qa_f1_zh", 64),
    "hotpotqa": LongBenchTask("qa_f1", 32),
    "2wikimqa": LongBenchTask("qa_f1", 32),
    "musique": LongBenchTask("qa_f1", 32),
    "dureader": LongBenchTask("rouge_l_zh", 128),
    "gov_report": LongBenchTask("rouge_l", 512),
    "qmsum": LongBenchTask("rouge_l", 512),
    "multi_news": LongBenchTask("rouge_l", 512),
    "vcsum": LongBenchTask("rouge_l_zh", 512),
    "trec": LongBenchTask("classification", 64, first_line=True),
    "triviaqa": LongBenchTask("qa_f1", 32, first_line=True),
    "samsum": LongBenchTask("rouge_l", 128, first_line=True),
    "lsht": LongBenchTask("classification", 64, first_line=True),
    "passage_count": LongBenchTask("count", 32),
    "passage_retrieval_en": LongBenchTask("retrieval", 32),
    "passage_retrieval_zh": LongBenchTask("retrieval_zh", 32),
    "lcc": LongBenchTask("code_similarity", 64),
    "repobench-p": LongBenchTask("code_similarity", 64),
}


def longbench_score(
    dataset: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] | None = None
) -> float:
    """The best score over all answers by the data set's metric, after the first-line rule where it holds.

    Args:
        dataset: a key of :data:`TASKS`.
        prediction: the answer as generated.
        answers: the reference answers.
        all_classes: names of all classes, for classification.

    Raises:
        ValueError: an unknown data set, no answers, or a classification without classes.
        EvaluationError: a library for the metric is missing; the message says how to install it.

    >>> longbench_score("triviaqa", "\\nParis\\nQuestion: and Rome?", ["paris", "Paris, France"])
    1.0
    """
    if dataset not in TASKS:
        raise ValueError(f"no LongBench data set is called {dataset!r}; there are {', '.join(TASKS)}")
    if not answers:
        raise ValueError(f"there are no reference answers to this question of {dataset}")
    task = TASKS[dataset]
    if task.first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    if task.metric == "classification":
        return max(classification(prediction, answer, all_classes or ()) for answer in answers)
    return max(METRICS[task.metric](prediction, answer) for answer in answers)


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of normalised words.

    >>> qa_f1("The answer: Paris", "paris")
    0.6666666666666666
    """
    return bag_f1(normalise_answer(prediction).split(), normalise_answer(answer).split())


def qa_f1_zh(prediction: str, answer: str) -> float:
    """F1 of the words jieba cuts a Chinese text into, without punctuation.

    Raises:
        EvaluationError: jieba is not installed.
    """
    found, wanted = ([_normalise_zh(word) for word in _chinese_words(text)] for text in (prediction, answer))
    return bag_f1(list(filter(None, found)), list(filter(None, wanted)))


def rouge_l(prediction: str, answer: str) -> float:
    """F of ROUGE-L by the library ``rouge``: sentences end at a full stop, words at white space, repeats count once.

    Raises:
        EvaluationError: rouge is not installed.
    """
    scorer = _library("rouge").Rouge(metrics=["rouge-l"])
    # the library walks through each pair of sentences by recursion, one call a word
    with _recursion_limit(len(prediction.split()) + len(answer.split())):
        try:
            return float(scorer.get_scores([prediction], [answer], avg=True)["rouge-l"]["f"])
        except ValueError:  # its word for a text without any sentence, which LongBench counts as 0
            return 0.0


def rouge_l_zh(prediction: str, answer: str) -> float:
    """:func:`rouge_l` of the words jieba cuts Chinese texts into.

    Raises:
        EvaluationError: jieba or rouge is not installed.
    """
    return rouge_l(" ".join(_chinese_words(prediction)), " ".join(_chinese_words(answer)))


def classification(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    """One over the number of class names in the prediction if the right one is among them.

    Raises:
        ValueError: no classes.

    >>> classification("Date or Number", "Date", ["Date", "Number", "City"])
    0.5
    """
    if not all_classes:
        raise ValueError("classification needs all_classes, the names of all classes")
    named = [name for name in all_classes if name in prediction]
    # the list shrinks while it is walked, so the name after a removed one is never looked at: theirs, kept, because it
    # is in every published number
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1 / len(named) if answer in named else 0.0


def retrieval(prediction: str, answer: str) -> float:
    """Share of the prediction's numbers that are the number in the answer ``Paragraph 7``.

    Raises:
        ValueError: the answer names no paragraph.

    >>> retrieval("Paragraph 7, not 12", "Paragraph 7")
    0.5
    """
    return _share_of_numbers(prediction, _paragraph(r"Paragraph (\d+)", answer))


def retrieval_zh(prediction: str, answer: str) -> float:
    """Share of the prediction's numbers that are the number in the answer ``段落7``.

    Raises:
        ValueError: the answer names no paragraph.

    >>> retrieval_zh("段落7", "段落7")
    1.0
    """
    return _share_of_numbers(prediction, _paragraph(r"段落(\d+)", answer))


def count(prediction: str, answer: str) -> float:
    """Share of the prediction's numbers that are the answer.

    >>> count("3 of 5, so 3", "3")
    0.6666666666666666
    """
    return _share_of_numbers(prediction, answer)


def code_similarity(prediction: str, answer: str) -> float:
    """Similarity in hundredths of the answer and the prediction's first line that is no comment and no code fence.

    >>> code_similarity("```python\\nx = 1\\ny = 2", "x = 2")
    0.8
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    # as in fuzzywuzzy: equal texts first, so that two empty ones are equal
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "count": count,
    "code_similarity": code_similarity,
}


def chosen_letter(prediction: str) -> str | None:
    """The choice a LongBench v2 answer commits to, by its own two patterns; None: it names none, which is wrong.

    >>> chosen_letter("**The correct answer is (B)**."), chosen_letter("B")
    ('B', None)
    """
    text = prediction.replace("*", "")
    match = re.search(r"The correct answer is \(([A-D])\)", text) or re.search(r"The correct answer is ([A-D])", text)
    return match[1] if match else None


def _share_of_numbers(prediction: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def _paragraph(pattern: str, answer: str) -> str:
    match = re.search(pattern, answer)
    if not match:
        raise ValueError(f"expected a reference answer like {pattern.replace(chr(92) + 'd+', '7')}, found {answer!r}")
    return match[1]


def _normalise_zh(text: str) -> str:
    return "".join(text.lower().translate(_PUNCTUATION).split())


def _chinese_words(text: str) -> list[str]:
    jieba = _library("jieba")
    jieba.setLogLevel(logging.WARNING)  # it writes to standard error while it loads its dictionary
    return list(jieba.cut(text, cut_all=False))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EvaluationError(
            f"this LongBench metric needs the library {name}: pip install 'memory-sparse-attention[longbench]'"
        ) from error


@contextlib.contextmanager
def _recursion_limit(calls: int) -> Iterator[None]:
    """Room for this many nested calls beyond the usual ones."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + calls)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
