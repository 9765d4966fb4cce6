"""The losses of a batch in buckets against one plain padded pass, and against the equations written out."""

import dataclasses
import math
import random

import pytest
import torch
from tiny import random_tokens, tiny_lm, tiny_tokenizer
from tiny_training import CORPUS, ONE_HOP, SHORT, all_steps_batch, all_steps_set, learner

from msa.documents import Protocol
from msa.documents.batching import pad_right
from msa.model.losses import labelled_token_loss, next_token_loss
from msa.training.data.collate import collate, draw_numbers, rows_alone
from msa.training.data.samples import TrainingSet
from msa.training.data.steps import IGNORED, tokenize_step
from msa.training.objective import LossWeights, compute_losses, encode_batch, losses_without_memory

WEIGHTS = LossWeights(ids=0.5, answer=2.0, routing=0.3, closing_id=0.7)
WITHOUT_CLOSING = LossWeights(ids=0.5, answer=2.0, routing=0.3)
PROTOCOL = Protocol(SHORT, tiny_tokenizer())
PREFIX = torch.tensor(PROTOCOL.prefix_ids)
LOSS = {"atol": 1e-5, "rtol": 1e-5}
GRADIENT = {"atol": 1e-4, "rtol": 1e-4}


def network(**settings):
    """A random network whose losses and gradients are of the size of a trained one's."""
    lm = tiny_lm(routing_bias=True, **settings)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.ndim == 2:
                parameter *= 0.5
            elif name == "temperature":
                parameter.fill_(0.3)
    return lm


def batch():
    return all_steps_batch(PROTOCOL)


def padded(rows, fill):
    width = max(map(len, rows))
    return torch.tensor([[*map(int, row), *[fill] * (width - len(row))] for row in rows])


def plain_pass(lm, **options):
    """All documents in one batch in the order of the corpus, all rows in another in theirs; nothing is sorted."""
    training_set, steps = all_steps_set()
    numbers = dict(zip(CORPUS, numbers_of(), strict=True))
    documents = [PROTOCOL.document_ids(numbers[name], text) for name, text in CORPUS.items()]
    rows = [tokenize_step(step, PROTOCOL, training_set.corpus, numbers) for step in steps]
    names = list(CORPUS)
    unread = torch.ones(len(rows), len(names), dtype=torch.bool)
    for row, step in enumerate(steps):
        for found in step.found:
            unread[row, [names.index(name) for name in found]] = False
    memory = options.pop("memory", None) or lm.encode_documents(*pad_right(documents))
    labels = padded([row.id_labels for row in rows], IGNORED)
    answers = padded([row.answer_labels for row in rows], IGNORED)
    positives = [[names.index(name) for name in step.target] for step in steps]
    out = lm(
        padded([row.ids for row in rows], 0),
        attention_mask=padded([[1] * len(row.ids) for row in rows], 0),
        routing_mask=padded([row.routes for row in rows], 0),
        memory=memory,
        prefix=lm.encode_prefix(PREFIX),
        labels=labels,
        answer_labels=answers,
        positives=positives,
        doc_mask=unread,
        **options,
    )
    return out, labels, answers, positives, documents, numbers


def numbers_of():
    """The numbers that ``batch()`` draws, in the order of the corpus."""
    return draw_numbers(len(CORPUS), 3, random.Random(0))


def total_of(out, weights):
    return weights.ids * out.lm_loss + weights.answer * out.answer_loss + weights.routing * out.aux_loss


def gradients(lm, loss):
    lm.zero_grad()
    loss.backward()
    return {name: p.grad.clone() if p.grad is not None else None for name, p in lm.named_parameters()}


def assert_gradients(got, expected, untouched=("temperature",)):
    assert set(got) == set(expected)
    for name, gradient in expected.items():
        if gradient is None or name in untouched:
            assert got[name] is None or not got[name].any(), name
        else:
            torch.testing.assert_close(got[name], gradient, **GRADIENT, msg=lambda text, name=name: f"{name}: {text}")


def test_the_batch_of_these_tests_has_several_buckets_of_every_kind():
    assert len(batch().documents) > 2
    assert len(batch().rows) > 2
    assert any(not any(bucket.positives) for bucket in batch().rows)


# against one plain pass


