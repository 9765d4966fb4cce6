"""The records a memory bank stores, and the checks a commit passes before anything is written.

Axes: n parts, C chunks, n_kv key-value heads, D head dimension.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from msa.documents.json_values import json_problem

Kind = Literal["routing_keys", "keys", "values", "int8_routing_keys", "int8_scales"]
KINDS: tuple[Kind, ...] = ("routing_keys", "keys", "values")
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class BankSpec:
    """Shape of a bank's latents, stored with it.

    Attributes:
        layers: the router layers whose latents are stored, ascending.
        num_key_value_heads: n_kv.
        head_dim: D.
        chunk_size: tokens per chunk.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        model_name: the encoding model's name, for messages.
        settings: JSON values that the bank keeps but does not interpret.
        int8: whether routing keys are stored a second time in eight bits, so that they need not be made at opening.
    """

    layers: tuple[int, ...]
    num_key_value_heads: int
    head_dim: int
    chunk_size: int
    dtype: str
    model_name: str
    settings: dict[str, Any] = field(default_factory=dict)
    int8: bool = False

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"layers must be ascending layer numbers, at least one, found {self.layers}")
        for name in ("num_key_value_heads", "head_dim", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, found {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the latents."""
        return DTYPES[self.dtype]

    def layout(self, num_chunks: int) -> list[tuple[Kind, int, torch.dtype, tuple[int, ...]]]:
        """Kind, layer, dtype and shape of every tensor of so many chunks, larger elements first."""
        states = (num_chunks, self.num_key_value_heads, self.head_dim)
        tensors = [(kind, layer, self.torch_dtype, states) for layer in self.layers for kind in KINDS]
        if not self.int8:
            return [*tensors]
        scales: list[tuple[Kind, int, torch.dtype, tuple[int, ...]]] = [
            ("int8_scales", layer, torch.float32, (num_chunks,)) for layer in self.layers
        ]
        return [*scales, *tensors, *(("int8_routing_keys", layer, torch.int8, states) for layer in self.layers)]

    @classmethod
    def from_json(cls, text: str) -> BankSpec:
        """Read the settings as a manifest has them."""
        fields = json.loads(text)
        return cls(**{**fields, "layers": tuple(fields["layers"])})


@dataclass(frozen=True, kw_only=True)
class Part:
    """A span of a document that the model encodes as one document d_i of the method.

    Attributes:
        number: at least 1, inside the encoded tokens, never reused within a bank.
        start: first character of the span in the document's text.
        end: one past its last character.
        num_tokens: tokens of the span.
        num_chunks: chunks of its latents, at least 1.
    """

    number: int
    start: int
    end: int
    num_tokens: int
    num_chunks: int


@dataclass(frozen=True, kw_only=True)
class StoredDocument:
    """A user's text with its parts; ``content_hash`` is the caller's, the bank only keeps it."""

    id: str
    text: str
    metadata: dict[str, Any]
    content_hash: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """One part with what it belongs to.

    Attributes:
        part: its number, span and sizes.
        document_id: the id of its document.
        index: its place among the document's parts, from 0.
        num_parts: how many parts the document has.
        text: the part's span of the document's text.
        metadata: the document's metadata.
    """

    part: Part
    document_id: str
    index: int
    num_parts: int
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Latents of the parts of one commit, packed in ascending order of their numbers.

    Attributes:
        routing_keys: by layer ``[C, n_kv, D]``, pooled routing keys.
        keys: by layer ``[C, n_kv, D]``, pooled content keys.
        values: by layer ``[C, n_kv, D]``, pooled content values.
        int8_routing_keys: by layer ``[C, n_kv, D]`` int8, where the spec has them; int8_scales: ``[C]`` float32.
        numbers: ``[n]`` int64, strictly ascending.
        chunk_offsets: ``[n + 1]`` int64; part ``i`` owns chunks ``chunk_offsets[i]:chunk_offsets[i + 1]``.
    """

    routing_keys: dict[int, Tensor]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    numbers: Tensor
    chunk_offsets: Tensor
    int8_routing_keys: dict[int, Tensor] = field(default_factory=dict)
    int8_scales: dict[int, Tensor] = field(default_factory=dict)

    def tensor(self, kind: Kind, layer: int) -> Tensor:
        """Return one kind of one layer."""
        tensors: dict[int, Tensor] = getattr(self, kind)
        return tensors[layer]


def dump_json(value: Any, what: str) -> str:
    """Serialise ``value`` deterministically; ``what`` names it in the error.

    Raises:
        ValueError: ``value`` holds something JSON cannot express (NaN and infinities included).
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be JSON values: {error}") from error


