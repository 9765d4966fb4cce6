"""The configuration of a run: read from YAML with one clear error, and what it says about every step."""

import dataclasses
import math

import pytest
import yaml

from msa.errors import TrainingError
from msa.training.config import FileData, LoraConfig, Phase, TrainConfig
from msa.training.data.copies import CopyConfig
from msa.training.data.needles import NeedleConfig
from msa.training.data.recalls import RecallConfig
from msa.training.data.variables import VariableConfig
from msa.training.objective import LossWeights

FULL = TrainConfig(
    out="runs/a",
    model="some/folder",
    phases=(
        Phase(
            name="first",
            steps=30,
            learning_rate=1e-3,
            weights=LossWeights(ids=0.1, answer=0.2, routing=1.0, closing_id=0.5),
            needles=NeedleConfig(documents=5, key_kinds=("word",), two_hop=0.0),
            id_digits=1,
            repeat_ids=True,
            chunk_size=8,
        ),
        Phase(
            name="second",
            steps=70,
            learning_rate=2e-4,
            files=FileData(
                paths=("a.jsonl", "b"), corpus=("c.jsonl",), held_out_paths=("d",), documents=9, skip_bad=True
            ),
            final_share=0.5,
        ),
    ),
    seed=3,
    haystack=("text.txt",),
    micro_batches=4,
    precision="bf16",
    trainable="lora",
    lora=LoraConfig(rank=4, alpha=8, layers=(1, 2), targets=("q_proj",)),
    checkpoint_documents=True,
    warmup_steps=10,
    betas=(0.8, 0.9),
    stop_after_minutes=1.5,
)
SMALL = {"out": "runs/b", "phases": [{"name": "only", "steps": 5, "learning_rate": 1e-3, "needles": {}}]}


def read(tmp_path, fields):
    path = tmp_path / "run.yaml"
    path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
    return TrainConfig.from_yaml(path)


def refused(tmp_path, fields):
    with pytest.raises(TrainingError) as caught:
        read(tmp_path, fields)
    message = str(caught.value)
    assert str(tmp_path / "run.yaml") in message
    return message


def changed(**fields):
    return {**SMALL, **fields}


def changed_phase(**fields):
    return changed(phases=[{**SMALL["phases"][0], **fields}])


# YAML


def test_a_configuration_survives_yaml(tmp_path):
    assert read(tmp_path, FULL.to_yaml()) == FULL
    assert list(yaml.safe_load(FULL.to_yaml())) == [field.name for field in dataclasses.fields(TrainConfig)]


def test_what_is_left_out_is_as_documented(tmp_path):
    config = read(tmp_path, SMALL)
    [only] = config.phases
    assert config == TrainConfig(out="runs/b", phases=(only,))
    assert only == Phase(name="only", steps=5, learning_rate=1e-3, needles=NeedleConfig())


