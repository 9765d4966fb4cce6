"""Adapters over a tiny network: applied exactly, or refused with the network unchanged."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import random_tokens, tiny_lm

from msa.errors import CheckpointError
from msa.model import MSAForCausalLM
from msa.model.adapter import apply_adapter, file_checksum
from msa.training.names import is_router
from msa.training.parameters import save_trained

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


@pytest.mark.parametrize("scale", [None, 0.0, 0.25])
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


# the routing bias


def biased():
    """An adapter that brings a bias for both router layers."""
    return {**fitting(), **{f"model.layers.{n}.self_attn.routing_alpha": torch.tensor(1.5 + n) for n in (2, 3)}}


def outputs(lm):
    """Logits and scores of a question over four documents."""
    with torch.no_grad():
        memory = lm.encode_documents(torch.tensor(random_tokens(9, 9, 9, 9)), torch.tensor([9, 5, 7, 8]))
        out = lm(torch.tensor(random_tokens(6, seed=1)), memory=memory)
    return [out.logits, *(layer.doc_scores for layer in out.routing.values())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_comes_with_the_adapter_where_the_network_has_none(write, tmp_path, dtype):
    lm, with_bias = tiny_lm().to(dtype), tiny_lm().to(dtype)
    with_bias.add_routing_bias(9.0)
    path = write(biased())
    for each in (lm, with_bias):
        apply_adapter(each, path)
    assert lm.config.routing_bias
    assert {parameter.dtype for parameter in lm.parameters()} == {dtype}
    expected = weights(with_bias)
    assert set(weights(lm)) == set(expected)
    assert_unchanged(lm, expected)
    assert [lm.model.layers[n].self_attn.routing_alpha.item() for n in (2, 3)] == [3.5, 4.5]
    lm.save_pretrained(tmp_path / "folder")
    again = MSAForCausalLM.from_pretrained(tmp_path / "folder", dtype=dtype).eval()
    assert all(torch.equal(a, b) for a, b in zip(outputs(again), outputs(lm), strict=True))


def test_a_bias_changes_what_is_attended_to_and_nothing_of_what_is_routed(write):
    plain, lm = tiny_lm(), tiny_lm()
    apply_adapter(plain, write(fitting()))
    apply_adapter(lm, write(biased()))
    (logits, *scores), (others, *other_scores) = outputs(lm), outputs(plain)
    assert not torch.allclose(logits, others)
    torch.testing.assert_close(scores[0], other_scores[0])  # the first router layer is below every bias


def test_a_network_that_has_a_bias_keeps_it_under_an_adapter_without(write):
    lm = tiny_lm(routing_bias=True)
    before = lm.get_parameter(f"{LAYER}.routing_alpha").item()
    apply_adapter(lm, write(fitting()))
    assert lm.get_parameter(f"{LAYER}.routing_alpha").item() == before


BIAS_MISFITS = {
    "of some layers": ({f"{LAYER}.routing_alpha": None}, r"no model\.layers\.2\.self_attn\.routing_alpha"),
    "of no router layer": ({"model.layers.0.self_attn.routing_alpha": torch.ones(())}, "does not fit"),
    "not a scalar": ({f"{LAYER}.routing_alpha": torch.ones(6)}, r"routing_alpha \[6\] does not fit"),
    "beside a misfit": ({WHOLE: torch.zeros(2, 2)}, "does not fit"),
}


@pytest.mark.parametrize("misfit", BIAS_MISFITS)
def test_a_bias_that_does_not_fit_changes_nothing(lm, write, misfit):
    changes, message = BIAS_MISFITS[misfit]
    before = weights(lm)
    tensors = {name: tensor for name, tensor in {**biased(), **changes}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        apply_adapter(lm, write(tensors))
    assert set(weights(lm)) == set(before)
    assert_unchanged(lm, before)
    assert not lm.config.routing_bias
    assert not hasattr(lm.model.layers[2].self_attn, "routing_alpha")


def test_what_was_trained_with_a_bias_comes_back(write, tmp_path):
    lm = tiny_lm()
    lm.add_routing_bias(3.0)
    with torch.no_grad():
        lm.model.layers[3].self_attn.routing_alpha.fill_(-0.5)
    lm.add_routing_bias(9.0)  # there is one already
    assert [lm.model.layers[n].self_attn.routing_alpha.item() for n in (2, 3)] == [3.0, -0.5]
    assert not hasattr(lm.model.layers[1].self_attn, "routing_alpha")
    round_trip = tiny_lm()
    with torch.no_grad():
        for each in (lm, round_trip):
            for name, parameter in each.named_parameters():
                if is_router(name):
                    parameter.copy_(parameter.bfloat16())  # what an adapter's file keeps
    save_trained(lm, tmp_path / "trained.safetensors", lora_scale=1.0, metadata={})
    apply_adapter(round_trip, tmp_path / "trained.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(outputs(round_trip), outputs(lm), strict=True))
