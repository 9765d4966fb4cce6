"""Training routers on cached states: the scores are the routing's own, recall rises, and every run is the same."""

import dataclasses
import math

import pytest
import torch
from tiny import tiny_lm

from msa.errors import TrainingError
from msa.ops import RoutingSpec
from msa.ops.route import route_naive
from msa.training import router_warmup
from msa.training.router_scores import (
    RouterMaps,
    evaluate_routers,
    recall_table,
    router_maps,
    score_pool,
    set_router_maps,
)
from msa.training.router_states import LayerStates
from msa.training.router_warmup import RouterWarmupConfig, TeacherScores, mine_hard_documents, train_router_layer

HIDDEN, HEAD_DIM = 24, 8
QUICK = RouterWarmupConfig(steps=40, batch_questions=16, random_documents=20, hard_documents=0, learning_rate=0.1)


def offsets_of(counts):
    return torch.nn.functional.pad(torch.as_tensor(counts).cumsum(0), (1, 0))


def random_maps(seed=0, num_heads=6, num_kv_heads=2):
    generator = torch.Generator().manual_seed(seed)
    return RouterMaps(
        torch.randn(num_heads * HEAD_DIM, HIDDEN, generator=generator),
        torch.randn(num_kv_heads * HEAD_DIM, HIDDEN, generator=generator),
        HEAD_DIM,
    )