@pytest.mark.parametrize(("written", "value"), [("1e-4", 1e-4), ("'0.5'", 0.5), ("1", 1.0), ("2.5E-3", 2.5e-3)])
def test_numbers_that_yaml_takes_for_words_are_numbers(tmp_path, written, value):
    text = f"out: o\nphases:\n- {{name: a, steps: 1, learning_rate: {written}, needles: {{}}}}\n"
    [phase] = read(tmp_path, text).phases
    assert phase.learning_rate == value
    assert isinstance(phase.learning_rate, float)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (changed(warmup=3), "unknown key(s) warmup; known are out, model, phases"),
        (changed_phase(rate=3), "phases[0]: unknown key(s) rate; known are name, steps"),
        (changed_phase(weights={"ids": 1, "idz": 2}), "phases[0]: weights: unknown key(s) idz"),
        (changed_phase(needles={"twohop": 1}), "phases[0]: needles: unknown key(s) twohop"),
        (changed(lora={"r": 3}), "lora: unknown key(s) r"),
        (changed(seed="many"), "seed: expected int, found 'many'"),
        (changed(seed=1.5), "seed: expected int, found 1.5"),
        (changed(seed=True), "seed: expected int, found True"),
        (changed(freeze_documents="yes please"), "freeze_documents: expected bool, found 'yes please'"),
        (changed(freeze_documents=1), "freeze_documents: expected bool, found 1"),
        (changed(weight_decay="much"), "weight_decay: expected float, found 'much'"),
        (changed(weight_decay=True), "weight_decay: expected float, found True"),
        (changed(model=None), "model: expected str, found None"),
        (changed(haystack="text.txt"), "haystack: expected a list, found 'text.txt'"),
        (changed(haystack=["a", 3]), "haystack[1]: expected str, found 3"),
        (changed(betas=[0.9]), "betas: expected 2 values, found 1"),
        (changed(lora=[1]), "lora: expected keys and values, found [1]"),
        (changed(phases=[]), "a training run needs at least one phase"),
        ({"out": "o"}, "a training run needs at least one phase"),
        ({"phases": SMALL["phases"]}, "'out'"),
        (changed(phases=[{"name": "a", "steps": 1, "needles": {}}]), "'learning_rate'"),
        (changed_phase(needles=None), "phase 'only' needs one of needles, variables and files, or copies, or both"),
        (
            changed_phase(files={"paths": ["a"]}),
            "phase 'only' needs one of needles, variables and files, or copies, or both",
        ),
        (changed_phase(steps=0), "phase 'only': steps must be a number 1 or more, got 0"),
        (changed_phase(final_share=1.5), "final_share"),
        (changed_phase(id_digits=0), "id_digits"),
        (changed_phase(id_digits=1), "documents need longer ids than id_digits 1"),
        (changed(routing_bias=0.0), "routing_bias must be a number above 0, got 0.0"),
        (changed_phase(needles={"questions": 0}), "phase 'only': questions must be a number 1 or more, got 0"),
        (changed_phase(learning_rate=math.nan), "phase 'only': learning_rate must be a number above 0, got nan"),
        (changed_phase(weights={"answer": -1}), "phases[0]: weights: answer must be a number 0 or more, got -1.0"),
        (changed_phase(needles={"alike": 2}), "phases[0]: needles: alike must be a number in 0..1, got 2.0"),
        (changed_phase(needles={"min_filler": 9, "max_filler": 8}), "min_filler must be at most max_filler"),
        (changed_phase(needles={"two_hop": 0.6, "unanswerable": 0.6}), "at most 1 together, got 0.6 and 0.6"),
        (changed_phase(needles={"key_kinds": ["wrod"]}), "key_kinds must be of word, number, uuid, got wrod"),
        (changed_phase(needles={"value_kinds": []}), "value_kinds must be of word, number, uuid, got none"),
        (changed(betas=[0.9, 1.0]), "betas must be 0 or more and below 1, got (0.9, 1.0)"),
        (changed(seed=2**32), "seed must be at most 4294967295"),
        (changed(trainable="some"), "trainable must be one of all, routers, lora, got 'some'"),
        (changed(precision="fp8"), "precision must be one of no, bf16, fp16, got 'fp8'"),
        (changed_phase(past_documents=5, needles=None, files={"paths": ["a"]}), "past_documents are for needles and"),
        (changed(precision="fp16", router_rate=2.0), "fp16 trains with one optimiser"),
        (changed(precision="fp16", optimizer="muon"), "fp16 trains with one optimiser"),
        (
            changed_phase(weights={"closing_id": 0.5}) | {"freeze_documents": True},
            "closing_id trains the document side: set its weight to 0",
        ),
        (changed(sharded=True, precision="fp16"), "sharded training is in bf16 or float32 and by adamw"),
        (changed(sharded=True, optimizer="muon"), "sharded training is in bf16 or float32 and by adamw"),
        (changed(micro_batches=0), "micro_batches must be a number 1 or more, got 0"),
        (changed(keep_checkpoints=0), "keep_checkpoints must be a number 1 or more, got 0"),
        ("- a list", "expected keys and values"),
        ("", "expected keys and values, found None"),
        ("out: [", "cannot read the configuration"),
    ],
)
def test_what_does_not_fit_is_one_error_that_names_the_key(tmp_path, fields, named):
    assert named in refused(tmp_path, fields)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TrainingError, match="cannot read the configuration .*gone.yaml"):
        TrainConfig.from_yaml(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TrainingError, match="cannot read the configuration .*binary.yaml"):
        TrainConfig.from_yaml(tmp_path / "binary.yaml")