def layout_problem(numbers: Tensor, chunk_offsets: Tensor) -> str | None:
    """Say what is wrong with ``numbers`` ``[n]`` and ``chunk_offsets`` ``[n + 1]``, or return None."""
    if numbers.ndim != 1 or numbers.dtype != torch.int64 or not len(numbers):
        return f"numbers must be a non-empty int64 vector, found {list(numbers.shape)} {numbers.dtype}"
    if chunk_offsets.shape != (len(numbers) + 1,) or chunk_offsets.dtype != torch.int64:
        return f"chunk_offsets must be int64 [{len(numbers) + 1}], found {list(chunk_offsets.shape)}"
    if int(numbers[0]) < 1 or bool((numbers.diff() < 1).any()):
        return "numbers must ascend strictly from 1 or more"
    if int(chunk_offsets[0]) != 0 or bool((chunk_offsets.diff() < 1).any()):
        return "chunk_offsets must start at 0 and give every part at least one chunk"
    return None


def check_latents(spec: BankSpec, latents: Latents) -> None:
    """Check that ``latents`` fit ``spec``.

    Raises:
        ValueError: a missing layer, another shape or dtype, or inconsistent numbers and offsets.
    """
    problem = layout_problem(latents.numbers, latents.chunk_offsets)
    if problem:
        raise ValueError(f"latents: {problem}")
    layout = spec.layout(int(latents.chunk_offsets[-1]))
    for kind in dict.fromkeys(kind for kind, *_ in layout):
        found_layers = tuple(sorted(getattr(latents, kind)))
        if found_layers != spec.layers:
            raise ValueError(f"latents.{kind} must hold layers {spec.layers}, found {found_layers}")
    for kind, layer, dtype, shape in layout:
        tensor = latents.tensor(kind, layer)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(
                f"latents.{kind}[{layer}] must be {list(shape)} {dtype}, found {list(tensor.shape)} {tensor.dtype}"
            )


def check_documents(put: Sequence[StoredDocument], delete: Sequence[str]) -> None:
    """Check documents as far as that needs no look at the present state.

    Raises:
        ValueError: an empty or repeated id, an id both put and deleted, text that is not valid Unicode,
            metadata that are not JSON with string keys, or parts with impossible spans or repeated numbers.
        TypeError: ``delete`` is one string, or a part's fields are not ``int``.
    """
    if isinstance(delete, str):
        raise TypeError(f"delete must be a sequence of document ids, found the string {delete!r}")
    ids: set[str] = set()
    numbers: set[int] = set()
    for document in put:
        if not document.id or document.id in ids:
            raise ValueError(f"document ids must be distinct and not empty, found {document.id!r}")
        ids.add(document.id)
        for name in ("id", "text", "content_hash"):
            _check_unicode(getattr(document, name), f"{name} of document {document.id!r}")
        if not all(isinstance(key, str) for key in document.metadata):
            raise ValueError(f"metadata keys of document {document.id!r} must be strings")
        if problem := json_problem(document.metadata):
            raise ValueError(f"the metadata of document {document.id!r} must be JSON values: {problem}")
        text = dump_json(document.metadata, f"the metadata of document {document.id!r}")
        if dump_json(json.loads(text), "metadata") != text:
            raise ValueError(f"keys inside the metadata of document {document.id!r} must be strings")
        for part in document.parts:
            if any(type(value) is not int for value in vars(part).values()):
                raise TypeError(f"the fields of a part must be int, found {part}")
            if part.number < 1 or part.number in numbers:
                raise ValueError(f"part numbers must be distinct and at least 1, found {part.number}")
            numbers.add(part.number)
            if not 0 <= part.start <= part.end <= len(document.text):
                raise ValueError(
                    f"part {part.number} of document {document.id!r} spans [{part.start}, {part.end}), "
                    f"the text has {len(document.text)} characters"
                )
            if part.num_tokens < 0 or part.num_chunks < 1:
                raise ValueError(f"part {part.number} must have at least one chunk, found {part}")
    both = ids.intersection(delete)
    if both:
        raise ValueError(f"document {min(both)!r} is both put and deleted in one commit")


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the {what} is not valid Unicode: lone surrogate {text[error.start]!r} at character {error.start}. "
            "Replace it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error