@pytest.mark.parametrize(("batch_tokens", "num_buckets"), [(1, 4), (40, 3), (4096, 1)])
def test_rows_without_memory_have_the_loss_of_one_masked_pass_after_the_prefix(batch_tokens, num_buckets):
    lm = network()
    drawn = random_tokens(30, 7, 18, 3)
    rows = [(ids, [token if place % 3 else IGNORED for place, token in enumerate(ids)]) for ids in drawn]
    alone = rows_alone(rows, ["row"] * len(rows))
    out = lm(
        alone.input_ids,
        attention_mask=alone.attention_mask,
        prefix=lm.encode_prefix(PREFIX),
        labels=alone.answer_labels,
    )
    expected = gradients(lm, out.lm_loss)
    means = list(losses_without_memory(lm, alone, PREFIX, batch_tokens))
    assert len(means) == num_buckets
    total = sum(count for _, count in means)
    assert total == alone.count(alone.answer_labels)
    loss = sum(mean * (count / total) for mean, count in means)
    torch.testing.assert_close(loss, out.lm_loss, **LOSS)
    assert_gradients(gradients(lm, loss), expected)


@pytest.mark.parametrize("backbone", ["qwen3", "llama"])
def test_losses_and_gradients_of_buckets_equal_one_plain_pass(backbone):
    lm = network(backbone=backbone)
    losses = compute_losses(lm, batch(), PREFIX, WITHOUT_CLOSING)
    out, *_ = plain_pass(lm)
    assert set(losses.parts) == {"ids", "answer", "routing"}
    torch.testing.assert_close(losses.parts["ids"], out.lm_loss, **LOSS)
    torch.testing.assert_close(losses.parts["answer"], out.answer_loss, **LOSS)
    torch.testing.assert_close(losses.parts["routing"], out.aux_loss, **LOSS)
    torch.testing.assert_close(losses.total, total_of(out, WITHOUT_CLOSING), **LOSS)
    expected = gradients(lm, total_of(out, WITHOUT_CLOSING))
    assert all(gradient.any() for name, gradient in expected.items() if gradient is not None)
    assert_gradients(gradients(lm, losses.total), expected)


def test_nothing_depends_on_the_size_of_the_buckets():
    lm = network()
    losses = [
        compute_losses(lm, all_steps_batch(PROTOCOL, bucket_tokens=tokens), PREFIX, WEIGHTS) for tokens in (1, 10_000)
    ]
    for name in ("ids", "answer", "routing", "closing_id"):
        torch.testing.assert_close(losses[0].parts[name], losses[1].parts[name], **LOSS)
    assert_gradients(*(gradients(lm, loss.total) for loss in losses))


# against the equations


def cross_entropy_by_hand(logits, labels):
    terms = [
        -logits[row, place - 1].log_softmax(-1)[label].item()
        for row, line in enumerate(labels.tolist())
        for place, label in enumerate(line)
        if label != IGNORED and place > 0
    ]
    return sum(terms) / len(terms)


def decoupled_infonce_by_hand(doc_scores, positives, tau):
    """Eq. 5 of one layer, the mean over the rows that have positives."""
    terms = []
    for scores, wanted in zip(doc_scores.tolist(), positives, strict=True):
        negatives = [s for i, s in enumerate(scores) if i not in wanted and s > float("-inf")]
        rivals = sum(math.exp(s / tau) for s in negatives)
        losses = [-math.log(math.exp(scores[i] / tau) / (math.exp(scores[i] / tau) + rivals)) for i in wanted]
        if wanted:
            terms.append(sum(losses) / len(wanted))
    return sum(terms) / len(terms)


@torch.no_grad()
def test_losses_equal_the_equations_written_out():
    lm = network()
    parts = compute_losses(lm, batch(), PREFIX, WEIGHTS).parts
    out, labels, answers, positives, documents, numbers = plain_pass(lm)
    assert parts["ids"].item() == pytest.approx(cross_entropy_by_hand(out.logits, labels), abs=1e-5)
    assert parts["answer"].item() == pytest.approx(cross_entropy_by_hand(out.logits, answers), abs=1e-5)
    assert sorted(out.routing) == [2, 3]
    layers = [decoupled_infonce_by_hand(layer.doc_scores, positives, 0.3) for layer in out.routing.values()]
    assert abs(layers[0] - layers[1]) > 1e-3
    assert parts["routing"].item() == pytest.approx(sum(layers) / 2, abs=1e-5)
    # each closing id, given its document's text and opening id, in a pass of the document alone
    terms = []
    for ids, number in zip(documents, numbers.values(), strict=True):
        closing = [*PROTOCOL.plain_ids(f"[{number}]"), PROTOCOL.answer_end_id]
        assert ids[-len(closing) :] == closing
        logits = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
        terms += [-logits[place - 1, ids[place]].item() for place in range(len(ids) - len(closing), len(ids))]
    assert parts["closing_id"].item() == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_the_routing_returned_is_that_of_every_bucket():
    lm, drawn = network(), batch()
    routing = compute_losses(lm, drawn, PREFIX, WEIGHTS).routing
    assert [set(layers) for layers in routing] == [{2, 3}] * len(drawn.rows)
    for layers, rows in zip(routing, drawn.rows, strict=True):
        for layer in layers.values():
            assert (layer.doc_scores > float("-inf")).tolist() == rows.selectable.tolist()


