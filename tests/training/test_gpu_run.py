"""The GPU recipes on a CPU: stretches go on from one another, the parts make the adapter again, and it is measured."""

import json

import pytest
import torch
from recipe_files import recipe
from safetensors.torch import load_file
from tiny import tiny_model

import msa
from msa.errors import CheckpointError, TrainingDataError
from msa.model.adapter import apply_adapter
from msa.model.bundle import model_fingerprint
from msa.training import parts as parts_of_files
from msa.training.batches import FileSource
from msa.training.parameters import save_trained

pytestmark = pytest.mark.usefixtures("plain_log")


@pytest.fixture
def arguments(tmp_path):
    torch.manual_seed(0)
    model = tiny_model()
    strings = model.protocol.strings
    # rows to read need a reader's prompt that begins with the prefix
    model.lm.config.protocol = strings.to_config() | {"reader_prompt": strings.prefix + strings.reader_prompt}
    model = msa.MSAModel(model.lm, model.tokenizer)
    model.save_pretrained(tmp_path / "backbone")
    documents = [{"id": str(n), "text": f"Item {n} costs {7 * n} euros."} for n in range(16)]
    samples = [
        {"query": f"What does item {n} cost?", "positives": [str(n)], "answer": f"{7 * n} euros"} for n in range(16)
    ]
    splits = {"corpus": documents, "train": samples[:8], "validation": samples[8:12], "test": samples[12:]}
    for name, lines in splits.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--backbone", str(tmp_path / "backbone"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    return [
        *given,
        "--documents",
        "4",
        "--questions",
        "2",
        "--needle-documents",
        "4",
        "--needle-questions",
        "2",
        "--reading",
        "2",
        "--rank",
        "2",
        "--workers",
        "1",
    ]


def test_stretches_end_in_an_adapter_that_fits_the_backbone(tmp_path, arguments, monkeypatch):
    gpu_run = recipe("gpu_run")
    monkeypatch.setattr(parts_of_files, "PART_BYTES", 20_000)
    stretches = 1
    while not gpu_run.run(gpu_run.parse([*arguments, "--steps", *"11111", "--seconds", "1e-5"])):
        stretches += 1
        assert (tmp_path / "out" / "result" / "metrics.json").is_file(), "a stretch that stops leaves results too"
        assert stretches < 7
    assert stretches == 5, "each stretch stops after its first step, the last one at the end"

    result = tmp_path / "out" / "result"
    parts = sorted(result.glob("adapter.safetensors.part-*"))
    assert len(parts) > 1
    assert all(part.stat().st_size <= 20_000 for part in parts)
    gpu_run.join(result)
    assert (result / "adapter.safetensors").read_bytes() == (
        tmp_path / "out" / "run" / "adapter.safetensors"
    ).read_bytes()
    metrics = json.loads((result / "metrics.json").read_text())
    assert {"ids_exact", "answer_exact", "recall@1/mean", "recalled"} <= set(metrics)

    model = msa.load(tmp_path / "backbone", dtype="float32")
    before = model.fingerprint
    apply_adapter(model.lm, result / "adapter.safetensors", backbone=model_fingerprint(model.lm, routers=False))
    assert model.lm.config.routing_bias
    assert msa.MSAModel(model.lm, model.tokenizer).fingerprint != before


def test_a_run_goes_on_from_the_adapter_of_another(tmp_path, arguments):
    gpu_run = recipe("gpu_run")
    gpu_run.run(gpu_run.parse([*arguments, "--steps", *"11111"]))
    first = tmp_path / "first.safetensors"
    (tmp_path / "out" / "run" / "adapter.safetensors").rename(first)
    given = [*arguments[:4], "--out", str(tmp_path / "second"), *arguments[6:], "--start", str(first)]
    args = gpu_run.parse([*given, "--steps", *"11111"])
    stretch = gpu_run.prepared(args, gpu_run.config(args, [1] * 5, 1.0))
    stretch.batches.close()
    settings = stretch.trainer.config.lora
    copy = tmp_path / "copy.safetensors"
    save_trained(stretch.trainer.model.lm, copy, lora_scale=settings.alpha / settings.rank, metadata={})
    assert load_file(copy).keys() == (expected := load_file(first)).keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(copy).items())

    other = gpu_run.parse([*given, "--rank", "3", "--steps", *"11111"])
    with pytest.raises(CheckpointError, match=r"does not fit: .* is \[2, .*and \[\d.* here; use the rank"):
        gpu_run.prepared(other, gpu_run.config(other, [1] * 5, 1.0))
    absent = gpu_run.parse([*given[:-1], str(tmp_path / "absent.safetensors"), "--steps", *"11111"])
    with pytest.raises(CheckpointError, match="no such adapter file"):
        gpu_run.prepared(absent, gpu_run.config(absent, [1] * 5, 1.0))