def toy(num_documents=60, num_questions=200, seed=0):
    """Questions see a rotated copy of their document's state among noise: a linear map can learn it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    chunk_counts = torch.randint(1, 4, (num_documents,), generator=generator)
    token_counts = torch.randint(2, 6, (num_questions,), generator=generator)
    chunks, tokens = draw(int(chunk_counts.sum()), HIDDEN), 0.3 * draw(int(token_counts.sum()), HIDDEN)
    rotation = torch.linalg.qr(draw(HIDDEN, HIDDEN))[0]
    relevant = [[int(i)] for i in torch.randint(num_documents, (num_questions,), generator=generator)]
    starts = offsets_of(chunk_counts)
    for question, (first, documents) in enumerate(zip(offsets_of(token_counts), relevant, strict=False)):
        tokens[first + question % 2] += chunks[starts[documents[0]]] @ rotation
    return LayerStates(chunks.bfloat16(), starts, tokens.bfloat16(), offsets_of(token_counts)), relevant


def recall(states, maps, relevant, k=1):
    scores = score_pool(states, maps, range(len(relevant)))
    return recall_table(scores, relevant, [""] * len(relevant))["all"][f"recall@{k}"]


class OneLayer:
    """The same states for every layer."""

    def __init__(self, states):
        self.states = states

    def layer(self, layer):
        return self.states


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 2), (3, 3), (4, 1)])
def test_scores_are_those_of_naive_routing(num_heads, num_kv_heads):
    states, relevant = toy()
    maps = random_maps(1, num_heads, num_kv_heads)
    scores = score_pool(states, maps, range(len(relevant)))
    longest = int(states.token_offsets.diff().max())
    mask = torch.arange(longest) < states.token_offsets.diff()[:, None]
    tokens = torch.zeros(*mask.shape, HIDDEN)
    tokens[mask] = states.tokens.float()
    expected = route_naive(
        (tokens @ maps.query.T).unflatten(-1, (-1, HEAD_DIM)),
        mask,
        (states.chunks.float() @ maps.key.T).unflatten(-1, (-1, HEAD_DIM)),
        states.chunk_offsets,
        RoutingSpec(),
        top_k=1,
    )
    torch.testing.assert_close(scores, expected.doc_scores)


def test_blocks_do_not_change_scores(monkeypatch):
    states, _ = toy()
    whole = score_pool(states, random_maps(), [5, 3, 70])
    monkeypatch.setattr("msa.training.router_scores._BLOCK_TOKENS", 1)
    torch.testing.assert_close(score_pool(states, random_maps(), [5, 3, 70]), whole)
    assert whole.shape == (3, 60)


def test_training_raises_recall_also_on_questions_it_has_not_seen():
    states, relevant = toy()
    trained = train_router_layer(states, relevant, random_maps(), QUICK, questions=range(160)).maps
    before, after = (
        evaluate_routers(OneLayer(states), {2: maps}, relevant, ["toy"] * 200, range(160, 200))["mean"]["toy"]
        for maps in (random_maps(), trained)
    )
    assert after["recall@1"] > before["recall@1"] + 0.2
    assert after["recall@16"] > before["recall@16"] + 0.3


def test_the_loss_falls():
    states, relevant = toy()
    losses = train_router_layer(states, relevant, random_maps(), QUICK).losses
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_same_seed_trains_the_same_routers():
    states, relevant = toy()
    config = dataclasses.replace(QUICK, steps=6, hard_documents=2)
    first, again = (train_router_layer(states, relevant, random_maps(), config) for _ in range(2))
    other = train_router_layer(states, relevant, random_maps(), dataclasses.replace(config, seed=1))
    assert first.losses == again.losses
    assert torch.equal(first.maps.query, again.maps.query)
    assert torch.equal(first.maps.key, again.maps.key)
    assert first.losses != other.losses


def test_the_start_is_not_changed_and_its_length_does_not_matter():
    states, relevant = toy()
    start = random_maps()
    longer = RouterMaps(start.query * 8, start.key * 0.25, HEAD_DIM)
    config = dataclasses.replace(QUICK, steps=3)
    first = train_router_layer(states, relevant, start, config)
    assert torch.equal(start.query, random_maps().query)
    second = train_router_layer(states, relevant, longer, config)
    torch.testing.assert_close(second.maps.query, first.maps.query, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second.maps.key, first.maps.key, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["chunks", "tokens"])
def test_a_loss_that_is_not_finite_stops_before_the_step(name, monkeypatch):
    states, relevant = toy()
    broken = dataclasses.replace(states, **{name: torch.full_like(getattr(states, name), math.nan)})
    steps = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: steps.append(1))
    with pytest.raises(TrainingError, match="step 1 is nan, not finite"):
        train_router_layer(broken, relevant, random_maps(), QUICK)
    assert steps == []
    with pytest.raises(TrainingError, match="not finite"):
        recall(broken, random_maps(), relevant)


def test_held_out_documents_are_never_negatives(monkeypatch):
    states, relevant = toy()
    relevant = [[i % 30] for i in range(200)]
    seen = []
    candidates = router_warmup._LayerTraining._candidates

    def watched(self, batch, docs):
        found = candidates(self, batch, docs)
        seen.extend(found.tolist())
        return found

    monkeypatch.setattr(router_warmup._LayerTraining, "_candidates", watched)
    config = dataclasses.replace(QUICK, steps=8, hard_documents=4)
    train_router_layer(states, relevant, random_maps(), config, negatives=range(40))
    assert set(seen) == set(range(40))


def test_mined_documents_are_the_best_wrong_ones():
    states, relevant = toy()
    relevant[7] = [3, 9]
    maps, allowed = random_maps(), torch.arange(50)
    mined = mine_hard_documents(states, maps, relevant, [7, 8], allowed, 5)
    scores = score_pool(states, maps, [7])[0]
    expected = [i for i in scores.argsort(descending=True).tolist() if i < 50 and i not in (3, 9)]
    assert mined[0].tolist() == expected[:5]
    few = mine_hard_documents(states, maps, relevant, [7], torch.tensor([3, 4]), 3)
    assert few.tolist() == [[4, -1, -1]]


def test_mining_changes_training_from_its_step_on():
    states, relevant = toy()
    plain = dataclasses.replace(QUICK, steps=8, random_documents=0)
    mined = dataclasses.replace(plain, hard_documents=8)
    first, second = (train_router_layer(states, relevant, random_maps(), c).losses for c in (plain, mined))
    assert first[:4] == second[:4]
    assert second[4] > first[4]


def test_a_teacher_is_imitated():
    states, relevant = toy()
    right = torch.tensor(relevant)
    other = (right + 1) % 60
    documents = torch.cat((right, other, torch.full_like(right, -1)), dim=1)
    documents[0] = -1
    teacher = TeacherScores(documents, torch.tensor([[0.0, 1.0, 9.0]]).expand(200, 3))
    config = dataclasses.replace(QUICK, distillation=10.0)

    def preferred(maps):
        scores = score_pool(states, maps, range(200))
        return float((scores.gather(1, other) > scores.gather(1, right)).float().mean())

    assert preferred(train_router_layer(states, relevant, random_maps(), config).maps) < 0.2
    assert preferred(train_router_layer(states, relevant, random_maps(), config, teacher=teacher).maps) > 0.8
    ignored = train_router_layer(states, relevant, random_maps(), QUICK, teacher=teacher)
    assert ignored.losses == train_router_layer(states, relevant, random_maps(), QUICK).losses
    with pytest.raises(ValueError, match="scored 200 questions, 199 are there"):
        train_router_layer(states, relevant[:199], random_maps(), config, teacher=teacher)


def test_recall_per_source_and_over_all():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.1], [0.1, 0.3, 0.2]])
    table = recall_table(scores, [[0], [2], [1, 0]], ["a", "a", "b"])
    assert table["a"] == {"questions": 2.0, "recall@1": 0.5, "recall@5": 1.0, "recall@16": 1.0}
    assert table["b"]["recall@1"] == 0.5
    assert table["mean of sources"]["recall@1"] == 0.5
    assert table["all"]["recall@1"] == pytest.approx(0.5)
    assert table["all"]["questions"] == 3


def test_evaluation_averages_layers_and_leaves_out_unanswerable_questions():
    states, relevant = toy()
    relevant[0] = []
    maps = {2: random_maps(1), 3: random_maps(2)}
    tables = evaluate_routers(OneLayer(states), maps, relevant, ["x"] * 100 + ["y"] * 100, range(200))
    assert list(tables) == ["layer 2", "layer 3", "mean"]
    asked = range(1, 200)
    mean = (score_pool(states, maps[2], asked) + score_pool(states, maps[3], asked)) / 2
    expected = recall_table(mean, relevant[1:], ["x"] * 99 + ["y"] * 100)
    assert tables["mean"] == expected
    assert tables["mean"]["x"]["questions"] == 99


def test_maps_go_into_a_model_and_out_again():
    lm = tiny_lm()
    maps = router_maps(lm, 3)
    doubled = RouterMaps(maps.query * 2, maps.key * 3, maps.head_dim)
    set_router_maps(lm, 3, doubled)
    assert torch.equal(router_maps(lm, 3).query, maps.query * 2)
    assert torch.equal(router_maps(lm, 3).key, maps.key * 3)
    with pytest.raises(ValueError, match="paper's reductions"):
        router_maps(tiny_lm(query_reduce="last"), 3)
    with pytest.raises(ValueError, match="decoupled"):
        router_maps(tiny_lm(decouple_router=False), 3)


def test_questions_without_relevant_documents_teach_nothing():
    states, relevant = toy()
    with pytest.raises(ValueError, match="nothing to learn from"):
        train_router_layer(states, [[]] * 200, random_maps(), QUICK)
    relevant[3] = []
    assert len(train_router_layer(states, relevant, random_maps(), dataclasses.replace(QUICK, steps=2)).losses) == 2


def test_steps_are_counted_from_epochs():
    assert RouterWarmupConfig(epochs=2, batch_questions=16).num_steps(100) == 13
    assert RouterWarmupConfig(epochs=2, steps=7).num_steps(100) == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "L2"},
        {"learning_rate": 0.0},
        {"temperature": -1.0},
        {"steps": 0},
        {"random_documents": -1},
        {"hard_documents": 17},
        {"mine_after": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RouterWarmupConfig(**wrong)
