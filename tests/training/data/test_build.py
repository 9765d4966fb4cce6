"""Data sets: splits that share nothing, near-duplicates gone, a manifest that says what is there, the same every time."""

import hashlib
import importlib.util
import json
import random
from collections import defaultdict
from pathlib import Path

import pytest

from msa.errors import TrainingDataError
from msa.training.data.build import BuildOptions, build
from msa.training.data.near_duplicates import NearDuplicates, Passages
from msa.training.data.samples import Sample
from msa.training.data.sources import Biographies, Question, SourceEntry

SPLITS = ("train", "validation", "test")


class Made:
    """A source of documents of random words; three in a row form a group."""

    licence = "none"

    def __init__(self, name="made", documents=300, file=None, extra=()):
        self.name, self._documents, self._file, self._extra = name, documents, file, extra
        self.settings = {"documents": documents}

    def files(self):
        return {"input": self._file} if self._file else {}

    def read(self, rng):
        for number in range(self._documents):
            name = f"{self.name}{number}"
            text = f"{name} " + " ".join(str(rng.randrange(1000)) for _ in range(30))
            questions = (Question(kind="name", query=f"What is {name}?"), Question(kind="head", query=text[:40]))
            yield SourceEntry(
                id=f"{self.name}/{number}",
                name=name,
                text=text,
                questions=questions,
                group=f"{self.name} {number // 3}",
            )
        yield from self._extra


def load(out):
    samples = {
        split: [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()] for split in SPLITS
    }
    return [json.loads(line) for line in (out / "corpus.jsonl").read_text().splitlines()], samples


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    source_file = out / "input.txt"
    source_file.write_text("input")
    sources = [Made(file=source_file), Biographies()]
    options = BuildOptions(test=0.2, validation=0.1, unanswerable=20, unanswerable_answer="Unknown.")
    manifest = build(sources, {"made": 240, "biographies": 90}, 7, out, options)
    return out, manifest


def test_no_document_is_in_two_splits(built):
    _, samples = load(built[0])
    documents = {split: {i for sample in samples[split] for i in sample["positives"]} for split in SPLITS}
    assert all(documents.values())
    assert not documents["train"] & documents["test"]
    assert not documents["train"] & documents["validation"]
    assert not documents["validation"] & documents["test"]
    queries = [sample["query"] for split in SPLITS for sample in samples[split]]
    assert len(queries) == len(set(queries))