def test_a_later_plan_goes_on_with_larger_memories_and_with_chains_alone(tmp_path, arguments):
    gpu_run = recipe("gpu_run")
    gpu_run.run(gpu_run.parse([*arguments, "--steps", *"11111"]))
    first = tmp_path / "first.safetensors"
    (tmp_path / "out" / "run" / "adapter.safetensors").rename(first)
    given = [*arguments[:4], "--out", str(tmp_path / "later"), *arguments[6:], "--start", str(first), "--plan", "later"]
    with pytest.raises(TrainingDataError, match="no question has 2 retrieval steps; 'interleave chains' needs some"):
        gpu_run.run(gpu_run.parse([*given, "--steps", *"111"]))
    for split, (one, other) in {"train": ("1", "2"), "validation": ("8", "9")}.items():
        chain = {"query": f"After {one}?", "positives": [one, other], "hops": [[one], [other]], "answer": "7 euros"}
        with (tmp_path / f"{split}.jsonl").open("a") as file:
            file.write(json.dumps(chain) + "\n")
    args = gpu_run.parse([*given, "--steps", *"111"])
    assert gpu_run.run(args)
    trained, old = load_file(tmp_path / "later" / "run" / "adapter.safetensors"), load_file(first)
    assert trained.keys() == old.keys()
    assert any(not torch.equal(tensor, old[name]) for name, tensor in trained.items())
    settings = gpu_run.config(args, [1] * 3, 1.0)
    assert [phase.files.documents for phase in settings.phases] == [105, 820, 4]
    training, held_out = gpu_run.read_sources(settings, args.data, tiny_model().protocol)
    for sources in (training, held_out):
        assert [len(source.training_set.samples) for source in sources[1:]] == [len(sources[0].training_set.samples), 1]


def test_steps_are_planned_from_measured_times(tmp_path, arguments, monkeypatch):
    gpu_run = recipe("gpu_run")
    mined = []
    take = FileSource.take_snapshot
    monkeypatch.setattr(
        FileSource, "take_snapshot", lambda self, *given, **named: mined.append(given[3]) or take(self, *given, **named)
    )
    for _ in range(2):  # the second does not go on from the first
        gpu_run.measure(gpu_run.parse([*arguments, "--measure", "--measured-steps", "2"]))
    assert mined == [range(2)] * 2, "negatives are mined once in each phase that asks for them, for its own steps"
    times = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert set(times) == {stage.name for stage in gpu_run.PHASES}
    assert all(seconds > 0 for seconds in times.values())
    shares = {stage.name: stage.share for stage in gpu_run.PHASES}
    steps = gpu_run.planned_steps(dict.fromkeys(times, 0.5), 100.0, shares)
    assert 0.8 * 100 <= sum(steps) * 0.5 <= 100


