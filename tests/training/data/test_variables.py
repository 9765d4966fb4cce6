"""Variable tracking: chains that can be followed document by document."""

import re

import pytest

from msa.training.data.variables import VariableConfig, variable_world

HAYSTACK = ["The grass is green.", "There and back again, as the old song has it.", "Here we go."]


def test_a_seed_gives_one_world_and_another_seed_another():
    config = VariableConfig()
    assert variable_world(config, HAYSTACK, 1) == variable_world(config, HAYSTACK, 1)
    assert variable_world(config, HAYSTACK, 1) != variable_world(config, HAYSTACK, 2)


@pytest.mark.parametrize("hops", [0, 1, 4])
def test_every_chain_leads_from_its_value_to_all_its_variables(hops):
    config = VariableConfig(documents=20, questions=4, hops=hops)
    world = variable_world(config, HAYSTACK, 7)
    assert (len(world.corpus), len(world.samples)) == (20, 4)
    for sample in world.samples:
        assert len(sample.steps) == hops + 1
        wanted = re.search(r"value (\d{5}) ", sample.query)[1]
        found = []
        for (document,) in sample.steps:
            name, source = re.search(r"VAR ([A-Z]{5}) = (\S+(?: [A-Z]{5})?)\.", world.corpus[document]).groups()
            assert source == wanted
            found.append(name)
            wanted = f"VAR {name}"
        assert sample.answer == ", ".join(found)


def test_only_chains_documents_assign_and_all_have_text():
    world = variable_world(VariableConfig(documents=30, questions=2, hops=2), HAYSTACK, 3)
    assigning = {name for name, text in world.corpus.items() if "VAR" in text}
    assert assigning == {document for sample in world.samples for document in sample.positives}
    assert all(text.strip() for text in world.corpus.values())


def test_more_assignments_than_documents_are_refused():
    with pytest.raises(ValueError, match="need as many documents"):
        VariableConfig(documents=5, questions=2, hops=2)


def test_an_empty_haystack_is_refused():
    with pytest.raises(ValueError, match="haystack"):
        variable_world(VariableConfig(), [], 0)
