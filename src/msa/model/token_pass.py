"""One more token of every row: what the decoder computes for it, without what its modules cost.

A decoded token streams the weights once and computes little, so everything around the products shows: module calls and
attribute look-ups, and norms made of seven small kernels. :class:`TokenPass` calls the same operations on the same
weights, which :meth:`msa.MSAForCausalLM.fuse_projections` has joined; :class:`msa.model.modeling_msa.MSADecoder` is the
reference. benchmarks/encode_decode.py and benchmarks/serving_throughput.py measure it.

Axes: B rows, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from msa.model.attention import MemorySparseAttention, Reader, RMSNorm
from msa.model.fusion import few_row_products

if TYPE_CHECKING:
    from msa.model.modeling_msa import MSADecoderLayer, MSAForCausalLM

_Module = TypeVar("_Module", bound=nn.Module)
_SAMPLED = 512  # values of each weight that show whether it has changed
PACKED_BYTES = 4 << 30  # packed weights are held beside the plain ones; larger networks go without


class Product:
    """Multiplies ``[B, in]`` with a weight ``[out, in]`` and adds the bias ``[out]``, if there is one.

    For one row torch streams the plain weight fastest; a few rows take oneDNN as long as one once the weight is packed
    as its kernels read it, and two to three times as long while it is not. The values are the same.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self._turned = self.weight.t()
        self._packed: Tensor | None = None

    def pack(self) -> None:
        """Pack the weight as it is now."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def sample(self) -> Tensor:
        """The bits of some of its weights, of all its rows and columns."""
        values = self.weight.flatten().view(torch.int16)
        return values[:: max(1, values.numel() // _SAMPLED) | 1]  # odd: no column of a power of two alone

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, in]`` → ``[B, out]``."""
        if self._packed is not None and x.shape[0] > 1:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
            return out
        out = torch.mm(x, self._turned)
        return out if self.bias is None else out.add_(self.bias)  # addmm has no fast kernel for one row


@dataclass(frozen=True)
class _Layer:
    """One decoder layer: its products, norms and attention."""

    attention: MemorySparseAttention
    input_norm: nn.Parameter
    qkv: Product
    output: Product
    mlp_norm: nn.Parameter
    gate_up: Product
    down: Product


