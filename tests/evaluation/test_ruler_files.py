"""RULER's files: ours, NVIDIA's of two years and lm-eval's are read; a broken line is named."""

import json
import re

import pytest

from msa.errors import EvaluationError
from msa.evaluation.ruler import (
    TASKS,
    SampleMaker,
    read_by_size,
    read_folder,
    read_samples,
    sample_sets,
    write_samples,
)

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic numbers for ad hoc-dump truck is: 1234567."
PROMPT = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    f"number afterwards.\n{NOISE}\n{NEEDLE}\n{NOISE}\nWhat is the special magic number for ad hoc-dump truck mentioned "
    "in the provided text?"
)
PREFIX = " The special magic number for ad hoc-dump truck mentioned in the provided text is"
VT = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
VT_ASK = "\nQuestion: Find all variables that are assigned the value {} in the text above."
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, 2 variables are {} the value {}, they "
    "are: "
)


def count(text):
    return len(re.findall(r"\w+|[^\w\s]", text))


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_what_is_written_is_read_again(tmp_path):
    made = [one for task in TASKS for one in SampleMaker(task, 768, count).samples(2)]
    paths = write_samples(tmp_path, made, count)
    assert paths == [tmp_path / task / "validation.jsonl" for task in TASKS]
    assert not list(tmp_path.rglob("*.part"))
    again = list(read_folder(tmp_path))
    for old, new in zip(made, again, strict=True):
        assert new.input == old.input
        for name in ("task", "index", "context", "question", "answer_prefix", "answers", "example", "length"):
            assert getattr(new, name) == getattr(old, name), name


def test_files_are_as_long_as_this_tokenizer_counts_them(tmp_path):
    """Two lengths in one folder, as lm-eval names them, and one without: each by the longest of its samples."""
    made = {
        size: [SampleMaker("niah_single_1", size, count).sample(index) for index in range(3)] for size in (400, 768)
    }
    plain = [SampleMaker("vt", 600, count).sample(0)]

    def record(sample, **more):
        return {"input": sample.input, "outputs": list(sample.answers), "answer_prefix": sample.answer_prefix, **more}

    records = [record(one, max_length=size, length=7) for size in (768, 400) for one in made[size]]
    write(tmp_path / "niah_single_1" / "validation.jsonl", *records)
    write(tmp_path / "vt" / "validation.jsonl", *map(record, plain))
    found = [(tokens, [one.context for one in samples]) for tokens, samples in list(read_by_size(tmp_path, count))]
    wanted = sorted(
        [(max(one.length for one in each), [one.context for one in each]) for each in (plain, *made.values())]
    )
    assert found == wanted
    assert wanted[0][0] <= 400 < wanted[1][0] <= 600 < wanted[2][0] <= 768
    by_words = dict(read_by_size(tmp_path, lambda text: len(text.split())))
    assert max(by_words) < wanted[2][0]


def test_the_first_samples_of_each_task_and_length_are_read_and_no_other_task_is_looked_at(tmp_path):
    made = {size: list(SampleMaker("niah_single_1", size, count).samples(3)) for size in (400, 768)}
    records = [
        {"input": one.input, "outputs": list(one.answers), "max_length": size}
        for index in range(3)
        for size in (400, 768)
        for one in [made[size][index]]
    ]
    write(tmp_path / "niah_single_1" / "validation.jsonl", *records)
    broken = tmp_path / "vt" / "validation.jsonl"
    broken.parent.mkdir()
    broken.write_text("{")
    tasks = ["niah_single_1", "niah_single_2"]
    whole = [(tokens, [one.index for one in samples]) for tokens, samples in read_by_size(tmp_path, count, tasks=tasks)]
    assert [indices for _, indices in whole] == [[0, 2, 4], [1, 3, 5]]
    first = read_by_size(tmp_path, count, tasks=tasks, num_samples=2)
    assert [(tokens, [one.index for one in samples]) for tokens, samples in first] == [
        (tokens, indices[:2]) for tokens, indices in whole
    ]
    assert list(read_by_size(tmp_path, count, tasks=["niah_single_2"])) == []
    with pytest.raises(EvaluationError, match="vt"):
        list(read_by_size(tmp_path, count))


def test_an_interrupted_writing_leaves_the_old_file(tmp_path):
    (path,) = write_samples(tmp_path, [SampleMaker("niah_single_1", 768, count).sample(0)], count)
    before = path.read_bytes()

    def samples():
        yield SampleMaker("niah_single_1", 768, count).sample(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, samples(), count)
    assert path.read_bytes() == before


def test_fields_are_rulers(tmp_path):
    (path,) = write_samples(tmp_path, [SampleMaker("niah_single_1", 768, count).sample(5)], count)
    record = json.loads(path.read_text())
    assert list(record) == [
        "index",
        "input",
        "outputs",
        "length",
        "length_w_model_temp",
        "answer_prefix",
        "token_position_answer",
    ]
    assert record["index"] == 5
    before = record["input"].split(record["outputs"][0])[0]
    assert record["token_position_answer"] == count(before)
    assert record["length"] == count(record["input"] + record["answer_prefix"]) + 128


