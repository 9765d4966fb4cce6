import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa.evaluation import statistics
from msa.evaluation.statistics import (
    bootstrap_mean,
    cohen_kappa,
    correlation,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_permutation,
    wilson_interval,
)


def pairs(only_first, only_second, both=0, neither=0):
    first = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    return first, second


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (1, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 2 / 64),
        (1, 9, 2 * 11 / 1024),
        (10, 2, 2 * 79 / 4096),  # 1 + 12 + 66
        (59, 6, sum(math.comb(65, wins) for wins in range(7)) / 2**64),
    ],
)
def test_mcnemar_by_hand(only_first, only_second, p_value):
    assert mcnemar(*pairs(only_first, only_second)) == pytest.approx(p_value)
    assert mcnemar(*pairs(only_second, only_first, both=7, neither=3)) == mcnemar(*pairs(only_first, only_second))


def test_mcnemar_of_many_questions():
    assert mcnemar(*pairs(0, 0, both=3)) == 1.0
    assert mcnemar(*pairs(2_000, 2_000)) == 1.0
    assert 0.0 <= mcnemar(*pairs(3_000, 0)) < 1e-300


def test_mcnemar_takes_right_and_wrong_only():
    with pytest.raises(ValueError, match=r"found 0\.5"):
        mcnemar([0.5], [1])
    assert mcnemar([True, False], [1.0, 0.0]) == 1.0


def test_permutation_counts_all_swaps_of_few_questions():
    # 3 differences of one sign: 2 of 8 swaps are as extreme
    assert paired_permutation([0, 0, 0], [1, 2, 3]) == 0.25
    assert paired_permutation([1, 2, 3], [0, 0, 0]) == 0.25
    # 0.1 + 0.2 - 0.3 is not 0 in floating point, and must count as equal
    assert paired_permutation([0, 0, 0.3], [0.1, 0.2, 0]) == 1.0
    assert paired_permutation([1.0], [1.0]) == 1.0


def test_permutation_by_draws_is_near_the_exact_value():
    first = [0.1, 0.5, 0.3, 0.9, 0.2, 0.6, 0.7, 0.4, 0.35, 0.8, 0.15, 0.55]
    second = [0.3, 0.6, 0.2, 1.0, 0.5, 0.6, 0.9, 0.3, 0.55, 0.95, 0.25, 0.5]
    exact = paired_permutation(first, second, num_resamples=2**12)
    drawn = paired_permutation(first, second, num_resamples=4_000)
    assert exact != drawn
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 4_000))
    assert drawn == paired_permutation(first, second, num_resamples=4_000)
    assert drawn != paired_permutation(first, second, num_resamples=4_000, seed=1)


def test_permutation_is_never_0():
    assert paired_permutation([0.0] * 60, [1.0] * 60, num_resamples=999) == 0.001


def test_blocks_do_not_change_the_bounds(monkeypatch):
    values = [0.0, 0.5, 1.0, 0.25, 0.75] * 8
    whole = bootstrap_mean(values)
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 1_000)
    parts = bootstrap_mean(values)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.02)
    assert 0 < paired_permutation(values, values[::-1], num_resamples=500) <= 1


def test_bootstrap_is_near_the_normal_interval():
    values = [(number % 100) / 99 for number in range(1_000)]
    interval = bootstrap_mean(values)
    half = 1.96 * math.sqrt(sum((value - 0.5) ** 2 for value in values) / len(values) / len(values))
    assert interval.mean == pytest.approx(0.5)
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half), abs=half / 10)
    wider = bootstrap_mean(values, confidence=0.99)
    assert wider.low < interval.low < interval.high < wider.high
    assert bootstrap_mean(values) == interval != bootstrap_mean(values, seed=1)


def test_the_interval_of_a_mean_is_that_of_its_values():
    assert mean_interval([1.0, 0.0, 1.0, 1.0]) == wilson_interval(3, 4)
    assert mean_interval([True, False]) == wilson_interval(1, 2)
    shares = [number / 7 for number in range(8)] * 5
    assert mean_interval(shares) == bootstrap_mean(shares)
    assert mean_interval(shares, seed=1) == bootstrap_mean(shares, seed=1) != mean_interval(shares)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_holm_by_hand():
    assert statistics.holm([]) == []
    assert statistics.holm([0.5]) == [0.5]
    assert statistics.holm([0.25, 0.5, 0.03125, 0.125]) == [0.5, 0.5, 0.125, 0.375]
    assert statistics.holm([0.5, 0.75]) == [1.0, 1.0]
    assert statistics.holm([0.25, 0.3]) == [0.5, 0.5]  # never below that of a smaller value
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="expected p-values between 0 and 1"):
            statistics.holm([wrong])


def test_difference():
    first, second = [0.0, 0.2, 0.4] * 20, [0.1, 0.3, 0.5] * 20
    difference = paired_difference(first, second, num_resamples=500)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert difference.p_value == pytest.approx(1 / 501)
    assert paired_difference(second, first, num_resamples=500).mean == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(successes, trials, low, high):
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(trials - successes, trials)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_rate(trials, data):
    successes = data.draw(st.integers(0, trials))
    interval = wilson_interval(successes, trials)
    assert 0.0 <= interval.low <= interval.mean <= interval.high <= 1.0
    assert interval.low < interval.high


def test_kappa():
    # by hand: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: agreement 0.7, by chance 0.5
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa([1, 0], [0, 1]) == -1.0
    assert cohen_kappa([1, 1], [1, 1]) is None
    assert cohen_kappa([1, 1], [1, 0]) == 0.0


def test_correlation():
    assert correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert correlation([0.1] * 3, [1, 2, 3]) is None


@pytest.mark.parametrize("function", [mcnemar, paired_permutation, paired_difference, cohen_kappa, correlation])
def test_pairs_must_be_pairs(function):
    for first, second in (([], []), ([1], [1, 0])):
        with pytest.raises(ValueError, match="two values for each"):
            function(first, second)


def test_other_mistakes():
    for values in ([math.nan], [1, math.inf]):
        with pytest.raises(ValueError, match="finite"):
            bootstrap_mean(values)
        with pytest.raises(ValueError, match="finite"):
            paired_permutation(values, values)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([])
    for successes, trials in ((0, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="at least one trial"):
            wilson_interval(successes, trials)
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="between 0 and 1"):
            wilson_interval(1, 2, confidence=confidence)
        with pytest.raises(ValueError, match="between 0 and 1"):
            bootstrap_mean([1], confidence=confidence)
    with pytest.raises(ValueError, match="num_resamples"):
        paired_permutation([1], [0], num_resamples=0)
