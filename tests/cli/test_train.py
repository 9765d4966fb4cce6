"""``msa train``: from a YAML file and JSON lines to a model, a log and a picture."""

import json

import pytest
import torch
import yaml

import msa as package
from msa.cli import train
from msa.training.log import read_log

DOCUMENTS = [{"id": "ada", "text": "Ada met Charles."}, {"id": "snow", "text": "Snow falls in January."}]
SAMPLES = [
    {"query": "Who met Charles?", "positives": ["ada"], "answer": "Ada"},
    {"query": "When does it snow?", "documents": [{"text": "Cats sleep."}], "positives": ["snow"], "answer": "January"},
]


@pytest.fixture
def write(tmp_path, model_folder):
    """Write a run of three steps over two samples; returns its YAML file."""

    def write(samples=SAMPLES, **changes):
        for name, records in (("corpus", DOCUMENTS), ("samples", samples)):
            lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
            (tmp_path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        files = {
            "paths": [str(tmp_path / "samples.jsonl")],
            "corpus": [str(tmp_path / "corpus.jsonl")],
            "documents": 2,
            "questions": 2,
        }
        run = {
            "out": str(tmp_path / "out"),
            "model": str(model_folder),
            "phases": [{"name": "sft", "steps": 3, "learning_rate": "1e-3", "files": files, "id_digits": 1}],
            "log_every": 1,
            "warmup_steps": 1,
            **changes,
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        return tmp_path / "run.yaml"

    return write


def test_a_run_writes_model_log_and_curves(msa, write, tmp_path, model_folder):
    result = msa("train", write(), "--device", "cpu")
    out = tmp_path / "out"
    assert (result.code, result.out) == (0, f"trained: {out / 'model'}\n")
    records = read_log(out / "log.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]
    assert any("training/ids_exact" in record for record in records)  # there is no other data to evaluate on
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((out / "config.yaml").read_text())["phases"][0]["learning_rate"] == 1e-3
    model = package.load(out / "model", dtype="float32")
    assert model.fingerprint != package.load(model_folder, dtype="float32").fingerprint
    with package.Memory.open(tmp_path / "memory", model) as memory:
        memory.add(DOCUMENTS)
        assert memory.ask("Who?", max_new_tokens=2).rounds


def test_a_stopped_run_goes_on_with_the_same_command(msa, write, tmp_path):
    run, out = write(), tmp_path / "elsewhere"
    command = ("train", run, "--device", "cpu", "--out", out, "--stop-after", "1e-9")
    for step in (1, 2):
        result = msa(*command)
        assert result.code == 0
        assert f"run the same command again to go on from {out}/checkpoints" in result.err
        assert [path.name for path in sorted((out / "checkpoints").iterdir())][-1] == f"step-0000000{step}"
        assert not (out / "model").exists()
    assert msa(*command).out == f"trained: {out / 'model'}\n"
    assert not (tmp_path / "out").exists()


def test_another_model_may_be_named_on_the_command_line(msa, write, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("msa.zoo.load", lambda name, **_: loaded.append(name))
    monkeypatch.setattr("msa.training.run.train", lambda model, config: loaded.append(config.model) or tmp_path)
    assert msa("train", write(), "--model", "msa-tiny", "--dtype", "bfloat16").code == 0
    assert loaded == ["msa-tiny", "msa-tiny"]


def test_routers_alone_become_an_adapter_to_ask_with(msa, write, tmp_path, model_folder):
    result = msa("train", write(trainable="routers", routing_bias=2.0, routing_temperature=0.03), "--device", "cpu")
    assert (result.code, result.out) == (0, f"trained: {tmp_path / 'out' / 'adapter.safetensors'}\n")
    assert not (tmp_path / "out" / "model").exists()
    memory, question = tmp_path / "memory", ("Who?", "--max-new-tokens", 2)
    added = msa("add", memory, tmp_path / "corpus.jsonl", "--model", tmp_path / "out" / "adapter.safetensors")
    assert added.code == 0
    assert msa("ask", memory, *question).code == 0  # the memory names the file
    assert float(package.load(tmp_path / "out" / "adapter.safetensors").lm.temperature) == pytest.approx(0.03, rel=1e-2)
    alphas = package.model.adapter.read_adapter(tmp_path / "out" / "adapter.safetensors")[1]
    assert any("routing_alpha" in name and 1.5 < float(value) < 2.5 for name, value in alphas.items())
    refused = msa("ask", memory, *question, "--model", model_folder)
    assert refused.code == 1
    assert "was made by model" in refused.err


def test_a_broken_line_is_named_with_its_file(msa, write, tmp_path):
    result = msa("train", write([SAMPLES[0], '{"query": "When', SAMPLES[1]]))
    assert (result.code, result.out, len(result.err.splitlines())) == (1, "", 1)
    assert "samples.jsonl:2" in result.err
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_document_that_is_not_in_the_corpus_is_named(msa, write):
    result = msa("train", write([{"query": "Who?", "positives": ["gone"]}]))
    assert result.code == 1
    assert "samples.jsonl:1" in result.err
    assert "gone" in result.err


def test_a_too_long_document_is_named_before_training_begins(msa, write, tmp_path):
    result = msa("train", write(max_document_tokens=28))
    assert result.code == 1
    assert "corpus.jsonl:2" in result.err
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_other_settings_in_the_same_folder_are_refused(msa, write):
    assert msa("train", write(), "--device", "cpu", "--stop-after", "1e-9").code == 0
    result = msa("train", write(seed=5), "--device", "cpu")
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert "made with other settings (seed)" in result.err
    result = msa("train", write([{**SAMPLES[0], "query": "Another one?"}, *SAMPLES[1:]]), "--device", "cpu")
    assert "made with other settings (data)" in result.err, "the files say something else now"


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf", "soon"])
def test_a_time_that_never_comes_is_refused(msa, write, minutes):
    result = msa("train", write(), f"--stop-after={minutes}")
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert f"--stop-after: must be minutes, 0 or more (0: no limit), got '{minutes}'" in result.err


def test_a_wrong_key_is_named(msa, write):
    result = msa("train", write(learning_rat=3))
    assert (result.code, result.out, len(result.err.splitlines())) == (1, "", 1)
    assert "unknown key(s) learning_rat" in result.err


def test_a_configuration_that_is_not_there(msa, tmp_path):
    result = msa("train", tmp_path / "gone.yaml")
    assert result.code == 1
    assert "gone.yaml" in result.err


def test_under_torchrun_each_process_loads_on_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert train._device_of_process("auto") == ("cuda:3" if torch.cuda.is_available() else "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = ("auto", "cuda", "cpu", "cuda:1")
    assert [train._device_of_process(device) for device in asked] == ["cuda:3", "cuda:3", "cpu", "cuda:1"]
    monkeypatch.delenv("LOCAL_RANK")
    assert [train._device_of_process(device) for device in asked] == [*asked]
