"""Adapter files that ``msa train`` writes load as models: found over what they were trained over, or refused clearly."""

import re

import pytest
import torch
from safetensors.torch import save_file
from tiny_training import learner

from msa import zoo
from msa.errors import CheckpointError, ModelNotFoundError, TrainingError
from msa.model.adapter import apply_adapter, file_checksum
from msa.model.bundle import model_fingerprint
from msa.training.config import LoraConfig, Phase, TrainConfig
from msa.training.data.needles import NeedleConfig
from msa.training.run import train

pytestmark = pytest.mark.usefixtures("plain_log")


@pytest.fixture
def folder(tmp_path):
    """A base model, which lies where a relative path finds it from one folder alone."""
    learner().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(model, out, **changes):
    needles = NeedleConfig(documents=2, questions=2, max_filler=4)
    phase = Phase(name="one", steps=4, learning_rate=0.1, needles=needles, id_digits=1)
    fields = {"out": str(out), "phases": (phase,), "warmup_steps": 0, "lora": LoraConfig(rank=2), **changes}
    run = TrainConfig(**fields)
    return train(model, run)


def load(name, dtype="float32"):
    return zoo.load(name, device="cpu", dtype=dtype)


def logits(model):
    with torch.inference_mode():
        return model.lm(torch.tensor([[1, 2, 3]])).logits


@pytest.mark.parametrize(("trainable", "merged"), [("routers", False), ("lora", False), ("lora", True)])
def test_what_was_trained_loads_from_any_folder(folder, tmp_path, monkeypatch, trainable, merged):
    monkeypatch.chdir(tmp_path)
    model = load("base")
    result = trained(model, "out", trainable=trainable, lora=LoraConfig(rank=2, merged=merged))
    monkeypatch.chdir(tmp_path / "out")
    loaded = load("adapter.safetensors")
    assert loaded.name == str(tmp_path / result)
    base = load(folder)
    assert loaded.fingerprint != base.fingerprint
    for name, value in loaded.lm.named_parameters():
        router = ".router_" in name
        assert router or trainable == "lora" or torch.equal(value, base.lm.get_parameter(name)), name
    if trainable == "lora":
        torch.testing.assert_close(logits(loaded), logits(model), atol=2e-2, rtol=2e-2)
        assert (logits(loaded) - logits(base)).abs().max() > 0.1
    # a memory does not depend on what its model computes in
    assert load("adapter.safetensors", "bfloat16").fingerprint == loaded.fingerprint
    assert {p.dtype for p in load("adapter.safetensors", "bfloat16").lm.parameters()} == {torch.bfloat16}


def test_an_adapter_over_an_adapter(folder, tmp_path):
    first = trained(load(folder), tmp_path / "first", trainable="lora")
    second = trained(load(first), tmp_path / "second", trainable="routers")
    expected = load(folder)
    for path in (first, second):
        apply_adapter(expected.lm, path)
    assert load(second).fingerprint == expected.fingerprint != load(first).fingerprint
    with pytest.raises(TrainingError, match="use another 'out' folder"):
        trained(load(first), tmp_path / "first", trainable="lora")
    save_file({"a": torch.zeros(1)}, first, metadata={"model": str(second)})
    with pytest.raises(CheckpointError, match=r"first\S* was trained over \S*second\S*, which was written over since"):
        load(second)


def test_a_base_that_is_gone_is_named(folder, tmp_path):
    result = trained(load(folder), tmp_path / "out", trainable="routers")
    folder.rename(tmp_path / "moved")
    with pytest.raises(ModelNotFoundError, match=f"was trained over '{folder}', which cannot be loaded here.*Put that"):
        load(result)


def test_a_base_that_changed_is_refused(folder, tmp_path):
    result = trained(load(folder), tmp_path / "out", trainable="routers")
    before = model_fingerprint(load(folder).lm, routers=False)
    learner(seed=1).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=rf"over backbone {before} \({re.escape(str(folder))} as it was then\)"):
        load(result)


def test_an_adapter_that_names_no_model_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"backbone": "0"})
    with pytest.raises(CheckpointError, match="does not name the model it was trained over; load that one"):
        load(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", ["adapter.safetensors", "runs/adapter.safetensors", "a/b/adapter.safetensors"])
def test_a_file_that_is_not_there_is_no_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=f"no model '{name}'.* an adapter file"):
        load(name)


@pytest.mark.parametrize("name", [zoo.DEFAULT_MODEL, zoo.ROUTERS_MODEL, zoo.UNTRAINED_MODEL])
def test_a_shipped_adapter_given_as_a_file_is_the_model_of_its_name(name, monkeypatch):
    monkeypatch.setattr(zoo, "_load_named", lambda known, *_: known)
    path = zoo.Path(zoo.__file__).parent / "adapters" / zoo.MODELS[name].adapter.file
    assert load(path) == name
    assert file_checksum(path) == zoo.MODELS[name].adapter.sha256
