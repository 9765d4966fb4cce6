"""Scores of an answer's text against reference answers, and whether it declines to answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

_NOT = r"(?:not|n['’]t)"
_ABSTENTION = re.compile(
    r"\bunanswerable\b|\binsufficient (?:information|evidence|context)\b"
    rf"|\b(?:can ?{_NOT}|can['’]t|could ?{_NOT}|unable to|impossible to) (?:be )?"
    r"(?:answer|determin|find|tell|say|infer)"
    rf"|\bdo(?:es)? ?{_NOT} (?:know|have (?:any|enough|access|information)|mention|contain|include|provide|state|"
    r"specify)\b"
    rf"|\b(?:is|was|are|were) ?{_NOT} (?:mentioned|provided|stated|specified|known|answerable|enough information)\b"
    rf"|\b(?:is|was|are|were) ?{_NOT} in (?:the |my |this )?memory\b"  # what our own training data teaches
    r"|\b(?:there (?:is|was)|have|has|found|find) no (?:\w+ )?(?:information|mention|record|evidence|answer|data)\b"
    r"|^\W*(?:no information|not (?:mentioned|enough information|known|provided|available|stated|specified))\b"
    r"|^\W*unknown\W*$|\bis unknown\b"
)


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words parted by one blank (SQuAD v1.1).

    >>> normalise_answer("The  Eiffel-Tower, a landmark.")
    'eiffeltower landmark'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction is one of the normalised answers.

    An answer of which SQuAD's normalisation leaves nothing (``A``, ``The``, ``+``) is compared as it is written, in
    lower case; by SQuAD's own rule every prediction that normalises to nothing would equal it.

    Raises:
        ValueError: no answers.

    >>> exact_match("the Paris.", ["London", "Paris"]), exact_match("", ["A"]), exact_match("a", ["A"])
    (1.0, 0.0, 1.0)
    """
    return _best(_equal, prediction, answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the normalised words two texts share, repeats counted; the best over all answers (SQuAD v1.1).

    Words are what blanks part, so a Chinese text is one word; see
    :func:`msa.evaluation.metrics.longbench.qa_f1_zh`.

    Raises:
        ValueError: no answers.

    >>> token_f1("in the city of Paris", ["London", "city of Paris, France"])
    0.75
    """
    return _best(_words_f1, prediction, answers)


def contains_answer(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the words of some answer stand together in the prediction, both normalised.

    Kinder to a talkative model than :func:`exact_match`, and open to gaming: a prediction that lists every candidate
    is right.

    Raises:
        ValueError: no answers.

    >>> contains_answer("It was Paris, of course", ["Paris"]), contains_answer("Parisian", ["Paris"])
    (1.0, 0.0)
    """
    return _best(_contains, prediction, answers)


def _best(score: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    if isinstance(answers, str):
        raise TypeError(f"expected a list of answers, found the one string {answers!r}; put it into a list")
    if not answers:
        raise ValueError("there are no reference answers to compare with. Leave the question out of this metric")
    return max(score(prediction, answer) for answer in answers)


def _equal(prediction: str, answer: str) -> float:
    normalised = normalise_answer(answer)
    if not normalised:
        return float(_plain(prediction) == _plain(answer))
    return float(normalise_answer(prediction) == normalised)


def _words_f1(prediction: str, answer: str) -> float:
    wanted = normalise_answer(answer).split()
    if not wanted:
        return _equal(prediction, answer)
    return bag_f1(normalise_answer(prediction).split(), wanted)


def _contains(prediction: str, answer: str) -> float:
    normalised = normalise_answer(answer)
    if not normalised:
        return _equal(prediction, answer)
    return float(f" {normalised} " in f" {normalise_answer(prediction)} ")


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def bag_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two bags of words; 0.0 if they share none.

    >>> bag_f1(["a", "a", "b"], ["a", "b", "b"])
    0.6666666666666666
    """
    same = sum((Counter(found) & Counter(wanted)).values())
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def abstains(prediction: str) -> bool:
    """Whether an English answer says that it cannot answer. An empty answer does not: it is no answer at all.

    A list of phrases, not a judge: it errs on unusual wordings, and it takes "the year is not mentioned, but it was
    1990" for an abstention.

    >>> abstains("The documents do not mention her birthday."), abstains("Not Paris, but London.")
    (True, False)
    """
    return bool(_ABSTENTION.search(" ".join(prediction.lower().split())))


@dataclass(frozen=True)
class AbstentionRates:
    """How often a system declined.

    Attributes:
        accuracy: share of the unanswerable questions it declined; None: there were none.
        false_rate: share of the answerable questions it declined; None: there were none.
    """

    accuracy: float | None
    false_rate: float | None


def abstention_rates(predictions: Sequence[str], answerable: Sequence[bool]) -> AbstentionRates:
    """Abstention by :func:`abstains` on both kinds of questions: a system that always declines has both rates at 1.

    Raises:
        ValueError: no predictions, or not one flag for each.

    >>> abstention_rates(["I do not know.", "Paris", "unanswerable", "4"], [False, False, True, True])
    AbstentionRates(accuracy=0.5, false_rate=0.5)
    """
    if not predictions or len(predictions) != len(answerable):
        raise ValueError(
            f"expected one flag for each of at least one prediction, found {len(predictions)} and {len(answerable)}"
        )
    declined: dict[bool, list[bool]] = {True: [], False: []}
    for prediction, can_answer in zip(predictions, answerable, strict=True):
        declined[bool(can_answer)].append(abstains(prediction))
    rates = {kind: sum(values) / len(values) if values else None for kind, values in declined.items()}
    return AbstentionRates(accuracy=rates[False], false_rate=rates[True])