# numbers

CONFIGS = (
    TrainConfig(out="o", phases=FULL.phases, router_rate=1.0),
    *FULL.phases,
    FileData(paths=("a",)),
    LoraConfig(),
    LossWeights(),
    NeedleConfig(),
    VariableConfig(),
    CopyConfig(),
    RecallConfig(),
)
NUMBERS = [
    (config, field.name)
    for config in CONFIGS
    for field in dataclasses.fields(config)
    if type(getattr(config, field.name)) in (int, float)
]
# what may be 0 in every configuration; of all others 0 is refused, here or with what depends on them
FROM_ZERO = {
    "seed", "warmup_steps", "decay_steps", "min_learning_rate", "weight_decay", "refresh_every", "stop_after_minutes",
    "full_ids", "chunk_size", "final_share", "second_tries", "past_documents", "mined_negatives", "min_hops",
    "min_filler", "max_filler", "value_digits", "hard_negatives", "invented", "alike", "plain_documents",
    "distractors", "two_hop", "unanswerable", "hops", "few_tokens",
    *(field.name for field in dataclasses.fields(LossWeights) if field.name != "teacher_temperature"),
}  # fmt: skip
SHARES = {
    "min_learning_rate", "full_ids", "final_share", "second_tries", "hard_negatives", "invented", "alike",
    "plain_documents", "distractors", "two_hop", "unanswerable", "few_tokens",
}  # fmt: skip


@pytest.mark.parametrize(("config", "name"), NUMBERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_number_is_finite_and_in_its_range(config, name):
    wrong = [math.nan, math.inf, -1] + ([] if name in FROM_ZERO else [0]) + ([1.5] if name in SHARES else [])
    for value in wrong:
        if isinstance(config, NeedleConfig) and (name, value) == ("questions", 0):
            continue  # a memory to encode needs none
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(config, **{name: value})
    for value in [0] * (name in FROM_ZERO) + [1.0] * (name in SHARES - {"two_hop", "unanswerable"}):
        assert getattr(dataclasses.replace(config, **{name: value}), name) == value


# steps


def test_every_step_belongs_to_its_phase():
    assert FULL.total_steps == 100
    assert [FULL.phase_at(step)[0] for step in (0, 29, 30, 99, 100)] == [0, 0, 1, 1, 1]
    assert FULL.phase_at(30)[1].name == "second"


def test_the_learning_rate_warms_up_and_then_falls_along_one_cosine():
    def cosine(step, least=0.1):
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * step / 100))

    rates = [FULL.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3 / 10)
    assert rates[4] == pytest.approx(1e-3 * 0.5 * cosine(4))
    assert rates[9] == pytest.approx(1e-3 * cosine(9))
    assert rates[20] == pytest.approx(1e-3 * cosine(20))
    assert rates[29] == pytest.approx(1e-3 * cosine(29))
    assert rates[30] == pytest.approx(2e-4 * cosine(30))  # another peak, the same cosine
    assert rates[50] == pytest.approx(2e-4 * 0.55)
    assert rates[99] == pytest.approx(2e-4 * 0.1, rel=0.01)
    assert rates[10:30] == sorted(rates[10:30], reverse=True)


def test_without_warm_up_the_first_step_is_at_the_peak():
    config = dataclasses.replace(FULL, warmup_steps=0, min_learning_rate=1.0)
    assert {config.learning_rate_at(step) for step in range(30)} == {1e-3}


def test_the_rate_decays_over_its_own_number_of_steps(tmp_path):
    phases = (Phase(name="all", steps=100, learning_rate=1.0, needles=NeedleConfig()),)
    settings = {"out": str(tmp_path), "phases": phases, "warmup_steps": 1, "min_learning_rate": 0.1}
    whole, short, long = (TrainConfig(**settings, decay_steps=steps) for steps in (0, 50, 200))
    assert whole.learning_rate_at(99) == pytest.approx(0.1, abs=1e-3)
    assert whole.learning_rate_at(50) == pytest.approx(0.55)
    assert short.learning_rate_at(25) == pytest.approx(0.55)
    assert short.learning_rate_at(50) == short.learning_rate_at(99) == pytest.approx(0.1)
    assert long.learning_rate_at(99) > 0.5
