"""Scores of one answer: what a way that chooses no documents is not scored by."""

from msa.evaluation.scoring import score_ruler
from msa.evaluation.types import Prediction, Question

QUESTION = Question(id="0", question="q", answers=("7", "8"), positives=("a", "b"))


def test_only_ways_that_choose_what_to_read_are_scored_by_it():
    scores = [
        score_ruler(QUESTION, Prediction(text="7", read=read)).get("read")
        for read in (("b", "c", "a"), ("a",), (), None)
    ]
    assert scores == [1.0, 0.0, 0.0, None]
    assert "read" not in score_ruler(Question(id="0", question="q", answers=("7",)), Prediction(text="7", read=("a",)))
    assert score_ruler(QUESTION, Prediction(text="it is 7"))["match"] == 0.5