class TokenPass:
    """All layers and the head for one token a row; made for the weights as they are, see :attr:`is_current`.

    Args:
        lm: a network with fused projections.

    Raises:
        RuntimeError: they are not fused.
        TypeError: a layer is no plain ``nn.Linear``, as under LoRA.
    """

    def __init__(self, lm: MSAForCausalLM) -> None:
        self._watched: list[tuple[dict[str, nn.Module | None], str, nn.Module]] = []
        self._pointers: list[tuple[dict[str, nn.Parameter | None], str, int]] = []
        self._products: list[Product] = []
        decoder = lm.model
        self._rope, self._eps, self._dtype = decoder.rope, lm.config.rms_norm_eps, lm.dtype
        self._act = decoder.layer(0).mlp.act
        # CUDA has the norm as one kernel
        self._norm = norm_of_few_rows if lm.device.type == "cpu" else _norm
        self._layers = [self._layer_of(decoder.layer(index)) for index in range(len(decoder.layers))]
        self._embedding = self._watch(decoder, "embed_tokens", nn.Embedding).weight
        self._last_norm = self._watch(decoder, "norm", RMSNorm).weight
        self._head = self._linear(lm, "lm_head")
        self._hooks = [hooks for module in lm.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._packs = _can_pack(lm) and sum(product.weight.nbytes for product in self._products) <= PACKED_BYTES
        self._packed_versions: list[int] = []
        self._packed_sample = torch.zeros(0)
        self._sure = False

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the network is another one: it goes through its modules until its projections are fused again."""
        return type(None), ()

    def __call__(self, input_ids: Tensor, positions: Tensor, reader: Reader) -> tuple[Tensor, Tensor]:
        """Token ids and positions ``[B, 1]`` → final normed states ``[B, 1, H]`` and logits ``[B, 1, V]``."""
        if input_ids.shape[0] > 1 and self._packs:
            self._pack()
            states = self._states(input_ids, positions, reader)
            logits = self._head(states)
        else:
            with few_row_products(input_ids, self._dtype):
                states = self._states(input_ids, positions, reader)
                logits = self._head(states)
        return states.unsqueeze(1), logits.unsqueeze(1)

    def look_again(self) -> None:
        """Something else was computed since: weights may have been changed in a way that torch does not count."""
        self._sure = False

    @property
    def is_current(self) -> bool:
        """Whether layers and weights are still those that this was made for, and no hook waits for a module's call."""
        return (
            not any(self._hooks)
            and all(modules.get(name) is module for modules, name, module in self._watched)
            and all(
                (tensor := parameters[name]) is not None and tensor.data_ptr() == pointer
                for parameters, name, pointer in self._pointers
            )
        )

    def _states(self, input_ids: Tensor, positions: Tensor, reader: Reader) -> Tensor:
        """As :meth:`MSADecoder.forward`, in ``[B, H]``."""
        norm, eps = self._norm, self._eps
        x = nn.functional.embedding(input_ids[:, 0], self._embedding)
        rope = self._rope(positions, x.dtype)
        for layer in self._layers:
            hidden = norm(x, layer.input_norm, eps)
            q, k, v = layer.attention.heads_of(layer.qkv(hidden).unsqueeze(1), rope)
            attended = reader.attend(layer.attention, hidden.unsqueeze(1), q, k, v)
            x = x + layer.output(attended.flatten(1))
            gate, up = layer.gate_up(norm(x, layer.mlp_norm, eps)).chunk(2, dim=-1)
            x = x + layer.down(self._act(gate) * up)
        return norm(x, self._last_norm, eps)

    def _pack(self) -> None:
        """Pack all weights, unless they are and have not changed since.

        Changes through ``weight.data``, as PEFT merges adapters, leave no trace but the values: some of each weight are
        compared before the first pass of a question.
        """
        versions = [parameters[name]._version for parameters, name, _ in self._pointers]  # type: ignore[union-attr]
        if self._sure and versions == self._packed_versions:
            return
        sample = torch.cat([product.sample() for product in self._products])
        if versions != self._packed_versions or not torch.equal(sample, self._packed_sample):
            for product in self._products:
                product.pack()
            self._packed_versions, self._packed_sample = versions, sample
        self._sure = True

    def _layer_of(self, layer: MSADecoderLayer) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        for name in ("q_proj", "k_proj", "v_proj"):
            self._watch(attention, name, nn.Linear)
        for name in ("gate_proj", "up_proj"):
            self._watch(mlp, name, nn.Linear)
        return _Layer(
            attention=attention,
            input_norm=self._watch(layer, "input_layernorm", RMSNorm).weight,
            qkv=self._product(*attention.fused_qkv.joined),
            output=self._linear(attention, "o_proj"),
            mlp_norm=self._watch(layer, "post_attention_layernorm", RMSNorm).weight,
            gate_up=self._product(*mlp.fused_gate_up.joined),
            down=self._linear(mlp, "down_proj"),
        )

    def _linear(self, parent: nn.Module, name: str) -> Product:
        layer = self._watch(parent, name, nn.Linear)
        return self._product(layer.weight, layer.bias)

    def _product(self, weight: Tensor, bias: Tensor | None) -> Product:
        self._products.append(Product(weight, bias))
        return self._products[-1]

    def _watch(self, parent: nn.Module, name: str, kind: type[_Module]) -> _Module:
        module = getattr(parent, name)
        if type(module) is not kind:
            raise TypeError(f"{name} is no plain {kind.__name__} but {type(module).__name__}")
        self._watched.append((parent._modules, name, module))
        for parameter_name, parameter in module.named_parameters():
            self._pointers.append((module._parameters, parameter_name, parameter.data_ptr()))
        return module


def norm_of_few_rows(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm ``[B, H]`` in four small kernels where torch takes seven on a CPU.

    [x, −x] has mean 0 and for its variance the mean square of x: its layer norm is x's RMS norm.
    """
    size = x.shape[-1]
    return nn.functional.layer_norm(torch.cat((x, -x), dim=-1), (2 * size,), None, None, eps)[..., :size] * weight


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return nn.functional.rms_norm(x, weight.shape, weight, eps)


def _can_pack(lm: MSAForCausalLM) -> bool:
    """Whether oneDNN has packed bf16 products here, and changes of the weights can be told."""
    return (
        lm.device.type == "cpu"
        and lm.dtype == torch.bfloat16
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and not any(parameter.is_inference() for parameter in lm.parameters())
    )
