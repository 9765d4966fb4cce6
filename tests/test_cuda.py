"""The same code on a CUDA device: answers, tiers, training and one NCCL rank, beside the same on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_training import Repeating, config, learner, phase, trainer

import msa
from msa.routing import Tiers
from msa.training.config import LoraConfig
from msa.training.data.needles import NeedleConfig, NeedleWorlds
from msa.training.log import read_log

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WORLD = NeedleWorlds(
    [f"{letter}{other}ing" for letter in "abcdefgh" for other in "klmnop"],
    [f"{letter}{other}one" for letter in "qrstuvwx" for other in "klmnop"],
    ["The grass is green.", "The sky is blue.", "A river ran past the old mill and on to the sea."],
).world(NeedleConfig(documents=200, questions=24, max_filler=60, hard_negatives=0.0), "cuda")
QUESTIONS = [sample.query for sample in WORLD.samples]
CLOSEST = Tiers(routing_keys="exact", content="ram")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A memory that was made on the CPU."""
    folder = tmp_path_factory.mktemp("cuda") / "memory"
    with msa.Memory.open(folder, msa.load("msa-tiny", device="cpu", dtype="float32")) as memory:
        memory.add([{"id": name, "text": text} for name, text in WORLD.corpus.items()])
    return folder


def asked(folder, device, dtype="float32", tiers=None):
    with msa.Memory.open(folder, msa.load("msa-tiny", device=device, dtype=dtype), tiers=tiers) as memory:
        hits = [[hit.id for hit in memory.search(question, top_k=5)] for question in QUESTIONS]
        return hits, memory.ask_many(QUESTIONS, max_new_tokens=96)


@pytest.fixture(scope="module")
def on_cpu(folder):
    return asked(folder, "cpu")


def test_answers_are_those_of_the_cpu(folder, on_cpu):
    hits, answers = asked(folder, "cuda")
    assert hits == on_cpu[0]
    # float sums in another order can tip a close call between two tokens; more than one in two dozen is a mistake
    different = [a.text for a, b in zip(answers, on_cpu[1], strict=True) if a.text != b.text]
    assert len(different) <= 1, different
    read = [[source.id for source in answer.sources] for answer in answers]
    assert sum(a != [s.id for s in b.sources] for a, b in zip(read, on_cpu[1], strict=True)) <= 1


@pytest.mark.parametrize("keys", ["exact", "half", "int8", "mapped"])
@pytest.mark.parametrize("content", ["mapped", "ram", "pinned"])
def test_every_tier_selects_the_same_documents(folder, on_cpu, keys, content):
    hits, answers = asked(folder, "cuda", tiers=Tiers(routing_keys=keys, content=content))
    same = [len(set(a) & set(b)) / 5 for a, b in zip(hits, on_cpu[0], strict=True)]
    assert sum(same) / len(same) >= 0.97
    assert sum(a.text == b.text for a, b in zip(answers, on_cpu[1], strict=True)) >= len(answers) - 3


def test_bfloat16_answers_most_questions_alike(folder, on_cpu):
    _, answers = asked(folder, "cuda", dtype="bfloat16", tiers=CLOSEST)
    assert sum(a.text == b.text for a, b in zip(answers, on_cpu[1], strict=True)) >= len(answers) * 0.8


def test_a_memory_encoded_on_the_device_is_read_on_the_cpu(tmp_path, on_cpu):
    with msa.Memory.open(tmp_path / "m", msa.load("msa-tiny", device="cuda", dtype="float32")) as memory:
        memory.add([{"id": name, "text": text} for name, text in WORLD.corpus.items()])
    hits, _ = asked(tmp_path / "m", "cpu")
    same = [len(set(a) & set(b)) / 5 for a, b in zip(hits, on_cpu[0], strict=True)]
    assert sum(same) / len(same) >= 0.97


@pytest.fixture
def trained():
    """Runs a trainer; what accelerate remembers of a run must not reach the next one."""

    def run(*given, **named):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert trainer(*given, **named).run()

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


def losses_of(run):
    return [entry["loss"] for entry in read_log(Path(run) / "log.jsonl") if "loss" in entry]


def test_training_has_the_losses_of_the_cpu(tmp_path, trained):
    found = {}
    for device in ("cpu", "cuda"):
        model = learner()
        model.lm.to(device)
        trained(model, config(tmp_path / device))
        found[device] = losses_of(tmp_path / device)
    assert len(found["cuda"]) > 3
    assert found["cuda"][:4] == pytest.approx(found["cpu"][:4], rel=2e-2)


def test_merged_lora_has_the_losses_of_pefts(tmp_path, trained):
    found = {}
    for merged in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        model = learner()
        model.lm.to("cuda")
        lora = LoraConfig(rank=4, alpha=8, merged=merged)
        trained(model, config(tmp_path / str(merged), trainable="lora", lora=lora, precision="bf16"))
        found[merged] = losses_of(tmp_path / str(merged))
    assert len(found[True]) > 3
    assert found[True][:4] == pytest.approx(found[False][:4], rel=3e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_16_bits_stays_finite(tmp_path, precision, trained):
    model = learner()
    model.lm.to("cuda")
    trained(model, config(tmp_path / "run", phase(steps=30), precision=precision), kind=Repeating)
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < losses[0]


def test_one_rank_of_nccl_asks_as_a_single_process_does(folder, on_cpu):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"]
    command += ["msa.cli.main", "ask", str(folder), QUESTIONS[0], "--model", "msa-tiny", "--device", "cuda"]
    done = subprocess.run([*command, "--dtype", "float32"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert on_cpu[1][0].text in done.stdout
