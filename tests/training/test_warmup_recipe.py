"""The data that recipes/router_warmup.py trains on."""

import json

import pytest
from recipe_files import recipe

from msa.errors import TrainingDataError

QUESTIONS = {
    "train": [("Who met Charles?", ["ada"]), ("When?", ["snow"]), ("Who was Zeno?", [])],
    "validation": [("When does it snow?", ["snow"])],
    "test": [("What do cats do?", ["cats"])],
}


@pytest.fixture
def folder(tmp_path):
    def write(name, records):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))

    write("corpus", [{"id": name, "text": f"Text of {name}."} for name in ("ada", "snow", "cats", "rain")])
    for split, questions in QUESTIONS.items():
        write(split, [{"query": query, "positives": names, "answer": "x"} for query, names in questions])
    return tmp_path


def test_what_is_not_used_is_counted(folder):
    data = recipe("router_warmup").read_data(folder, 3, 1, None)
    assert set(data.corpus) >= {"snow", "cats"}, "documents of held-out questions stay"
    assert len(data.corpus) == 3
    assert data.left_out == {"documents": 1, "train questions": 2, "validation questions": 0, "test questions": 0}
    assert data.queries("test") == ["What do cats do?"]
    assert [data.relevant[question] for question in data.questions["test"]] == [[list(data.corpus).index("cats")]]


def test_a_broken_line_is_named(folder):
    with open(folder / "validation.jsonl", "a", encoding="utf-8") as file:
        file.write('{"query": "broken\n')
    with pytest.raises(TrainingDataError, match=r"validation\.jsonl:2"):
        recipe("router_warmup").read_data(folder, None, None, None)
