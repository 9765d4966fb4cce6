import json

import pytest

from msa.documents.json_values import MAX_NESTING, json_problem


def nested(levels, leaf=1):
    value = leaf
    for level in range(levels):
        value = {"k": value} if level % 2 else [value]
    return value


@pytest.mark.parametrize("leaf", [1, "text", None, [], {}])
def test_nesting_up_to_the_limit(leaf):
    levels = MAX_NESTING - isinstance(leaf, list | dict)
    assert json_problem(nested(levels, leaf)) is None
    assert json.loads(json.dumps(nested(levels, leaf))) == nested(levels, leaf)
    for more in (1, 1000, 100_000):
        assert (
            json_problem(nested(levels + more, leaf))
            == f"lists and objects are nested more than {MAX_NESTING} levels deep"
        )


def test_values_that_contain_themselves_end():
    value = {}
    value["one"] = value["other"] = [value, value]
    assert "levels deep" in json_problem(value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(number):
    assert json_problem({"a": [0.5, ({"b": number},)]}) == f"{number} is not a number of JSON"
    assert json_problem({"a": [0.5, 1e308, -0.0, True, 2**80]}) is None
