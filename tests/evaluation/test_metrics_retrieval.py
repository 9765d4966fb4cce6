import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa.evaluation.metrics import (
    all_hops_found,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
    retrieval_f1,
)

IDS = st.lists(st.sampled_from("abcdefgh"), max_size=8)


def test_known_values():
    found, wanted = ["x", "a", "y", "b"], {"a", "b", "c"}
    assert recall_at(found, wanted) == pytest.approx(2 / 3)
    assert recall_at(found, wanted, 2) == pytest.approx(1 / 3)
    assert precision_at(found, wanted) == 0.5
    assert precision_at(found, wanted, 3) == pytest.approx(1 / 3)
    assert precision_at(found, wanted, 8) == 0.25
    assert retrieval_f1(found, wanted) == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert reciprocal_rank(found, wanted) == 0.5
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg_at(found, wanted) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert ndcg_at(found, wanted, 2) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


def test_recall_divides_by_all_positives_whatever_k():
    assert recall_at(["a"], {"a", "b", "c", "d"}, 1) == 0.25


def test_nothing_retrieved():
    for score in (recall_at, precision_at, retrieval_f1, reciprocal_rank, ndcg_at):
        assert score([], {"a"}) == 0.0
    assert all_hops_found([], [["a"]]) == 0.0


def test_an_id_retrieved_twice_counts_once():
    assert precision_at(["a", "a", "a", "x"], {"a"}) == 0.5
    assert recall_at(["a", "a", "b"], {"a", "b"}, 2) == 1.0
    assert ndcg_at(["a", "a"], {"a"}) == 1.0


def test_graded_gains():
    # by hand: DCG = 1 + 3/log2(3), ideal = 3 + 1/log2(3)
    assert ndcg_at(["b", "a"], {"a": 3, "b": 1, "c": 0, "d": -1}) == pytest.approx(
        (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    )
    assert ndcg_at(["d", "a"], {"a": 1, "d": -5}) == pytest.approx(1 / math.log2(3))


def test_hops():
    hops = [["a"], ["b", "c"]]
    assert all_hops_found(["c", "b", "a"], hops) == 1.0
    assert all_hops_found(["a", "b"], hops) == 0.0
    assert all_hops_found(["a", "x", "b", "c"], hops, 3) == 0.0


@pytest.mark.parametrize("score", [recall_at, precision_at, retrieval_f1, reciprocal_rank, ndcg_at])
def test_what_cannot_be_scored_is_an_error(score):
    with pytest.raises(ValueError, match="Leave the question out"):
        score(["a"], [])
    with pytest.raises(ValueError, match="k of at least 1, found 0"):
        score(["a"], ["a"], 0)
    with pytest.raises(TypeError, match="put it into a list"):
        score(["a"], "a")


def test_hops_and_gains_that_cannot_be_scored():
    for hops in ([], [["a"], []]):
        with pytest.raises(ValueError, match="Leave the question out"):
            all_hops_found(["a"], hops)
    with pytest.raises(ValueError, match="Leave the question out"):
        ndcg_at(["a"], {"a": 0})
    with pytest.raises(ValueError, match="finite gains"):
        ndcg_at(["a"], {"a": math.nan})


@given(IDS, st.sets(st.sampled_from("abcdefgh"), min_size=1), st.integers(1, 9))
def test_bounds_and_order(found, wanted, k):
    for score in (recall_at, precision_at, retrieval_f1, reciprocal_rank, ndcg_at):
        assert 0.0 <= score(found, wanted, k) <= 1.0 + 1e-12
    assert recall_at(found, wanted, k) <= recall_at(found, wanted, k + 1)
    assert all_hops_found(found, [[name] for name in wanted], k) == float(recall_at(found, wanted, k) == 1.0)
    assert ndcg_at(list(wanted), wanted, len(wanted)) == pytest.approx(1.0)