# weights, and what may be left out


@pytest.mark.parametrize(
    "weights",
    [LossWeights(), WEIGHTS, LossWeights(ids=0.1, answer=0.0, routing=1.0), LossWeights(ids=0.0, closing_id=3.0)],
)
def test_the_total_is_the_weighted_sum_of_the_parts(weights):
    losses = compute_losses(network(), batch(), PREFIX, weights)
    assert ("closing_id" in losses.parts) == bool(weights.closing_id)
    expected = sum(getattr(weights, name) * loss.item() for name, loss in losses.parts.items())
    assert losses.total.item() == pytest.approx(expected, abs=1e-4)


def test_checkpointed_documents_give_the_same_losses_and_gradients():
    lm = network()
    plain = compute_losses(lm, batch(), PREFIX, WEIGHTS)
    expected = gradients(lm, plain.total)
    again = compute_losses(lm, batch(), PREFIX, WEIGHTS, checkpoint_documents=True)
    assert again.total.item() == plain.total.item()
    assert_gradients(gradients(lm, again.total), expected)


def test_checkpointed_layers_give_the_same_losses_and_gradients():
    lm = network()
    plain = compute_losses(lm, batch(), PREFIX, WEIGHTS)
    expected = gradients(lm, plain.total)
    lm.train()
    lm.model.checkpoint_layers = True
    for checkpoint_documents in (False, True):
        again = compute_losses(lm, batch(), PREFIX, WEIGHTS, checkpoint_documents=checkpoint_documents)
        assert again.total.item() == pytest.approx(plain.total.item(), abs=1e-6)
        assert_gradients(gradients(lm, again.total), expected)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_checkpointed_documents_are_encoded_again_bucket_by_bucket_in_the_backward_pass(checkpointed):
    lm, drawn = network(), batch()
    passes = []
    lm.model.embed_tokens.register_forward_hook(lambda *_: passes.append(1))
    memory, _ = encode_batch(lm, drawn.documents, with_closing=False, checkpointed=checkpointed)
    assert len(passes) == len(drawn.documents)
    torch.stack([memory.keys[layer].sum() for layer in memory.keys]).sum().backward()
    assert len(passes) == len(drawn.documents) * (2 if checkpointed else 1)


@pytest.mark.parametrize("checkpoint_documents", [False, True])
def test_frozen_documents_get_no_gradient(checkpoint_documents):
    lm = network()
    losses = compute_losses(
        lm, batch(), PREFIX, WITHOUT_CLOSING, freeze_documents=True, checkpoint_documents=checkpoint_documents
    )
    got = gradients(lm, losses.total)
    for name, gradient in got.items():
        if "router_k_proj" in name:  # works on documents alone
            assert gradient is None
        elif "router_q_proj" in name:
            assert gradient.any()
    training_set, _ = all_steps_set()
    documents = [
        PROTOCOL.document_ids(number, text)
        for number, text in zip(numbers_of(), training_set.corpus.values(), strict=True)
    ]
    with torch.no_grad():
        memory = lm.encode_documents(*pad_right(documents))
    out, *_ = plain_pass(lm, memory=memory)
    torch.testing.assert_close(losses.total, total_of(out, WITHOUT_CLOSING), **LOSS)
    assert_gradients(got, gradients(lm, total_of(out, WITHOUT_CLOSING)))


def test_without_gradients_nothing_is_kept():
    lm = network()
    expected = compute_losses(lm, batch(), PREFIX, WEIGHTS, checkpoint_documents=True)
    with torch.no_grad():
        losses = compute_losses(lm, batch(), PREFIX, WEIGHTS, checkpoint_documents=True)
    assert not losses.total.requires_grad
    assert losses.total.item() == pytest.approx(expected.total.item(), abs=1e-5)


