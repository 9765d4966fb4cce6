"""Evaluation: RULER, memory size and depth, question sets, and every alternative on the same backbone."""

from msa.evaluation.types import Answerer, Prediction, Question, QuestionSet

__all__ = ["Answerer", "Prediction", "Question", "QuestionSet"]
