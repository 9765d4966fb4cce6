"""The default model end to end on real documents; fetched and converted once, then cached."""

import json
import re
from pathlib import Path

import pytest

import msa
from msa import zoo
from msa.documents.readers import read_documents
from msa.errors import ModelNotFoundError

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.default_model


@pytest.fixture(scope="module")
def default_model():
    try:
        return msa.load()
    except ModelNotFoundError as error:
        pytest.skip(f"no network for the first use: {error}")


def test_control_strings_are_single_tokens(default_model):
    protocol = default_model.protocol
    assert len(protocol.prefix_ids) == 3
    assert len(protocol.template_ids(protocol.strings.end_of_retrieve)) == 1
    assert protocol.answer_end_id != protocol.reference_end_id


@pytest.fixture(scope="module")
def asked():
    """Twelve questions, and 60 package descriptions with those that answer them."""
    questions = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text().splitlines()][20:32]
    named = {question["document"] for question in questions}
    documents = list(read_documents([EXAMPLES / "packages.jsonl"]))
    return questions, [d for d in documents if d.id in named] + [d for d in documents if d.id not in named][:48]


@pytest.fixture(scope="module")
def folder(default_model, asked, tmp_path_factory):
    """A memory of these."""
    folder = tmp_path_factory.mktemp("packages") / "mem"
    with msa.Memory.open(folder, model=default_model) as memory:
        memory.add(asked[1])
    return folder


def test_questions_about_real_documents(default_model, asked, folder):
    """The right one comes first, and the answers are in its words."""
    questions, _ = asked
    with msa.Memory.open(folder, model=default_model) as memory:
        answers = memory.ask_many([question["question"] for question in questions], max_new_tokens=12)
    best = [answer.sources[0] for answer in answers]
    assert sum(q["document"] == hit.id for q, hit in zip(questions, best, strict=True)) >= 10
    for answer, hit in zip(answers, best, strict=True):
        words = re.findall(r"\w+", answer.text.lower())
        assert words
        assert sum(word in hit.text.lower() for word in words) >= 0.8 * len(words), answer.text


def test_the_same_memory_asked_for_ids_first(folder, asked):
    """As published: the model writes the id of the document it wants, reads that and answers."""
    questions, _ = asked
    with msa.Memory.open(folder, model=msa.load(zoo.GENERATIVE_MODEL)) as memory:
        answers = memory.ask_many([question["question"] for question in questions], max_new_tokens=40)
        written = [[hit.id for hit in answer.sources] for answer in answers]
    assert sum(q["document"] == ids[0] for q, ids in zip(questions, written, strict=True) if ids) >= 8
    assert all(answer.text.strip() for answer in answers)
    for answer, ids in zip(answers, written, strict=True):
        assert answer.rounds[0].generated, "routed mode writes nothing"
        assert answer.rounds[0].retrieved[:1] == ids[:1]