def test_groups_stay_together_and_shares_are_met(built):
    out, manifest = built
    sides = defaultdict(set)
    for split, samples in load(out)[1].items():
        for sample in samples:
            for identity in sample["positives"]:
                if identity.startswith("made/"):
                    sides[int(identity.removeprefix("made/")) // 3].add(split)
    assert {len(side) for side in sides.values()} == {1}
    assert manifest["sources"]["made"]["documents_by_split"] == {"train": 168, "validation": 24, "test": 48}


def test_samples_point_into_the_corpus_and_have_the_schema(built):
    corpus, samples = load(built[0])
    ids = {document["id"] for document in corpus}
    assert [set(document) for document in corpus] == [{"id", "text", "source"}] * 330
    assert len(ids) == 330
    for split in SPLITS:
        for fields in samples[split]:
            sample = Sample(**fields)
            assert sample.to_json() == {**fields, **({"hops": [list(h) for h in sample.hops]} if sample.hops else {})}
            assert ids.issuperset(sample.positives)
            assert len(sample.hops) == (2 if sample.source == "biographies/2-hop" else 0)


def test_unanswerable_questions_have_no_positives_and_name_nothing_in_the_corpus(built):
    corpus, samples = load(built[0])
    found = [sample for split in SPLITS for sample in samples[split] if not sample["positives"]]
    assert {sample["source"] for sample in found} == {"made/unanswerable", "biographies/unanswerable"}
    assert len(found) == 40
    assert {sample["answer"] for sample in found} == {"Unknown."}
    text = " ".join(document["text"] for document in corpus)
    for sample in found:
        if sample["source"].startswith("made"):
            assert sample["query"].removeprefix("What is ").removesuffix("?") + " " not in text
    assert all(any(not sample["positives"] for sample in samples[split]) for split in SPLITS)


def test_the_manifest_counts_what_was_written(built):
    out, manifest = built
    corpus, samples = load(out)
    assert manifest == json.loads((out / "manifest.json").read_text())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert set(manifest["files"]) == {"corpus.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl"}
    made = manifest["sources"]["made"]
    assert made["inputs"] == {"input": hashlib.sha256(b"input").hexdigest()}
    assert made["licence"] == "none"
    assert (made["documents"], made["words"]) == (240, 240 * 31)
    assert made["characters"] == sum(len(document["text"]) for document in corpus if document["source"] == "made")
    counted = sum(sum(kinds.values()) for part in manifest["sources"].values() for kinds in part["questions"].values())
    assert counted == sum(map(len, samples.values()))
    assert made["questions"]["test"]["name"] == made["questions"]["test"]["head"] == 48
    assert (manifest["seed"], manifest["options"]["test"], manifest["documents"]) == (7, 0.2, 330)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    def files(folder, seed):
        build([Made(), Biographies()], {"made": 50, "biographies": 30}, seed, folder, BuildOptions(unanswerable=5))
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first = files(tmp_path / "a", 1)
    assert first == files(tmp_path / "b", 1)
    assert first == files(tmp_path / "a", 1)
    assert first["train.jsonl"] != files(tmp_path / "c", 2)["train.jsonl"]


def test_another_source_changes_nothing_of_the_first(tmp_path):
    build([Made()], {"made": 50}, 1, tmp_path / "a")
    build([Made(), Made("other")], {"made": 50, "other": 50}, 1, tmp_path / "b")
    both = [sample for sample in load(tmp_path / "b")[1]["train"] if sample["source"].startswith("made")]
    assert load(tmp_path / "a")[1]["train"] == both


def test_held_out_sources_only_test(tmp_path):
    options = BuildOptions(hold_out_sources=["other"], unanswerable=5)
    manifest = build([Made(), Made("other")], {"made": 50, "other": 50}, 1, tmp_path, options)
    assert manifest["sources"]["other"]["documents_by_split"] == {"train": 0, "validation": 0, "test": 50}
    samples = load(tmp_path)[1]
    for split in ("train", "validation"):
        assert {sample["source"].split("/")[0] for sample in samples[split]} == {"made"}


def test_near_duplicates_and_ambiguous_questions_are_removed(tmp_path):
    text = "a pond is a small water where many ducks live in the summer and where people skate in the winter"

    def twin(name, text, query):
        questions = (Question(kind="name", query=query),)
        return SourceEntry(id=name, name=name, text=text, questions=questions)

    extra = [
        twin("one", text, "What is ONE?"),
        twin("two", text.upper() + "!", "What is two?"),
        twin("three", "a text of its own that has nothing to do with ponds", "What is it?"),
        twin("four", "another text that nobody else has written before this day", "what is it"),
    ]
    manifest = build([Made(documents=20, extra=extra)], {"made": 100}, 1, tmp_path)
    corpus, samples = load(tmp_path)
    assert {"one", "three", "four"} <= {document["id"] for document in corpus}
    assert "two" not in {document["id"] for document in corpus}
    assert manifest["near_duplicates_removed"] == 1
    assert manifest["sources"]["made"]["ambiguous_questions_removed"] == 2
    queries = {sample["query"] for split in SPLITS for sample in samples[split]}
    assert "What is ONE?" in queries
    assert not {"What is it?", "what is it", "What is two?"} & queries


def test_questions_over_documents_that_were_not_taken_are_left_out(tmp_path):
    build([Biographies()], {"biographies": 31}, 1, tmp_path)
    corpus, samples = load(tmp_path)
    ids = {document["id"] for document in corpus}
    assert len(ids) == 31
    assert all(ids.issuperset(sample["positives"]) for split in SPLITS for sample in samples[split])


def test_tokens_are_counted_with_a_counter(tmp_path):
    manifest = build([Made()], {"made": 10}, 1, tmp_path, BuildOptions(count_tokens=lambda text: 2))
    assert manifest["sources"]["made"]["tokens"] == 20
    assert "words" not in manifest["sources"]["made"]


@pytest.mark.parametrize(
    ("sources", "counts", "hold_out", "message"),
    [
        ([], {}, [], "one or more sources"),
        ([Made(), Made()], {"made": 1}, [], "different names"),
        ([Made()], {}, [], "counts must give"),
        ([Made()], {"made": 0}, [], "counts must give"),
        ([Made()], {"made": 1}, ["other"], "no source to hold out is called"),
    ],
)
def test_arguments_are_checked(tmp_path, sources, counts, hold_out, message):
    with pytest.raises(ValueError, match=message):
        build(sources, counts, 0, tmp_path, BuildOptions(hold_out_sources=hold_out))


@pytest.mark.parametrize(
    "wrong", [{"test": 1.0}, {"test": 0.5, "validation": 0.5}, {"test": -0.1}, {"unanswerable": -1}]
)
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match="must be"):
        BuildOptions(**wrong)


