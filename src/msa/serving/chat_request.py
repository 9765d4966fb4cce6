"""What a chat completion may ask for: OpenAI's fields, and the memory's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from msa.documents.formats import clean_text
from msa.generation.options import AskOptions
from msa.serving.conversation import INSTRUCTING, Turn
from msa.serving.errors import invalid
from msa.serving.queries import check_where

_ROLES = ("system", "developer", "user", "assistant")
_MAX_STOPS = 4
# top_p 0, which OpenAI allows, is the most probable token alone; top_k −1 is how vLLM's clients say "all"
_LEAST_OF = {"top_p": 1e-6, "top_k": 0}
_SEEDS = {"ge": -(2**63), "le": 2**63 - 1}
# fields that change what is answered and cannot be obeyed → values that ask for nothing
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "web_search_options": (None,),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    # of other servers that speak this protocol
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
}
_CHOICES = {"tools": "tool_choice", "functions": "function_call"}  # "none": they may not be called


def _part(kind: str) -> dict[str, Any]:
    """A part of a message's content, whose text stands in the field that is named as the part."""
    return {
        "type": "object",
        "required": ["type", kind],
        "properties": {"type": {"const": kind}, kind: {"type": "string"}},
    }


_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": [*_ROLES]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {"anyOf": [_part("text"), _part("refusal") | {"description": "of the assistant only"}]},
                },
                {"type": "null", "description": "of the assistant only"},
            ]
        },
    },
}


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="ignore")
    include_usage: StrictBool | None = None


class ChatRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``; unknown fields are ignored."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})

    model: Annotated[StrictStr, Field(description="<model>@<memory>, or <model> with the field memory")]
    messages: Annotated[list[Any], Field(min_length=1, max_length=4096, json_schema_extra={"items": _MESSAGE})]
    memory: StrictStr | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    stream_events: StrictBool | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[StrictFloat, Field(ge=0, le=2)] | None = None
    top_p: Annotated[StrictFloat, Field(ge=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    seed: Annotated[StrictInt, Field(**_SEEDS)] | None = None
    stop: StrictStr | list[StrictStr] | None = None
    n: StrictInt | None = None
    where: dict[str, Any] | None = None
    hybrid: StrictBool | None = None
    retrieval: Literal["generative", "routed"] | None = None
    max_rounds: Annotated[StrictInt, Field(ge=0, le=64)] | None = None
    max_documents: Annotated[StrictInt, Field(ge=0, le=1024)] | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A checked request.

    Attributes:
        model: the model asked for, without the memory.
        memory: the memory asked for; empty: none is named.
        turns: the messages; the last one is the question.
        options: for :meth:`msa.Memory.stream`.
        stream, include_usage, stream_events: how it is answered.
    """

    model: str
    memory: str
    turns: list[Turn]
    options: dict[str, Any]
    stream: bool
    include_usage: bool
    stream_events: bool


def wanted(request: ChatRequest, *, default_tokens: int, max_tokens: int) -> Wanted:
    """Check what types alone do not say.

    Args:
        request: the body.
        default_tokens: tokens of the answer where it does not say.
        max_tokens: what it may ask for.

    Raises:
        ApiError: 400, naming the field.
    """
    _refuse_unsupported(request)
    model, memory = _target(request)
    tokens = request.max_completion_tokens or request.max_tokens or default_tokens
    if tokens > max_tokens:
        name = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
        raise invalid(f"{name} may be up to {max_tokens:,} here, got {tokens:,}", param=name)
    options: dict[str, Any] = {"max_new_tokens": tokens, "stop": _stops(request.stop)}
    for name in ("temperature", "top_p", "top_k", "seed", "where", "hybrid", "retrieval", "max_rounds"):
        value = getattr(request, name)
        if value is not None:
            options[name] = max(value, _LEAST_OF[name]) if name in _LEAST_OF else value
    if request.max_documents is not None:
        options["max_documents"] = request.max_documents
    try:
        AskOptions(hybrid=options.get("hybrid", False), retrieval=options.get("retrieval"))
    except ValueError as error:
        raise invalid(str(error), param="hybrid") from error
    check_where(request.where)
    return Wanted(
        model=model,
        memory=memory,
        turns=_turns(request.messages),
        options=options,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        stream_events=bool(request.stream_events),
    )


def _refuse_unsupported(request: ChatRequest) -> None:
    extra = request.model_extra or {}
    for name, nothing in _UNSUPPORTED.items():
        value = extra.get(name)
        if extra.get(_CHOICES.get(name, "")) == "none" and isinstance(value, list):
            continue
        if not any(value == harmless and isinstance(value, bool) == isinstance(harmless, bool) for harmless in nothing):
            raise invalid(f"{name!r} is not supported by this server; leave it out", name, "unsupported_parameter")
    if request.n not in (None, 1):
        message = f"only n=1 is supported, got {request.n}; send the request several times"
        raise invalid(message, "n", "unsupported_value")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream: true", param="stream_options")


def split_model(name: str) -> tuple[str, str]:
    """``<model>@<memory>`` → both; the memory is empty where none is named."""
    model, at, memory = name.rpartition("@")
    return (model, memory) if at else (name, "")


def _target(request: ChatRequest) -> tuple[str, str]:
    """The model and the memory; the memory is empty where none is named."""
    model, memory = split_model(request.model)
    if request.memory is not None and memory and request.memory != memory:
        raise invalid(
            f"the model names memory {memory!r} and the field memory {request.memory!r}; name one", param="memory"
        )
    return model, request.memory or memory


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > _MAX_STOPS or not all(stops):
        raise invalid(f"stop must be one to {_MAX_STOPS} strings that are not empty", param="stop")
    return stops


def _turns(messages: list[Any]) -> list[Turn]:
    turns = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise invalid(f"{where} must be an object with a role and a content", param=where)
        role = message["role"]
        if role not in _ROLES:
            raise invalid(
                f"{where}: role {role[:40]!r} is not supported; use {', '.join(_ROLES)}", param=f"{where}.role"
            )
        if message.get("tool_calls") or message.get("function_call"):
            raise invalid(f"{where}: tools are not supported", f"{where}.tool_calls", "unsupported_parameter")
        # half a character or a NUL would stop the tokenizer
        turns.append(Turn(role, clean_text(_text(message.get("content"), role, f"{where}.content"))))
    # instructions may stand behind the question, too
    last = max((index for index, turn in enumerate(turns) if turn.role not in INSTRUCTING), default=len(turns) - 1)
    question = turns.pop(last)
    if question.role != "user":
        raise invalid("the last message must be the user's: it is the question", param=f"messages[{last}]")
    if not question.text.strip():
        raise invalid("the question is empty; ask something", param=f"messages[{last}].content")
    return [*turns, question]


def _text(content: Any, role: str, where: str) -> str:
    """A message's content: a string, or parts of text; of the assistant's also those that say why it did not answer."""
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list):
        raise invalid(f"{where} must be a string or a list of text parts", param=where)
    kinds = ("text", "refusal") if role == "assistant" else ("text",)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in kinds or not isinstance(part.get(kind), str):
            raise invalid(
                f"{where}[{index}]: only parts of type 'text' are supported", f"{where}[{index}]", "unsupported_content"
            )
        texts.append(part[kind])
    return "\n".join(texts)