def test_a_network_whose_projections_are_fused_trains_the_same():
    model = learner()
    fused = compute_losses(model.lm, batch(), PREFIX, WEIGHTS)
    expected = gradients(model.lm, fused.total)
    apart = learner().lm
    for parameter in apart.parameters():
        parameter.data = parameter.data.clone()
    losses = compute_losses(apart, batch(), PREFIX, WEIGHTS)
    torch.testing.assert_close(losses.total, fused.total, **LOSS)
    assert_gradients(gradients(apart, losses.total), expected)


# the loss of labelled tokens alone


def test_labelled_tokens_alone_give_the_loss_of_all_logits():
    lm = network()
    expected, *_ = plain_pass(lm)
    out, *_ = plain_pass(lm, labelled_only=True)
    assert out.logits is None
    assert expected.logits is not None
    for name in ("lm_loss", "answer_loss", "aux_loss"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name), **LOSS)


@pytest.mark.parametrize("chunk", [1, 3, 11, 12, 13, 4096])
def test_labelled_token_loss_in_chunks_equals_the_loss_of_all_logits(chunk):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 260, bias=False)
    labels = torch.tensor(random_tokens(10, 10))
    labels[0, :4], labels[1, 6:] = IGNORED, IGNORED
    labels[1, 0] = 5  # nothing stands before it, so nothing predicts it
    assert int((labels[:, 1:] != IGNORED).sum()) == 11
    results = []
    for loss_of in (
        lambda states: next_token_loss(head(states), labels),
        lambda states: labelled_token_loss(states, head, labels, chunk=chunk),
    ):
        states = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        loss = loss_of(states)
        loss.backward()
        results.append((loss.detach(), states.grad, head.weight.grad.clone()))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, **LOSS)


def test_without_any_label_the_loss_is_zero_and_keeps_its_graph():
    head, states = torch.nn.Linear(4, 260), torch.randn(2, 3, 4, requires_grad=True)
    loss = labelled_token_loss(states, head, torch.full((2, 3), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not states.grad.any()


# distillation


def taught_batch(model, teacher):
    """The steps of all samples, the first sample with a teacher's scores."""
    drawn, steps = all_steps_set()
    samples = [dataclasses.replace(s, teacher=teacher) if s.query == ONE_HOP.query else s for s in drawn.samples]
    return collate(
        TrainingSet(corpus=drawn.corpus, samples=samples),
        model.protocol,
        steps=steps,
        numbers=draw_numbers(len(drawn.corpus), 3, random.Random(0)),
        max_document_tokens=500,
        bucket_tokens=120,
    )


def test_distillation_is_the_divergence_over_the_documents_the_teacher_scored():
    model = learner()
    teacher = (("ada", 2.0), ("snow", 1.0), ("cats", -1.0))
    batch = taught_batch(model, teacher)
    prefix = torch.tensor(model.protocol.prefix_ids)
    settings = LossWeights(distillation=0.5, teacher_temperature=2.0)
    losses = compute_losses(model.lm, batch, prefix, settings)
    scored = [
        (b, row)
        for b, rows in enumerate(batch.rows)
        if rows.teacher is not None
        for row in range(len(rows.sources))
        if bool((rows.teacher[row] > -math.inf).any())
    ]
    assert len(scored) == 1  # only the step that has read nothing yet
    ((b, row),) = scored
    columns = (batch.rows[b].teacher[row] > -math.inf).nonzero().flatten()
    assert sorted(batch.rows[b].teacher[row][columns].tolist()) == [-1.0, 1.0, 2.0]
    expected = []
    for routing in losses.routing[b].values():
        q = (routing.doc_scores[row][columns] / model.lm.temperature).softmax(0)
        p = (batch.rows[b].teacher[row][columns] / 2.0).softmax(0)
        expected.append((p * (p.log() - q.log())).sum())
    torch.testing.assert_close(losses.parts["distillation"], torch.stack(expected).mean())
    plain = compute_losses(model.lm, batch, prefix, LossWeights())
    assert "distillation" not in plain.parts
    torch.testing.assert_close(losses.total, plain.total + 0.5 * losses.parts["distillation"])


def test_without_a_teacher_distillation_is_zero():
    model = learner()
    batch = taught_batch(model, ())
    assert all(rows.teacher is None for rows in batch.rows)
    losses = compute_losses(model.lm, batch, torch.tensor(model.protocol.prefix_ids), LossWeights(distillation=1.0))
    assert losses.parts["distillation"] == 0
