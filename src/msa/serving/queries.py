"""What a search or a question may ask for, checked before it waits for the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msa.documents.json_values import json_problem
from msa.model.bundle import MSAModel
from msa.serving.errors import ApiError, invalid


def check_where(where: Mapping[str, Any] | None) -> None:
    """Make sure that a filter can match something.

    Raises:
        ApiError: an empty key, or a value that no document can have: 400.
    """
    if where is None:
        return
    if not all(where):
        raise invalid("where maps names of metadata to values; a name is empty", param="where")
    for value in where.values():
        if problem := json_problem(value):
            raise invalid(f"no document can have a value that stands in where: {problem}", param="where")


def check_query(query: str, model: MSAModel) -> None:
    """Make sure that a search is one the model can read: time and memory grow with the square of its tokens.

    Raises:
        ApiError: empty, or longer than the model's context: 400.
    """
    if not query.strip():
        raise invalid("the query is empty; say what to look for", param="query")
    context = model.lm.config.max_position_embeddings
    most = model.lm.config.question_tokens - len(model.protocol.prefix_ids)
    tokens = len(model.protocol.question_turn(query).ids)
    if tokens > most:
        raise ApiError(
            400,
            f"the query has {tokens:,} tokens; this model's context of {context:,} tokens has room for {most:,}. "
            "Search for less",
            "context_length_exceeded",
            param="query",
        )
