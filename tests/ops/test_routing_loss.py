"""The routing loss against the formula written out as loops."""

import math

import pytest
import torch

from msa.model.losses import next_token_loss, routing_loss_over_layers
from msa.ops import ROUTING_LOSSES, Routing, routing_loss

HIDDEN = float("-inf")


def loss_by_hand(scores, positives, tau, method):
    """One row: −(1/|P|) Σ_{i∈P} w_i·log p_i, where p_i lets i compete with the visible documents it must."""
    visible = [i for i, score in enumerate(scores) if score != HIDDEN]
    wanted = [i for i in visible if positives[i]]
    total = 0.0
    for i in wanted:
        rivals = [j for j in visible if j == i or not positives[j]] if "DECOUPLE" in method else visible
        p = math.exp(scores[i] / tau) / sum(math.exp(scores[j] / tau) for j in rivals)
        total -= ((1 - p) ** 2 if "FOCAL" in method else 1.0) * math.log(p)
    return total / len(wanted) if wanted else 0.0


SCORES = torch.tensor(
    [
        [0.3, -0.2, 0.9, 0.1, 0.5],
        [0.4, HIDDEN, 0.7, HIDDEN, -0.3],  # hidden documents
        [0.2, 0.1, HIDDEN, 0.6, 0.3],  # a positive is hidden
        [0.5, 0.4, 0.3, 0.2, 0.1],  # no positives
        [0.5, HIDDEN, 0.6, HIDDEN, HIDDEN],  # no negatives
        [HIDDEN] * 5,  # sees nothing
    ]
)
POSITIVES = torch.tensor(
    [[1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]],
    dtype=torch.bool,
)


@pytest.mark.parametrize("method", ROUTING_LOSSES)
@pytest.mark.parametrize("tau", [0.1, 0.02, 1.0])
def test_equals_the_formula(method, tau):
    loss = routing_loss(SCORES, POSITIVES, tau, method)
    expected = [loss_by_hand(*row, tau, method) for row in zip(SCORES.tolist(), POSITIVES.tolist(), strict=True)]
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert loss[3] == loss[5] == 0


@pytest.mark.parametrize("method", ROUTING_LOSSES)
def test_gradients_are_finite_and_only_where_they_belong(method):
    scores = SCORES.clone().requires_grad_()
    routing_loss(scores, POSITIVES, 0.001, method).sum().backward()
    assert scores.grad.isfinite().all()
    assert not scores.grad[SCORES == HIDDEN].any()
    assert not scores.grad[3].any()
    assert scores.grad[1, 0] < 0 < scores.grad[1, 2]  # positives up, negatives down


def test_decoupled_positives_do_not_compete():
    """A second positive, however good, neither costs nor moves the first."""
    positives = torch.tensor([[True, True, False]])
    grad_of_first = []
    for other in (-0.5, 0.9):
        scores = torch.tensor([[0.3, other, 0.1]], requires_grad=True)
        first_only = routing_loss(scores[:, [0, 2]], torch.tensor([[True, False]]), 0.1, "INFONCE_DECOUPLE")
        second_only = routing_loss(scores[:, [1, 2]], torch.tensor([[True, False]]), 0.1, "INFONCE_DECOUPLE")
        both = routing_loss(scores, positives, 0.1, "INFONCE_DECOUPLE")
        torch.testing.assert_close(both, (first_only + second_only) / 2)
        both.sum().backward()
        grad_of_first.append(scores.grad[0, 0].item())
    assert grad_of_first[0] == pytest.approx(grad_of_first[1])
    competing = [routing_loss(torch.tensor([[0.3, other, 0.1]]), positives, 0.1, "INFONCE") for other in (-0.5, 0.9)]
    assert competing[0].item() != pytest.approx(competing[1].item())


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="INFONCE_DECOUPLE.*'TRIPLET'"):
        routing_loss(SCORES, POSITIVES, 0.1, "TRIPLET")


def routing_of(scores):
    nothing = torch.zeros(0)
    return Routing(doc_indices=nothing, scores=nothing, doc_scores=scores, chunk_scores=nothing)


def test_mean_over_layers_and_rows_with_positives():
    routing = {2: routing_of(SCORES), 3: routing_of(SCORES.flip(1).flip(1) * 0.5)}
    positives = [row.nonzero().flatten().tolist() for row in POSITIVES]
    loss = routing_loss_over_layers(routing, positives, torch.tensor(0.1), "INFONCE")
    rows = [
        loss_by_hand(scores, wanted, 0.1, "INFONCE")
        for layer in routing.values()
        for row, (scores, wanted) in enumerate(zip(layer.doc_scores.tolist(), POSITIVES.tolist(), strict=True))
        if row not in (3, 5)  # no positive that they can see
    ]
    assert loss.item() == pytest.approx(sum(rows) / len(rows), rel=1e-4)


def test_temperature_is_clamped_and_not_trained():
    routing, positives = {2: routing_of(SCORES[:1])}, [[0]]
    temperature = torch.tensor(7.0, requires_grad=True)
    loss = routing_loss_over_layers(routing, positives, temperature, "INFONCE")
    assert loss.item() == pytest.approx(loss_by_hand(SCORES[0].tolist(), [1, 0, 0, 0, 0], 0.5, "INFONCE"))
    assert not loss.requires_grad


def test_no_positives_at_all_is_zero_and_connected():
    scores = SCORES.clone().requires_grad_()
    loss = routing_loss_over_layers({2: routing_of(scores)}, [[]] * 6, torch.tensor(0.1), "INFONCE_DECOUPLE")
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


@pytest.mark.parametrize(
    ("layers", "positives", "message"),
    [(0, [[0]], "needs a memory"), (1, [[0], [1]], "1 rows, 2 lists"), (1, [[5]], "0..4"), (1, [[-1]], "0..4")],
)
def test_bad_positives_are_refused(layers, positives, message):
    routing = {layer: routing_of(SCORES[:1]) for layer in range(layers)}
    with pytest.raises(ValueError, match=message):
        routing_loss_over_layers(routing, positives, torch.tensor(0.1), "INFONCE")


def test_next_token_loss_is_the_mean_over_labelled_targets():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 11, requires_grad=True)
    labels = torch.tensor([[3, -100, 7, 1, -100], [-100, -100, -100, -100, 10]])
    log_p = logits.detach().log_softmax(-1)
    terms = [-log_p[row, t, labels[row, t + 1]] for row in range(2) for t in range(4) if labels[row, t + 1] != -100]
    assert len(terms) == 3
    torch.testing.assert_close(next_token_loss(logits, labels), torch.stack(terms).mean())
    nothing = next_token_loss(logits, torch.full((2, 5), -100))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()
