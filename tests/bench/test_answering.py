import pytest
import torch
from tiny import tiny_model

import msa
from msa.bench import bench_answering
from msa.bench.answering import decoding_rounds, needle_documents, needle_questions, question_rounds, weight_stream
from msa.bench.twin import transformers_twin
from msa.engine import Engine
from msa.generation.options import AskOptions
from msa.routing import BankView


def test_rounds_of_prefill_and_decode():
    model = tiny_model()
    rounds = decoding_rounds(model, transformers_twin(model), 2, num_tokens=8)
    assert {name: len(seconds) for name, seconds in rounds.items()} == {
        "prefill": 2,
        "decode": 2,
        "transformers prefill": 2,
        "transformers decode": 2,
    }
    assert rounds["prefill"][0] > 0
    assert set(decoding_rounds(model, None, 1, num_tokens=4)) == {"prefill", "decode"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_reads_every_weight_but_the_routers(tied, monkeypatch):
    read = []
    monkeypatch.setattr("msa.bench.answering.reading", lambda tensor: lambda: read.append(tensor.nbytes))
    model = tiny_model(tie_word_embeddings=tied)
    weight_stream(model, 1)
    twin = transformers_twin(model)
    weights = {name: weight for name, weight in twin.named_parameters() if tied or "embed_tokens" not in name}
    assert read[0] == sum(weight.nbytes for weight in weights.values())


def test_questions_together_are_those_alone(tmp_path):
    model = msa.load("msa-tiny", dtype="float32")
    with msa.Memory.open(tmp_path / "memory", model) as memory:
        memory.add(needle_documents(8))
        engine = Engine(model, BankView(memory.bank, model.device))
        asked = needle_questions(3, 8)
        rounds, found = question_rounds(engine, asked, AskOptions(max_new_tokens=8), [2], 1)
    assert set(rounds) == set(found) == {"one at a time", "2 concurrent"}
    texts = {name: [answer.text for answer in answers] for name, (answers, _) in found.items()}
    served = found["2 concurrent"][1]
    assert (served[0], max(served)) == (2, 2)
    assert texts["2 concurrent"] == texts["one at a time"]
    assert len(texts["2 concurrent"]) == 3


def test_figures():
    model = tiny_model()
    figures = bench_answering(model, (1, 2), 2, 1)
    assert [figure.what for figure in figures] == [
        "answering, prefill",
        "answering, decode",
        "answering, 1 together",
        "answering, 2 together",
    ]
    assert figures[0].amount == 128
    assert all(set(figure.baselines) == {"generate"} for figure in figures[:2])
    assert figures[2].baselines == figures[3].baselines
    one, two = (figure.floors["weights once"]["best"] / figure.details["answer tokens"] for figure in figures[2:])
    assert one == pytest.approx(2 * two)
    assert figures[3].details["texts as one at a time"] == 2
    assert [figure.details["questions a pass, most"] for figure in figures[2:]] == [1, 2]
    assert 1 < figures[3].details["questions a pass, mean"] <= 2
    assert torch.get_num_threads() == 1
