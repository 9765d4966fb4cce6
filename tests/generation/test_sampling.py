"""Drawing tokens: greedy, temperature, top-k and top-p, and what a seed promises."""

import re
from collections import Counter

import numpy as np
import pytest
import torch

from msa.generation.options import AskOptions
from msa.generation.sampling import Sampling, sample

LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.5, 0.5])  # order: 1, 3, 4, 0, 2


def draws(sampling, logits=LOGITS, times=300):
    generator = sampling.generator()
    return [sample(logits, sampling, generator) for _ in range(times)]


def test_greedy_is_the_default_and_needs_no_randomness():
    assert Sampling().generator() is None
    assert set(draws(Sampling(), times=5)) == {1}


def test_frequencies_follow_the_tempered_softmax():
    counts = Counter(draws(Sampling(temperature=2.0, seed=0), times=4000))
    expected = (LOGITS / 2).softmax(-1)
    for token, probability in enumerate(expected.tolist()):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 1e-6}, {1}),
        ({"top_p": 1e-300}, {1}),  # nothing, in the precision of the probabilities
        ({"top_p": 0.5}, {1, 3}),  # probabilities 0.47, 0.28, 0.10, 0.07, 0.02 at temperature 1
        ({"top_p": 0.4}, {1}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 3, "top_p": 0.7}, {1, 3}),
    ],
    ids=str,
)
def test_what_can_be_drawn(options, possible):
    assert set(draws(Sampling(temperature=1.0, seed=1, **options))) == possible


def test_top_p_counts_probabilities_after_top_k():
    """Of the two tokens top-k leaves, the first holds 0.62: top-p 0.6 keeps it alone."""
    assert set(draws(Sampling(temperature=1.0, seed=1, top_k=2, top_p=0.6))) == {1}
    assert set(draws(Sampling(temperature=1.0, seed=1, top_p=0.6))) == {1, 3}


def test_a_seed_repeats_and_other_rows_do_not_disturb_it():
    sampling = Sampling(temperature=1.0, seed=7)
    alone = draws(sampling, times=50)
    mine, other = sampling.generator(), Sampling(temperature=1.0, seed=8).generator()
    interleaved, others = [], []
    for _ in range(50):
        others.append(sample(LOGITS, sampling, other))
        interleaved.append(sample(LOGITS, sampling, mine))
    assert interleaved == alone != others


def test_without_a_seed_every_generator_is_fresh():
    sampling = Sampling(temperature=5.0)
    assert draws(sampling, times=60) != draws(sampling, times=60)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    sampling = Sampling(temperature=1.0, seed=3)
    assert draws(sampling, LOGITS.to(dtype)) == draws(sampling, LOGITS.to(dtype).float())


def test_hidden_tokens_are_never_drawn():
    logits = LOGITS.clone()
    logits[[1, 3]] = float("-inf")
    assert draws(Sampling(), logits, times=1) == [4]
    assert set(draws(Sampling(temperature=100.0, seed=0), logits)) == {0, 2, 4}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40])
def test_tiny_temperatures_are_nearly_greedy(temperature):
    assert set(draws(Sampling(temperature=temperature, seed=0), times=10)) == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": 101},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": "hot"},
        {"temperature": None},
        {"temperature": True},
        {"top_p": "0.5"},
        {"top_p": [1.0]},
        {"top_k": 2.5},
        {"top_k": "3"},
        {"top_k": None},
        {"seed": True},
        {"seed": 1.0},
        {"seed": "7"},
    ],
    ids=str,
)
def test_values_of_another_type_are_refused_by_name(options):
    name, value = next(iter(options.items()))
    with pytest.raises(TypeError, match=f"{name} must be a .*number, got {re.escape(repr(value))}"):
        Sampling(**options)


def test_numbers_of_other_libraries_are_numbers():
    mine = Sampling(temperature=np.float32(1.0), top_p=np.float64(0.9), top_k=np.int64(3), seed=np.int64(5))
    assert draws(mine, times=20) == draws(Sampling(temperature=1.0, top_p=0.9, top_k=3, seed=5), times=20)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": "3"},
        {"max_new_tokens": None},
        {"max_new_tokens": True},
        {"max_rounds": 1.0},
        {"max_documents": "all"},
        {"reread_documents": 2.5},
        {"routed_context_tokens": None},
    ],
    ids=str,
)
def test_options_of_another_type_are_refused_by_name(options):
    name, value = next(iter(options.items()))
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got {re.escape(repr(value))}"):
        AskOptions(**options)


def test_a_sampling_that_is_none_is_refused():
    with pytest.raises(TypeError, match="sampling must be a Sampling"):
        AskOptions(sampling={"temperature": 1.0})
