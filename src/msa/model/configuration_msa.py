"""Configuration of an MSA model: the backbone's shape and the memory's settings, flat and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from msa.errors import UnsupportedModelError
from msa.model.checkpoint import fields_from_published
from msa.ops import ROUTING_LOSSES, RoutingSpec

BACKBONES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
# RoPE types whose angles do not depend on the sequence's length: an encoded document's keys stay valid
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
# published checkpoints may name BCE: they load and answer, and training by it is refused
_LOSSES = (*ROUTING_LOSSES, "BCE")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "chunk_size",
    "top_k_docs",
)
_FACTORS = ("initializer_range", "rms_norm_eps", "lm_loss_weight", "routing_loss_weight", "answer_loss_weight")
_MISSPELT = 0.85  # similarity of names from which an unknown one is taken for one of ours


class MSAConfig(PreTrainedConfig):
    """Settings of :class:`msa.MSAForCausalLM`; reads published checkpoints (``msa_config``) and our own flat fields.

    Attributes:
        backbone: family of the decoder: ``llama``, ``mistral``, ``qwen2``, ``qwen3`` or ``smollm3``.
        attention_bias: biases on q/k/v (all families) and on o (not Qwen2).
        mlp_bias: biases in the feed-forward layers (Llama only).
        no_rope_layers: per layer 1, or 0 where queries and keys are not rotated (NoPE; SmolLM3's convention); None: all
            are.
        router_layers: indices of the router layers; None: the upper half; ``"all"`` or ``"2,3"`` are understood.
        chunk_size: tokens pooled into one chunk, P.
        top_k_docs: documents each router layer selects, k; also the question's position offset after the prefix.
        decouple_router: separate router projections (the paper); False: the attention's own queries and keys route.
        routing_similarity: ``cosine`` (the paper, the default) or ``dot`` (times head_dim^-0.5).
        head_reduce, query_reduce, chunk_reduce: see :class:`msa.ops.RoutingSpec`.
        routing_loss: the loss L_aux, one of ``msa.ops.ROUTING_LOSSES``.
        routing_temperature: τ of the routing loss and of weighed ids, which read it from the tensor ``temperature``
            that published checkpoints have; :func:`msa.model.routing_temperature.set_routing_temperature` sets both.
        routing_bias_temperature: τ of the routing bias, which stays as it is when the routers are trained with another;
            None: ``routing_temperature``.
        lm_loss_weight, routing_loss_weight, answer_loss_weight: weights of the training losses.
        routing_bias: add α·(s_i − max s)/τ to the attention logits of selected document i (beyond the paper).
        protocol: the transcript's strings (:class:`msa.documents.Protocol`); empty: the published ones.

    Raises:
        UnsupportedModelError: a family, RoPE type, sliding window or layer index this package does not implement.
        ValueError: a value that a field cannot have, or a key that is nearly a field's name. Other unknown keys are
            kept and mean nothing: configs of other releases of transformers have some.
    """

    model_type = "msa"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    backbone: str = "qwen3"
    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    no_rope_layers: list[int] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    router_layers: list[int] | str | None = None
    chunk_size: int = 64
    top_k_docs: int = 16
    decouple_router: bool = True
    routing_similarity: str | None = None
    head_reduce: str = "mean"
    query_reduce: str = "max"
    chunk_reduce: str = "max"
    routing_loss: str = "INFONCE_DECOUPLE"
    routing_temperature: float = 0.1
    routing_bias_temperature: float | None = None
    lm_loss_weight: float = 1.0
    routing_loss_weight: float = 0.1
    answer_loss_weight: float = 1.0
    routing_bias: bool = False
    protocol: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        published = kwargs.pop("msa_config", None)
        if published:
            for field, value in fields_from_published(dict(published)).items():
                if field != "routing_similarity" or self.routing_similarity is None:
                    setattr(self, field, value)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        _refuse_misspelt(kwargs)
        window = kwargs.get("sliding_window")
        if window and kwargs.get("use_sliding_window", True):
            raise UnsupportedModelError(
                f"this checkpoint attends through a sliding window of {window} tokens, which is not implemented: "
                f"documents would be encoded differently from how the backbone reads them"
            )
        self._settle()
        super().__post_init__(**kwargs)
        self._refuse_long_rope()

    @classmethod
    def get_config_dict(cls, source: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the ``config.json`` of a folder or hub id says, as in transformers.

        Raises:
            UnsupportedModelError: it is another model's; ``msa convert`` may make one of ours of it.
        """
        found, rest = super().get_config_dict(source, **kwargs)
        family = found.get("model_type", cls.model_type)
        if family in BACKBONES:
            raise UnsupportedModelError(
                f"{source} is a plain {family} checkpoint, without routers; convert it first: msa convert {source} "
                f"DEST, and load DEST"
            )
        if family != cls.model_type:
            raise UnsupportedModelError(
                f"{source} is a checkpoint of the family {family!r}, expected {cls.model_type!r}; msa convert makes "
                f"one of a checkpoint of: {', '.join(BACKBONES)}"
            )
        return found, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; what ``kwargs`` set in place of the dict's values is checked like these."""
        _refuse_misspelt(kwargs)
        made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made  # with return_unused_kwargs
        config._settle()
        config._refuse_long_rope()
        return made

    def _settle(self) -> None:
        """Fill in what other fields imply, and check all."""
        self._check_numbers()
        assert self.num_key_value_heads is not None
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads, {self.num_attention_heads}, got "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(
                f"head_dim must be even and at least 2, as RoPE turns pairs of numbers; got {self.head_dim} (where it "
                f"is not given, it is hidden_size / num_attention_heads)"
            )
        self.router_layers = _parse_layers(self.router_layers, self.num_hidden_layers)
        self.routing_similarity = self.routing_similarity or "cosine"
        if self.no_rope_layers is not None and len(self.no_rope_layers) != self.num_hidden_layers:
            raise UnsupportedModelError(
                f"no_rope_layers needs one number for each of {self.num_hidden_layers} layers, found "
                f"{len(self.no_rope_layers)}"
            )
        if self.backbone not in BACKBONES:
            raise UnsupportedModelError(
                f"backbone family must be one of {', '.join(BACKBONES)}, found {self.backbone!r}"
            )
        for name, known in (("hidden_act", tuple(ACT2FN)), ("routing_loss", _LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        self.routing_spec()

    def _check_numbers(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if value is None and name == "head_dim":
                continue
            if not _is_number(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in _FACTORS:
            value = getattr(self, name)
            if not _is_number(value, Real) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        for name in ("routing_temperature", "routing_bias_temperature"):
            tau = getattr(self, name)
            if tau is None and name == "routing_bias_temperature":
                continue
            if not _is_number(tau, Real) or not 0 < tau < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {tau!r}")
        for name in ("decouple_router", "routing_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")

    def _refuse_long_rope(self) -> None:
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type not in _ROPE_TYPES:
            raise UnsupportedModelError(
                f"RoPE type {rope_type!r} changes its angles with the length of the text, so keys of encoded "
                f"documents would not stay valid; supported are {', '.join(_ROPE_TYPES)}"
            )

    @property
    def question_tokens(self) -> int:
        """Tokens that the prefix, a question and all after it may have: the question starts k positions later."""
        return self.max_position_embeddings - self.top_k_docs

    def routing_spec(self, *, training: bool = False) -> RoutingSpec:
        """How scores are made; with ``training`` the InfoNCE losses score by cosine, as the published trainer does."""
        similarity = "cosine" if training and "INFONCE" in self.routing_loss else self.routing_similarity
        assert similarity is not None
        assert self.head_dim is not None
        scaled = similarity == "dot" or not self.decouple_router
        return RoutingSpec(
            similarity=similarity,
            scale=self.head_dim**-0.5 if scaled else 1.0,
            head_reduce=self.head_reduce,
            query_reduce=self.query_reduce,
            chunk_reduce=self.chunk_reduce,
        )


def _parse_layers(layers: list[int] | str | None, num_layers: int) -> list[int]:
    """None, ``"all"``, ``"2,3"`` or a list → sorted layer indices, each checked to exist."""
    if layers is None:
        return list(range(num_layers // 2, num_layers))
    if isinstance(layers, str):
        try:
            layers = list(range(num_layers)) if layers.strip() == "all" else [int(part) for part in layers.split(",")]
        except ValueError as error:
            raise UnsupportedModelError(
                f"router layers must be 'all' or indices like '18,19', found {layers!r}"
            ) from error
    chosen = sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_layers:
        raise UnsupportedModelError(f"router layers {chosen} do not lie in 0..{num_layers - 1}")
    return chosen


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _refuse_misspelt(names: Iterable[str]) -> None:
    fields = [name for name in MSAConfig.__annotations__ if name != "model_type"]
    for name in names:
        near = [] if name in fields else get_close_matches(name, fields, n=1, cutoff=_MISSPELT)
        if near:
            raise ValueError(f"{name!r} is no field of an MSA config; is {near[0]!r} meant?")
