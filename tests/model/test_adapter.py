"""Adapters over a tiny network: applied exactly, or refused with the network unchanged."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_lm

from msa.errors import CheckpointError
from msa.model.adapter import apply_adapter, file_checksum

LAYER = "model.layers.2.self_attn"
WHOLE = f"{LAYER}.router_q_proj.0.weight"
LORA = f"{LAYER}.v_proj"  # [16, 48]


def fitting(rank=3):
    torch.manual_seed(0)
    return {
        WHOLE: torch.randn(48, 48),
        f"{LORA}.lora_A.weight": torch.randn(rank, 48),
        f"{LORA}.lora_B.weight": torch.randn(16, rank),
    }


@pytest.fixture
def lm():
    return tiny_lm()


@pytest.fixture
def write(tmp_path):
    def write(tensors, **metadata):
        path = tmp_path / "adapter.safetensors"
        save_file(tensors, path, metadata=metadata or None)
        return path

    return write


def weights(lm):
    return {name: parameter.detach().clone() for name, parameter in lm.named_parameters()}


def assert_unchanged(lm, before):
    assert all(torch.equal(parameter, before[name]) for name, parameter in lm.named_parameters())


@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_tensors_and_lora_pairs_are_applied(lm, write, scale, dtype):
    before = weights(lm)
    tensors = {name: tensor.to(dtype) for name, tensor in fitting().items()}
    apply_adapter(lm, write(tensors, **({} if scale is None else {"lora_scale": str(scale)})))
    expected = dict(before)
    expected[WHOLE] = tensors[WHOLE].float()
    change = tensors[f"{LORA}.lora_B.weight"].float() @ tensors[f"{LORA}.lora_A.weight"].float()
    expected[f"{LORA}.weight"] = before[f"{LORA}.weight"] + (1.0 if scale is None else scale) * change
    for name, parameter in lm.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.detach(), expected[name], msg=name)
    assert all(parameter.requires_grad for name, parameter in lm.named_parameters() if name != "temperature")


def test_scalars_are_applied(write):
    lm = tiny_lm(routing_bias=True)
    apply_adapter(lm, write({f"{LAYER}.routing_alpha": torch.tensor(2.5)}))
    assert lm.model.layers[2].self_attn.routing_alpha.item() == 2.5


def test_a_network_in_bfloat16_keeps_its_dtype(lm, write):
    lm.bfloat16()
    before = lm.model.layers[2].self_attn.v_proj.weight.float()
    tensors = fitting()
    apply_adapter(lm, write(tensors))
    after = lm.model.layers[2].self_attn.v_proj.weight
    assert after.dtype == torch.bfloat16
    expected = before + tensors[f"{LORA}.lora_B.weight"] @ tensors[f"{LORA}.lora_A.weight"]
    torch.testing.assert_close(after.float(), expected, rtol=1e-2, atol=1e-2)


def test_checksum_and_backbone_that_match_are_accepted(lm, write):
    path = write(fitting(), backbone="aa11")
    apply_adapter(lm, path, checksum=file_checksum(path), backbone="aa11")
    assert torch.equal(lm.get_parameter(WHOLE), fitting()[WHOLE])


def test_an_adapter_that_names_no_backbone_is_accepted(lm, write):
    apply_adapter(lm, write(fitting()), backbone="aa11")
    assert torch.equal(lm.get_parameter(WHOLE), fitting()[WHOLE])


def test_another_checksum_is_refused(lm, write):
    before, path = weights(lm), write(fitting())
    with pytest.raises(CheckpointError, match=f"SHA-256 is {file_checksum(path)}, expected 0000"):
        apply_adapter(lm, path, checksum="0000")
    assert_unchanged(lm, before)


def test_another_backbone_is_refused_and_both_are_named(lm, write):
    before = weights(lm)
    with pytest.raises(CheckpointError, match="trained over backbone aa11, these weights are bb22"):
        apply_adapter(lm, write(fitting(), backbone="aa11"), backbone="bb22")
    assert_unchanged(lm, before)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_file_is_refused(lm, write, damage):
    before, path = weights(lm), write(fitting())
    path.write_bytes({"truncated": path.read_bytes()[:-100], "empty": b"", "text": b"not a tensor file" * 9}[damage])
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors is not a readable safetensors file"):
        apply_adapter(lm, path)
    assert_unchanged(lm, before)


def test_a_missing_file_is_refused(lm, tmp_path):
    with pytest.raises(CheckpointError, match="no such adapter file"):
        apply_adapter(lm, tmp_path / "none.safetensors")


# each is added to (or, None, taken from) an adapter that fits
MISFITS = {
    "unknown tensor": {"zzz.weight": torch.zeros(2)},
    "other shape": {f"{LAYER}.v_proj.weight": torch.zeros(16, 47)},
    "A of an unknown module": {"zzz.lora_A.weight": torch.zeros(3, 4), "zzz.lora_B.weight": torch.zeros(5, 3)},
    "A without B": {f"{LORA}.lora_B.weight": None},
    "B without A": {f"{LORA}.lora_A.weight": None},
    "ranks differ": {f"{LORA}.lora_B.weight": torch.zeros(16, 2)},
    "product too large": {f"{LORA}.lora_B.weight": torch.zeros(17, 3)},
    "B of one dimension": {f"{LORA}.lora_B.weight": torch.zeros(16)},
    "A of one dimension": {f"{LORA}.lora_A.weight": torch.zeros(3)},
    "product that would broadcast": {f"{LORA}.lora_B.weight": torch.ones(1, 3)},
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_an_adapter_that_does_not_fit_changes_nothing(lm, write, misfit):
    before = weights(lm)
    tensors = {name: tensor for name, tensor in {**fitting(), **MISFITS[misfit]}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors: .*(fit|counterpart)"):
        apply_adapter(lm, write(tensors))
    assert_unchanged(lm, before)


def test_a_scale_that_is_no_number_is_refused(lm, write):
    before = weights(lm)
    with pytest.raises(CheckpointError, match="lora_scale"):
        apply_adapter(lm, write(fitting(), lora_scale="large"))
    assert_unchanged(lm, before)


def test_a_fused_network_is_adapted_too(lm, write):
    fused = tiny_lm()
    fused.fuse_projections()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = fused(ids).logits
        for each in (lm, fused):
            apply_adapter(each, write(fitting()))
        torch.testing.assert_close(fused(ids).logits, lm(ids).logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(fused(ids).logits, before)
