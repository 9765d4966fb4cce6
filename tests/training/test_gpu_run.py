"""The GPU recipe's dry run on a CPU: stretches go on from one another, and the parts make the adapter again."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

import msa
from msa.model.adapter import apply_adapter
from msa.model.bundle import model_fingerprint

RECIPE = Path(__file__).parents[2] / "recipes" / "gpu_run.py"


def recipe():
    spec = importlib.util.spec_from_file_location("gpu_run", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stretches_end_in_an_adapter_that_fits_the_backbone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    tiny_model().save_pretrained(tmp_path / "backbone")
    documents = [{"id": str(n), "text": f"Item {n} costs {7 * n} euros."} for n in range(12)]
    samples = [
        {"query": f"What does item {n} cost?", "positives": [str(n)], "answer": f"{7 * n} euros"} for n in range(12)
    ]
    for name, lines in (("corpus", documents), ("train", samples[:8]), ("validation", samples[8:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    gpu_run = recipe()
    monkeypatch.setattr(gpu_run, "PART_BYTES", 20_000)
    arguments = ["--backbone", str(tmp_path / "backbone"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    arguments += ["--steps", "1", "1", "1", "--documents", "4", "--questions", "2", "--rank", "2"]
    stretches = 1
    while not gpu_run.run(gpu_run.parse([*arguments, "--minutes", "1e-6"])):
        stretches += 1
        assert stretches < 5
    assert stretches == 3, "each stretch stops after its first step, the last one at the end"

    result = tmp_path / "out" / "result"
    parts = sorted(result.glob("adapter.safetensors.part-*"))
    assert len(parts) > 1
    assert all(part.stat().st_size <= 20_000 for part in parts)
    gpu_run.join(result)
    assert (result / "adapter.safetensors").read_bytes() == (
        tmp_path / "out" / "run" / "adapter.safetensors"
    ).read_bytes()
    metrics = json.loads((result / "metrics.json").read_text())
    assert {"ids_exact", "answer_exact", "recall@1/mean"} <= set(metrics)

    model = msa.load(tmp_path / "backbone", dtype="float32")
    before = model.fingerprint
    apply_adapter(model.lm, result / "adapter.safetensors", backbone=model_fingerprint(model.lm, routers=False))
    assert msa.MSAModel(model.lm, model.tokenizer).fingerprint != before


def test_a_stretch_without_a_backbone_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        recipe().parse(["--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "--backbone" in capsys.readouterr().err