@pytest.mark.parametrize(
    "record",
    [
        {"index": 433, "input": PROMPT, "outputs": ["1234567"], "length": 300, "answer_prefix": PREFIX},
        {"index": 0, "input": PROMPT + PREFIX, "outputs": ["1234567"], "length": 300},  # before 2025
        {"index": 0, "input": f"[INST] {PROMPT} [/INST]{PREFIX}", "outputs": ["1234567"], "length": 300},
        {"input": PROMPT, "outputs": ["1234567"], "length": 300, "max_length": 4096, "gen_prefix": PREFIX.strip()},
        {"index": 0, "input": " ".join(PROMPT.split()) + PREFIX, "outputs": ["1234567"], "length": 300},
    ],
    ids=["nvidia-2025", "nvidia-2024", "chat", "lm-eval", "one-line"],
)
def test_files_of_others(tmp_path, record):
    path = write(tmp_path / "niah_single_1" / "validation.jsonl", record, record)
    first, second = read_samples(path, "niah_single_1")
    assert (first.index, second.index) == (0, 1)
    assert first.context.split() == f"{NOISE}\n{NEEDLE}\n{NOISE}".split()
    assert first.question == "What is the special magic number for ad hoc-dump truck mentioned in the provided text?"
    assert (first.answer_prefix, first.length) == (PREFIX, 300)
    one, other = sample_sets([first, second], count, document_tokens=20)
    assert one.name != other.name
    (question,) = one.questions
    assert [name for name, text in one.documents.items() if NEEDLE in text] == list(question.positives)
    assert len(question.positives) == 1 < len(one.documents)


def test_variable_tracking_of_lm_eval(tmp_path):
    context = f"{NOISE}\n VAR AAAAA = 12345 {NOISE}\n VAR BBBBB = VAR AAAAA  {NOISE}\n"
    example = f"{VT}{NOISE} VAR CCC = 54321 VAR DDD = VAR CCC {NOISE}{VT_ASK.format(54321)}"
    example += VT_PREFIX.format("assgined", 54321) + " CCC DDD\n\n\n\n"
    for word in ("assgined", "assigned"):
        record = {
            "input": example + VT + context + VT_ASK.format(12345),
            "outputs": ["AAAAA", "BBBBB"],
            "gen_prefix": VT_PREFIX.format(word, 12345).strip(),
        }
        (sample,) = read_samples(write(tmp_path / "a.jsonl", record), "vt")
        assert sample.example == example
        assert "VAR CCC" not in sample.context
        assert [(needle.key, needle.value) for needle in sample.asked()] == [("AAAAA", "12345"), ("BBBBB", "VAR AAAAA")]
        record["input"] += VT_PREFIX.format(word, 12345)
        del record["gen_prefix"]
        (again,) = read_samples(write(tmp_path / "b.jsonl", record), "vt")
        assert again.answer_prefix.strip() == sample.answer_prefix.strip() != ""


GOOD = {"input": PROMPT, "outputs": ["1234567"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": ', "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "holds list; expected an object"),
        ("null", "holds NoneType"),
        (json.dumps({"outputs": ["1"]}), "no text under 'input'"),
        (json.dumps({**GOOD, "input": 5}), "no text under 'input'"),
        (json.dumps({"input": PROMPT}), "under 'outputs' None"),
        (json.dumps({**GOOD, "outputs": []}), r"under 'outputs' \[\]"),
        (json.dumps({**GOOD, "outputs": [1234567]}), r"under 'outputs' \[1234567\]"),
        (json.dumps({**GOOD, "outputs": [""]}), r"under 'outputs' \[''\]"),
        (json.dumps({**GOOD, "outputs": "1234567"}), "under 'outputs' '1234567'"),
        (json.dumps({**GOOD, "input": "Hello"}), "under 'input' does not hold .* is it a sample of niah_single_1?"),
        (json.dumps({**GOOD, "outputs": ["7654321"]}), "the answer '7654321', which no needle"),
        (json.dumps({**GOOD, "length": "300"}), "under 'length' '300'"),
        (json.dumps({**GOOD, "length": -3}), "under 'length' -3"),
        (json.dumps({**GOOD, "answer_prefix": 3}), "under 'answer_prefix' 3"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps(GOOD) + "\n\n" + line + "\n").encode("latin-1"))
    with pytest.raises(EvaluationError, match=message) as error:
        list(read_samples(path, "niah_single_1"))
    assert f"{path}, line 3" in str(error.value)


def test_a_deeply_nested_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("[" * 200_000)
    with pytest.raises(EvaluationError, match="line 1"):
        list(read_samples(path, "niah_single_1"))


def test_files_that_are_none(tmp_path):
    with pytest.raises(EvaluationError, match="cannot be read"):
        list(read_samples(tmp_path / "none.jsonl", "niah_single_1"))
    with pytest.raises(EvaluationError, match="holds no samples"):
        list(read_samples(write(tmp_path / "empty.jsonl"), "niah_single_1"))
    with pytest.raises(EvaluationError, match="holds no RULER task"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="found 'cwe'"):
        read_samples(tmp_path / "empty.jsonl", "cwe")