def test_held_out_documents_are_no_training_documents(arguments):
    gpu_run = recipe("gpu_run")
    args = gpu_run.parse([*arguments, "--steps", *"11111"])
    training, held_out = gpu_run.read_sources(gpu_run.config(args, [1] * 5, 1.0), args.data, tiny_model().protocol)
    assert len(training) == len(held_out) == 5
    assert set(training[-1].training_set.corpus) == {str(n) for n in range(8)}
    assert [sample.positives for sample in held_out[-1].training_set.samples] == [("8",), ("9",), ("10",), ("11",)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--backbone and --data are needed"),
        (["--backbone", "b", "--data", "d"], "give --steps, or measure them first"),
        (
            ["--backbone", "b", "--data", "d", "--measure", "--measured-steps", "1"],
            "--measured-steps must be 2 or more",
        ),
        (
            ["--backbone", "b", "--data", "d", "--plan", "later", "--steps", "1", "2"],
            "--steps needs 3 numbers: SFT 8K, SFT 64K, interleave chains",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path, capsys, given, message):
    with pytest.raises(SystemExit) as stop:
        recipe("gpu_run").parse(["--out", str(tmp_path), *given])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_parts_are_joined_only_if_all_are_there(tmp_path, monkeypatch):
    gpu_run = recipe("gpu_run")
    monkeypatch.setattr(parts_of_files, "PART_BYTES", 10)
    file, parts = tmp_path / "file", tmp_path / "parts"
    with pytest.raises(ValueError, match="expected numbered parts in .*parts, found none"):
        gpu_run.join(parts)
    file.write_bytes(b"x" * 35)
    assert len(gpu_run.cut(file, parts)) == 4
    file.write_bytes(b"y" * 25)  # smaller than before: no part of the earlier one may stay
    assert len(gpu_run.cut(file, parts)) == 3
    assert [path.read_bytes() for path in gpu_run.join(parts)] == [b"y" * 25]
    (parts / "file.part-001").unlink()
    with pytest.raises(ValueError, match=r"a part of file is missing .*: file\.part-001"):
        gpu_run.join(parts)
    (parts / "file.part-001").write_bytes(b"y" * 9 + b"x")
    with pytest.raises(ValueError, match="do not belong together"):
        gpu_run.join(parts)
    (parts / "file.part-002").unlink()
    with pytest.raises(ValueError, match=r"a part of file is missing .*: file\.part-001|file\.part-002"):
        gpu_run.join(parts)
    (parts / "file.parts.json").unlink()
    with pytest.raises(ValueError, match="were not all written"):
        gpu_run.join(parts)


@pytest.fixture
def evaluated(tmp_path, arguments):
    """Arguments of gpu_evaluate.py: an adapter, and questions that other retrievers answer rightly and wrongly."""
    gpu_run = recipe("gpu_run")
    settings = gpu_run.config(gpu_run.parse([*arguments, "--steps", *"11111"]), [1] * 5, 1.0)
    model = msa.load(tmp_path / "backbone", dtype="float32")
    backbone = model_fingerprint(model.lm, routers=False)
    model.lm.add_routing_bias(2.0)
    (tmp_path / "out" / "run").mkdir(parents=True)
    gpu_run.export(model, settings, backbone, tmp_path / "out" / "result")
    rows = [
        {
            "query": f"What does item {n} cost?",
            "positives": [str(n)],
            "answer": f"{7 * n} euros" if n % 2 else None,
            "source": f"shop/{n % 2}" if n < 14 else "lone",
            "bm25": [str(n), "0", "1"],
            "minilm": ["0", "1", "2", "3", str(n)],
        }
        for n in range(10, 16)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapter = tmp_path / "out" / "run" / "adapter.safetensors"
    given = ["--backbone", str(tmp_path / "backbone"), "--data", str(tmp_path), "--tokens", "4", "--rows", "2"]
    given += ["--questions", str(tmp_path / "questions.jsonl"), "--out", str(tmp_path / "results.json")]
    return [*given, "--adapter", f"start={adapter}", "--adapter", f"trained={adapter}"]


def test_an_adapter_is_evaluated_beside_other_retrievers(tmp_path, evaluated):
    gpu_evaluate = recipe("gpu_evaluate")
    gpu_evaluate.evaluate(gpu_evaluate.parse(evaluated))
    results = json.loads((tmp_path / "results.json").read_text())
    assert not [name for name, part in results.items() if "failed" in part]
    bm25, minilm = results["recall/bm25"], results["recall/minilm"]
    assert set(bm25) == {"all", "shop", "shop/0", "shop/1", "lone"}
    assert bm25["all"] == {"questions": 6, "recall@1": 1.0, "recall@5": 1.0, "recall@16": 1.0}
    assert minilm["shop"] == {"questions": 4, "recall@1": 0.0, "recall@5": 1.0, "recall@16": 1.0}
    assert results["recall/trained"] == results["recall/start"]
    assert results["recall/trained"]["all"]["recall@16"] == 1.0, "16 documents are the whole corpus"
    answers = results["answers/trained reads 3 routed"]
    assert answers["all"]["questions"] == 3, "questions that have an answer"
    assert all(example["given"] for example in answers["examples"])
    assert len(answers["right"]) == 3
    ours = "answers/trained reads 3 routed"
    others = {name for name in results if name.startswith("answers/")} - {ours}
    assert set(results["paired"]) == {f"{ours} against {name}" for name in others}
    for name in others:
        pairs = [*zip(answers["right"], results[name]["right"], strict=True)]
        found = results["paired"][f"{ours} against {name}"]
        assert (found["first alone"], found["second alone"]) == (pairs.count((1, 0)), pairs.count((0, 1)))
    ids = results["ids"]
    assert ids["none, right document among the best 16"]["questions"] == 3
    for text in [*ids["existing, examples"], *ids["selected, examples"]]:
        assert not text.startswith("[") or int(text[1:].partition("]")[0]) in range(1, 17)


def test_recall_is_what_the_memory_finds(tmp_path, evaluated):
    """The same corpus, model and questions through msa.Memory, one question at a time."""
    gpu_evaluate = recipe("gpu_evaluate")
    args = gpu_evaluate.parse(evaluated)
    texts = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    asked = gpu_evaluate.read_questions(args.questions)
    found = gpu_evaluate.trained(args.backbone, args.adapter[-1][1], texts, asked, 200)
    model = gpu_evaluate.load(args.backbone, args.adapter[-1][1])
    with msa.Memory.open(tmp_path / "memory", model=model) as memory:
        memory.add([{"id": str(n), "text": text} for n, text in enumerate(texts)])
        for each, best in zip(asked, found.best, strict=True):
            hits = memory.search(each.question.question, top_k=16)
            scores = {int(hit.id): hit.score for hit in hits}
            assert sorted(best) == sorted(scores)
            # in bfloat16, and in batches of other sizes, near ties change places
            ranked = [scores[index] for index in best]
            assert ranked == pytest.approx(sorted(ranked, reverse=True), abs=0.02)


def test_parts_there_is_no_time_for_are_named(tmp_path, evaluated):
    gpu_evaluate = recipe("gpu_evaluate")
    gpu_evaluate.evaluate(gpu_evaluate.parse([*evaluated, "--seconds", "-1"]))
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"recall/bm25", "recall/trained", "answers/plain reads 1 of bm25"} <= set(results["left out"])
    assert set(results) == {"device", "left out"}


def test_a_part_that_fails_leaves_the_others(tmp_path, evaluated):
    gpu_evaluate = recipe("gpu_evaluate")
    (tmp_path / "broken").write_bytes(b"no adapter")
    gpu_evaluate.evaluate(gpu_evaluate.parse([*evaluated, "--adapter", f"broken={tmp_path / 'broken'}"]))
    results = json.loads((tmp_path / "results.json").read_text())
    assert "not a readable safetensors file" in results["recall/broken"]["failed"]
    assert "recall@1" in results["recall/trained"]["all"]
    assert "contains" in results["answers/plain reads 3 of bm25"]["all"]
    assert not [name for name in results if name.startswith("answers/trained")], "of the last adapter or of none"


def test_questions_that_lack_a_field_and_adapters_without_a_name_are_refused(tmp_path, evaluated, capsys):
    gpu_evaluate = recipe("gpu_evaluate")
    (tmp_path / "bad.jsonl").write_text('{"query": "Who?", "source": "a", "bm25": ["1"], "minilm": ["1"]}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: expected positives, found query, source"):
        gpu_evaluate.read_questions(tmp_path / "bad.jsonl")
    with pytest.raises(SystemExit):
        gpu_evaluate.parse([*evaluated, "--adapter", "nameless"])
    assert "expected NAME=FILE, found 'nameless'" in capsys.readouterr().err