def test_a_source_without_documents_or_with_repeated_ids_is_an_error(tmp_path):
    with pytest.raises(TrainingDataError, match="gives no document"):
        build([Made(documents=0)], {"made": 1}, 0, tmp_path)
    same = SourceEntry(id="made/0", name="x", text="x", questions=())
    with pytest.raises(TrainingDataError, match="'made/0' twice"):
        build([Made(documents=1, extra=[same])], {"made": 9}, 0, tmp_path)


def words(number, rng):
    return [f"w{rng.randrange(10_000)}" for _ in range(number)]


def test_near_duplicates_are_found_from_the_threshold_on():
    rng = random.Random(0)
    found = {0.75: 0, 0.85: 0}
    for _ in range(50):
        common = words(80, rng)
        for similarity in found:
            # n shingles shared at the front and m of each document's own behind: n / (n + 2m)
            own = round((len(common) - 4) * (1 - similarity) / similarity / 2)
            seen = NearDuplicates(0.8)
            assert seen.add(" ".join(common + words(own, rng)))
            found[similarity] += not seen.add(" ".join(common + words(own, rng)))
    assert found == {0.75: 0, 0.85: 50}


def test_near_duplicates_look_through_case_punctuation_and_length():
    seen = NearDuplicates()
    assert seen.add("A pond, a duck.")
    assert not seen.add("a POND (a duck)")
    assert seen.add("a pond, two ducks")
    assert seen.add("")
    assert not seen.add("...")
    assert seen.add("a pond a duck and so on and on")
    with pytest.raises(ValueError, match="threshold"):
        NearDuplicates(0)


def test_passages_are_found_with_another_name_in_them():
    texts = {
        "a": "Pond: the ducks of the old village swim on it until the winter comes.",
        "b": "Lake is large. The ducks of the old village swim on it until night.",
        "c": "Short.",
    }
    passages = Passages(texts)
    assert passages.holders("The ducks of the old village swim on it!") == {"a", "b"}
    assert passages.holders("it: the ducks of the old village swim on it until the winter comes") == {"a"}
    assert passages.holders("ducks that live in no village at all") == set()
    assert passages.holders("Short.") == set()
    assert Passages({}).holders("the ducks of the old village") == set()


def test_a_question_whose_words_are_in_another_document_is_left_out(tmp_path):
    sentence = "Many ducks live on it in the summer of every year."
    one = SourceEntry(
        id="one",
        name="one",
        text=f"one {sentence} It is near the village where the river is.",
        questions=(Question(kind="sentence", query=sentence), Question(kind="name", query="What is one?")),
    )
    two = SourceEntry(id="two", name="two", text=f"two {sentence} A mountain, quite high.", questions=())
    manifest = build([Made(documents=9, extra=[one, two])], {"made": 100}, 1, tmp_path)
    assert manifest["sources"]["made"]["ambiguous_questions_removed"] == 1
    queries = {sample["query"] for samples in load(tmp_path)[1].values() for sample in samples}
    assert "What is one?" in queries
    assert sentence not in queries


@pytest.fixture
def recipe():
    path = Path(__file__).parents[3] / "recipes" / "build_data.py"
    spec = importlib.util.spec_from_file_location("build_data_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_builds(recipe, tmp_path, monkeypatch):
    arguments = ["build_data.py", "--out", str(tmp_path), "--biographies", "--documents", "30", "--unanswerable", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    recipe.main()
    assert json.loads((tmp_path / "manifest.json").read_text())["documents"] == 30


def test_the_recipe_says_what_is_missing(recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sys.argv", ["build_data.py", "--out", str(tmp_path), "--wordnet", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        recipe.main()
    assert stopped.value.code == 1
    assert "apt-get download wordnet-base" in caplog.text


@pytest.mark.parametrize(
    "arguments", [[], ["--biographies", "--documents", "x"], ["--wordnet", "w", "--documents", "y=3"]]
)
def test_the_recipe_checks_its_arguments(recipe, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["build_data.py", "--out", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stopped:
        recipe.main()
    assert stopped.value.code == 2


def test_the_recipe_takes_counts_per_source(recipe):
    counts = recipe.document_counts(["debian=10", "20"])
    assert (counts["debian"], counts["wordnet"]) == (10, 20)
