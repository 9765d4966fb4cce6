"""What a run is judged by, counted by hand."""

import pytest
import torch
from tiny_training import SETS, batches, config, learner, phase

from msa.documents.batching import pad_right
from msa.ops import Routing
from msa.training.data.steps import IGNORED
from msa.training.metrics import evaluate, exact_answers, exact_rows, recall_at, routing_recalls

INF = float("inf")


def test_recall_is_the_share_of_a_row_s_documents_among_its_best():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.9, 0.1, -INF, -INF]])
    positives = [[1, 3], [3], [], [0, 1]]
    assert recall_at(scores, positives, 1) == [0.5, 0.0, 0.5]
    assert recall_at(scores, positives, 2) == [0.5, 0.0, 1.0]
    assert recall_at(scores, positives, 3) == [1.0, 0.0, 1.0]
    assert recall_at(scores, positives, 16) == [1.0, 1.0, 1.0]  # more than there are documents
    assert recall_at(scores[:0], [], 1) == []


def test_a_row_is_exact_when_every_labelled_token_is_the_most_probable_one():
    labels = torch.tensor([[IGNORED, 1, 2], [IGNORED, 1, 2], [IGNORED] * 3, [7, IGNORED, 2], [2, IGNORED, IGNORED]])
    says = torch.tensor([[1, 2, 0], [1, 0, 2], [1, 2, 0], [0, 2, 0], [1, 1, 1]])  # after each token
    logits = torch.nn.functional.one_hot(says, 8).float()
    # the label of a row's first token is never predicted
    assert exact_rows(logits, labels) == [True, False, None, True, None]


def routing(scores):
    scores = torch.tensor(scores)
    nothing = torch.zeros(len(scores), 0)
    return Routing(doc_indices=nothing.long(), scores=nothing, doc_scores=scores, chunk_scores=scores)


def test_recalls_of_every_layer_and_of_their_mean():
    layers = {2: routing([[0.9, 0.1, 0.0]]), 5: routing([[0.0, 0.3, 0.1]])}
    recalls = routing_recalls(layers, [[0]])
    assert {name: values for name, values in recalls.items() if name.startswith("recall@1/")} == {
        "recall@1/layer 2": [1.0],
        "recall@1/layer 5": [0.0],
        "recall@1/mean": [1.0],
    }
    assert set(recalls) == {f"recall@{k}/{name}" for k in (1, 5, 16) for name in ("layer 2", "layer 5", "mean")}


@pytest.fixture(scope="module")
def judged():
    """A network, batches of all kinds of rows, and their metrics."""
    model, run = learner(), config("nowhere", phase(8, final_share=0.5))
    drawn = [batches(model, run, *SETS).batch(number, 0) for number in range(8)]
    return model, drawn, evaluate(model.lm, drawn, torch.tensor(model.protocol.prefix_ids))


@torch.no_grad()
def rows_one_by_one(model, drawn):
    """(source, recalls, exact ids, exact answer) of every row, each in a pass of its own without padding."""
    for batch in drawn:
        documents = [
            ids[:length].tolist()
            for bucket in batch.documents
            for ids, length in zip(bucket.input_ids, bucket.lengths, strict=True)
        ]
        memory = model.lm.encode_documents(*pad_right(documents))
        for bucket in batch.rows:
            for row, source in enumerate(bucket.sources):
                real = slice(0, int(bucket.attention_mask[row].sum()))
                out = model.lm(
                    bucket.input_ids[row : row + 1, real],
                    routing_mask=bucket.routing_mask[row : row + 1, real],
                    memory=memory,
                    prefix=model.lm.encode_prefix(torch.tensor(model.protocol.prefix_ids)),
                    doc_mask=bucket.selectable[row],
                )
                scores = torch.stack([layer.doc_scores[0] for layer in out.routing.values()]).mean(0)
                wanted = bucket.positives[row]
                recall = None
                if wanted:
                    best = sorted(range(len(scores)), key=lambda i: -scores[i])
                    recall = sum(i in best[:1] for i in wanted) / len(wanted)
                says = out.logits[0].argmax(-1)
                exact = []
                for labels in (bucket.id_labels[row, real], bucket.answer_labels[row, real]):
                    places = [i for i in range(1, len(labels)) if labels[i] != IGNORED]
                    exact.append(all(says[i - 1] == labels[i] for i in places) if places else None)
                yield source, recall, *exact


def mean(values):
    values = [float(value) for value in values if value is not None]
    return pytest.approx(sum(values) / len(values))


def test_evaluation_equals_rows_judged_one_by_one(judged):
    model, drawn, metrics = judged
    rows = list(rows_one_by_one(model, drawn))
    assert metrics["recall@1/mean"] == mean(recall for _, recall, *_ in rows)
    assert metrics["recall@16/mean"] == 1.0  # of three documents
    assert metrics["ids_exact"] == mean(ids for _, _, ids, _ in rows)
    assert metrics["answer_exact"] == mean(answer for *_, answer in rows)
    for source in ("one", "two", "weather", "none"):
        assert metrics[f"ids_exact/{source}"] == mean(ids for name, _, ids, _ in rows if name == source)
        if source != "none":
            assert metrics[f"recall@1/mean/{source}"] == mean(recall for name, recall, *_ in rows if name == source)
    assert "answer_exact/weather" not in metrics  # no such row has an answer
    assert set(metrics) >= {f"recall@{k}/layer 1" for k in (1, 5, 16)}


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_network_in_the_mode_it_was_in(judged, training):
    model, drawn, expected = judged
    lm = learner().lm.train(training)
    assert evaluate(lm, drawn[:1], torch.tensor(model.protocol.prefix_ids)) != expected
    assert lm.training is training
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_answers_of_one_row_are_judged_apart():
    ids = torch.tensor([[5, 1, 2, 9, 3, 4], [5, 6, 7, 8, 8, 8]])
    labels = torch.tensor([[-100, 1, 2, -100, 3, 4], [-100, -100, -100, -100, -100, 8]])
    logits = torch.nn.functional.one_hot(ids.roll(-1, 1), 10).float()
    assert exact_answers(logits, labels) == [1.0, 1.0, 1.0]
    logits[0, 4] = 0  # the last token of the second answer
    logits[0, 2] = 0  # not learnt
    assert exact_answers(logits, labels) == [1.0, 0.0, 1.0]
    assert exact_answers(logits, torch.full_like(labels, -100)) == []
