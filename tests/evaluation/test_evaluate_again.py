"""``msa eval`` with more, fewer or other questions than before, into the same folder: what is kept, asked and refused."""

import json
import shutil

import pytest
from eval_command import KEYS, NEEDLE, QUESTION, run

from msa.cli.main import main
from msa.evaluation.alternatives import registry
from msa.evaluation.alternatives.memn2n import MemN2N, MemN2NConfig
from msa.training.data.needles import NOT_IN_MEMORY


def stored(folder):
    return json.loads((folder / "results.json").read_text())


def records(folder):
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [line for line in lines if "question_id" in line]


def samples_of(folder):
    return {
        (entry["size"], task["task"]): task["samples"]
        for entry in stored(folder)["results"]["scores"]
        for task in entry["tasks"]
    }


@pytest.fixture
def question_set(tmp_path):
    """Three needles, a question for each."""
    folder = tmp_path / "questions"
    folder.mkdir()
    documents = [{"id": key, "text": f"Here we go. {NEEDLE.format(key=key, value=v)}"} for key, v in KEYS.items()]
    questions = [
        {"id": key, "question": QUESTION.format(key=key), "answers": [value], "ids": [key]}
        for key, value in KEYS.items()
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    return folder


@pytest.fixture(scope="module")
def ruler_files(tmp_path_factory):
    """Samples of two tasks in two lengths, three of each, as files in RULER's layout."""
    whole = tmp_path_factory.mktemp("ruler") / "both"
    made = whole.with_name("made")
    common = ["eval", "ruler", "--model", "msa-tiny", "--tasks", "niah_single_1", "vt", "--samples", "3"]
    given = ["--ways", "rag-bm25@1", "--write", str(made), "--out", str(made.with_name("out"))]
    assert main([*common, "--sizes", "1000", "1400", *given]) == 0
    for task in ("niah_single_1", "vt"):
        file = whole / task / "validation.jsonl"
        file.parent.mkdir(parents=True)
        lines = []
        for size in (1000, 1400):
            for line in (made / str(size) / task / "validation.jsonl").read_text().splitlines():
                lines.append(json.dumps({**json.loads(line), "max_length": size}))
        file.write_text("\n".join(lines) + "\n")
    return whole


def test_rulers_samples_are_added_to_those_there_are_and_fewer_later_are_reported_alone(tmp_path, capsys):
    out = tmp_path / "run"
    common = ["eval", "ruler", "--model", "msa-tiny", "--tasks", "niah_single_2", "--sizes", "800", "--out", out]
    assert run(capsys, *common, "--samples", 2)[0] == 0
    before = (out / "records.jsonl").read_bytes()
    assert run(capsys, *common, "--samples", 4)[0] == 0
    assert (out / "records.jsonl").read_bytes().startswith(before)
    assert [record["question_id"] for record in records(out)] == [f"niah_single_2-800-{n:04d}" for n in range(4)]
    assert (samples_of(out), stored(out)["settings"]["samples"]) == ({(800, "niah_single_2"): 4}, 4)
    before = (out / "records.jsonl").read_bytes()
    assert run(capsys, *common, "--samples", 3)[0] == 0
    assert (samples_of(out), stored(out)["settings"]["samples"]) == ({(800, "niah_single_2"): 3}, 3)
    assert (out / "records.jsonl").read_bytes() == before
    code, _, error = run(capsys, *common, "--samples", 3, "--seed", 7)
    assert (code, "seed is 42 there, 7 now" in error) == (1, True), error


def test_a_network_is_trained_once_for_all_samples_and_for_runs_that_go_on(tmp_path, capsys, monkeypatch):
    trained = []

    def train(worlds, training):
        trained.append(MemN2N(MemN2NConfig(size=4), [NOT_IN_MEMORY]))
        return trained[-1]

    monkeypatch.setattr(registry, "train_memn2n", train)
    common = ["eval", "ruler", "--model", "msa-tiny", "--tasks", "niah_single_1", "--sizes", "800"]
    for samples in (2, 3):
        assert run(capsys, *common, "--ways", "memn2n", "--samples", samples, "--out", tmp_path / "run")[0] == 0
    assert (len(trained), len(records(tmp_path / "run"))) == (1, 3)
    assert (tmp_path / "run" / "memn2n.safetensors").is_file()


def test_files_give_the_first_samples_of_each_task_and_size_and_go_on_with_more(ruler_files, tmp_path, capsys):
    out = tmp_path / "run"
    common = ["eval", "ruler", "--model", "msa-tiny", "--ways", "rag-bm25@1", "--read", ruler_files, "--out", out]
    common += ["--tasks", "niah_single_1", "vt"]
    assert run(capsys, *common, "--samples", 1)[0] == 0
    settings = stored(out)["settings"]
    assert [sorted(samples_of(out).values()), settings["samples"]] == [[1] * 4, 1]
    assert sorted({size for size, _ in samples_of(out)}) == settings["sizes"]
    assert settings["seed"] is settings["haystack"] is None
    before = (out / "records.jsonl").read_bytes()
    assert run(capsys, *common)[0] == 0
    assert (out / "records.jsonl").read_bytes().startswith(before)
    assert (sorted(samples_of(out).values()), stored(out)["settings"]["samples"]) == ([3] * 4, None)


def test_sizes_of_files_are_those_of_the_tasks_that_are_asked_for(ruler_files, tmp_path, capsys):
    longer = tmp_path / "longer"
    shutil.copytree(ruler_files, longer)
    sizes = []
    for folder in (ruler_files, longer):
        out = tmp_path / f"{folder.name}-run"
        common = ["eval", "ruler", "--model", "msa-tiny", "--ways", "rag-bm25@1", "--read", folder, "--out", out]
        assert run(capsys, *common, "--tasks", "niah_single_1", "--samples", 1)[0] == 0
        sizes.append(stored(out)["settings"]["sizes"])
        if folder is ruler_files:  # other tasks there may be longer, and need not be whole
            (longer / "vt" / "validation.jsonl").write_text("{")
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 2


@pytest.mark.parametrize(
    "given",
    [["--sizes", "4K"], ["--seed", "42"], ["--haystack", "file.txt"], ["--held-out-words"]],
    ids=lambda given: given[0],
)
def test_what_only_made_samples_depend_on_is_refused_beside_files(given, capsys, tmp_path):
    code, _, error = run(capsys, "eval", "ruler", "--read", tmp_path, *given, "--out", tmp_path / "run")
    assert code == 2
    assert f"{given[0]} is for samples that are made" in error
    assert not (tmp_path / "run").exists()


def test_further_questions_of_a_set_are_added_and_fewer_later_are_reported_alone(question_set, tmp_path, capsys):
    out = tmp_path / "run"
    common = ["eval", "qa", question_set, "--model", "msa-tiny", "--ways", "rag-bm25@1", "--out", out]
    asked = []
    for limit in (["--limit", 1], [], ["--limit", 2]):
        assert run(capsys, *common, *limit)[0] == 0
        (row,) = stored(out)["results"]["rows"]
        asked.append((row["questions"], stored(out)["settings"]["limit"], len(records(out))))
    assert asked == [(1, 1, 1), (3, None, 3), (2, 2, 3)]


def test_where_documents_grow_the_number_of_questions_stays_what_it_was(question_set, tmp_path, capsys):
    common = ["eval", "qa", question_set, "--model", "msa-tiny", "--ways", "rag-bm25@1", "--out", tmp_path / "run"]
    assert run(capsys, *common, "--documents", 3, "--limit", 2)[0] == 0
    code, _, error = run(capsys, *common, "--documents", 3, "--limit", 3)
    assert (code, "limit is 2 there, 3 now" in error) == (1, True), error


def test_a_question_that_has_changed_is_not_taken_for_an_answered_one(question_set, tmp_path, capsys):
    common = ["eval", "qa", question_set, "--model", "msa-tiny", "--ways", "rag-bm25@1", "--out", tmp_path / "run"]
    assert run(capsys, *common, "--limit", 1)[0] == 0
    file = question_set / "questions.jsonl"
    file.write_text(file.read_text().replace("1234567", "1234568"))
    code, _, error = run(capsys, *common)
    assert (code, "another question 'wandering-age'" in error) == (1, True), error


def test_a_beir_folder_is_asked_by_the_split_it_has(tmp_path, capsys):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": key, "title": "", "text": NEEDLE.format(key=key, value=v)} for key, v in KEYS.items()]
    queries = [{"_id": f"q-{key}", "text": QUESTION.format(key=key)} for key in KEYS]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    (folder / "qrels" / "dev.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q-{key}\t{key}\t1\n" for key in KEYS)
    )
    common = ["eval", "qa", folder, "--model", "msa-tiny", "--ways", "rag-bm25@1", "--out", tmp_path / "run"]
    code, _, error = run(capsys, *common)
    assert (code, "test.tsv" in error) == (1, True), error
    code, page, _ = run(capsys, *common, "--split", "dev")
    assert code == 0
    assert "BEIR, split dev" in page
    assert stored(tmp_path / "run")["settings"]["split"] == "dev"
    (row,) = stored(tmp_path / "run")["results"]["rows"]
    assert (row["questions"], row["recall"]) == (3, 1.0)


def test_documents_of_a_set_may_lie_elsewhere(question_set, tmp_path, capsys):
    corpus = tmp_path / "documents.jsonl"
    (question_set / "corpus.jsonl").rename(corpus)
    common = ["eval", "qa", question_set, "--model", "msa-tiny", "--ways", "rag-bm25@1", "--out", tmp_path / "run"]
    assert run(capsys, *common)[0] == 1
    assert run(capsys, *common, "--corpus", corpus)[0] == 0
    assert stored(tmp_path / "run")["results"]["rows"][0]["recall"] == 1.0


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--split", "dev"], "split is for sets of the format beir"), (["--corpus", "x"], "x cannot be found")],
)
def test_options_that_the_set_has_no_use_for_are_refused(option, message, question_set, tmp_path, capsys):
    code, _, error = run(capsys, "eval", "qa", question_set, *option, "--out", tmp_path / "run")
    assert (code, message in error, (tmp_path / "run").exists()) == (1, True, False), error
