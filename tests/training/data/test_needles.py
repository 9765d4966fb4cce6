"""Made-up memories: RULER's sentences, and every question's documents really answer it."""

import re
from collections import Counter

import pytest

from msa.training.data.needles import KINDS, NOT_IN_MEMORY, NeedleConfig, NeedleWorlds, keys_of
from msa.training.data.samples import TrainingSet

ADJECTIVES = [f"{letter}{other}ing" for letter in "abcdefgh" for other in "klmnop"]
NOUNS = [f"{letter}{other}one" for letter in "qrstuvwx" for other in "klmnop"]
HAYSTACK = [
    "The grass is green.",
    "The sky is blue.",
    "Here we go.",
    "A river ran past the old mill and on to the sea.",
]
NEEDLE = re.compile(r"One of the special magic (word|number|uuid)s for (\S+) is: (\S+)\.")
ONE = re.compile(r"What is the special magic (word|number|uuid) for (\S+) mentioned in the provided text\?")
TWO = re.compile(
    r"What is the special magic (word|number|uuid) for the special magic word for (\S+) mentioned in the provided text\?"
)
SHAPES = {
    "word": re.compile(r"[a-z]+-[a-z]+"),
    "number": re.compile(r"[1-9]\d{6}"),
    "uuid": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
}
MIXED = NeedleConfig(documents=40, questions=40, max_filler=30, two_hop=0.3, unanswerable=0.2)


@pytest.fixture(scope="module")
def worlds():
    return NeedleWorlds(ADJECTIVES, NOUNS, HAYSTACK)


@pytest.fixture(scope="module")
def many(worlds):
    """A few memories of mixed questions, in one of which documents hold several needles each."""
    crowded = NeedleConfig(documents=3, questions=30, max_filler=5, two_hop=0.5)
    return [*(worlds.world(MIXED, seed) for seed in range(5)), worlds.world(crowded, 0)]


def needles_of(training_set: TrainingSet) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(kind, key) → (document, value) of every needle."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, text in training_set.corpus.items():
        for kind, key, value in NEEDLE.findall(text):
            found.setdefault((kind, key), []).append((name, value))
    return found


def samples_of(many, source):
    pairs = [(world, sample) for world in many for sample in world.samples if sample.source.startswith(source)]
    assert len(pairs) > 10
    return pairs


def test_the_same_seed_makes_the_same_memory_and_another_seed_another(worlds):
    first, again = worlds.world(MIXED, "7 x"), worlds.world(MIXED, "7 x")
    assert (first.corpus, first.samples) == (again.corpus, again.samples)
    assert again.corpus == NeedleWorlds(ADJECTIVES, NOUNS, HAYSTACK).world(MIXED, "7 x").corpus
    assert first.corpus != worlds.world(MIXED, "8 x").corpus
    assert not keys_of(first) & {k for k in keys_of(worlds.world(MIXED, 1)) if not SHAPES["word"].fullmatch(k)}


def test_a_plain_question_is_answered_by_its_document(many):
    for world, sample in (pair for kind in KINDS for pair in samples_of(many, f"needle/{kind}")):
        kind, key = ONE.fullmatch(sample.query).groups()
        assert needles_of(world)[kind, key] == [(sample.positives[0], sample.answer)]
        assert len(sample.positives) == 1
        assert SHAPES[kind].fullmatch(sample.answer)
        assert SHAPES[sample.source.removeprefix("needle/")].fullmatch(key)
        assert f"{sample.quotation}: {sample.answer}." in world.corpus[sample.positives[0]]


def test_two_hops_lead_from_the_first_document_to_the_second(many):
    together = 0
    for world, sample in samples_of(many, "needle/two-hop"):
        kind, key = TWO.fullmatch(sample.query).groups()
        needles = needles_of(world)
        [(first, middle)] = needles["word", key]
        [(second, value)] = needles[kind, middle]
        assert value == sample.answer
        assert sample.hops == (((first,),) if first == second else ((first,), (second,)))
        assert sample.positives == tuple(dict.fromkeys((first, second)))
        assert middle not in sample.query
        assert sample.quotation == f" for {key} is: {middle} is"
        together += first == second
    assert 0 < together < 15  # two needles in one document are found in one step


def test_what_cannot_be_answered_is_nowhere_in_the_memory(many):
    for world, sample in samples_of(many, "needle/unanswerable"):
        _, key = ONE.fullmatch(sample.query).groups()
        assert key not in " ".join(world.corpus.values())
        assert (sample.positives, sample.hops, sample.answer) == ((), (), NOT_IN_MEMORY)
        assert sample.quotation == f" for {key} mentioned"


def test_keys_are_distinct_and_their_ids_known(many):
    for world in many:
        keys = [key for _, key in needles_of(world)]
        assert len(keys) == len(set(keys))
        assert set(keys) == keys_of(world)
        assert list(world.unknown_ids()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_twins_differ_from_their_key_in_one_part(worlds, kind):
    settings = {"two_hop": 0.0, "unanswerable": 0.0, "distractors": 0.0, "key_kinds": (kind,)}
    plain = worlds.world(NeedleConfig(hard_negatives=0.0, **settings), 0)
    assert len(keys_of(plain)) == len(plain.samples)
    world = worlds.world(NeedleConfig(hard_negatives=1.0, **settings), 0)
    asked = {ONE.fullmatch(sample.query)[2] for sample in world.samples}
    twins = keys_of(world) - asked
    assert len(twins) > 20
    for twin in twins:
        assert SHAPES[kind].fullmatch(twin)
        assert any(is_twin(twin, key, kind) for key in asked)


def is_twin(one, other, kind):
    if kind == "word":
        return sum(a != b for a, b in zip(one.split("-"), other.split("-"), strict=True)) == 1
    return sum(a != b for a, b in zip(one, other, strict=True)) == 1


def test_a_twin_has_a_value_of_its_own(worlds):
    world = worlds.world(NeedleConfig(hard_negatives=1.0, two_hop=0.0, unanswerable=0.0, value_kinds=("uuid",)), 3)
    values = Counter(value for places in needles_of(world).values() for _, value in places)
    assert set(values.values()) == {1}


def test_shares_of_kinds_of_questions_are_kept(worlds):
    sources = Counter(sample.source.split("/")[1] for sample in worlds.world(MIXED, 0).samples)
    assert sources["two-hop"] == 12
    assert sources["unanswerable"] == 8
    assert sum(sources[kind] for kind in KINDS) == 20
    order = [sample.source for sample in worlds.world(MIXED, 0).samples]
    assert order != sorted(order)


def test_plain_documents_hold_no_needle_while_there_is_room_elsewhere(worlds):
    config = NeedleConfig(documents=60, questions=10, plain_documents=0.25, distractors=1.0, hard_negatives=0.0)
    world = worlds.world(config, 0)
    without = [name for name, text in world.corpus.items() if not NEEDLE.search(text)]
    assert without == [str(number) for number in range(15)]


def test_distractors_are_needles_that_nobody_asks_for(worlds):
    settings = {"documents": 50, "questions": 10, "hard_negatives": 0.0, "two_hop": 0.0, "unanswerable": 0.0}
    none, half = (worlds.world(NeedleConfig(distractors=share, **settings), 0) for share in (0.0, 0.5))
    assert len(keys_of(none)) == 10
    assert len(keys_of(half)) == 10 + (45 - 10) // 2
    assert half.samples == none.samples


def test_keys_to_avoid_are_avoided(worlds):
    config = NeedleConfig(
        key_kinds=("number",), number_digits=2, questions=20, two_hop=0.0, hard_negatives=0.0, distractors=0.0
    )
    avoid = {str(number) for number in range(10, 80)}
    world = worlds.world(config, 0, avoid)
    assert len(keys_of(world)) == 18
    assert not keys_of(world) & avoid
    assert avoid == {str(number) for number in range(10, 80)}


def test_too_few_keys_are_an_error(worlds):
    config = NeedleConfig(key_kinds=("number",), number_digits=1, questions=30, two_hop=0.0)
    with pytest.raises(ValueError, match="cannot draw another distinct number of at most 1 digits"):
        worlds.world(config, 0)


def test_documents_are_about_as_long_as_asked_for(worlds):
    world = worlds.world(NeedleConfig(documents=50, min_filler=20, max_filler=40, questions=10), 0)
    for text in world.corpus.values():
        assert 20 <= len(NEEDLE.sub("", text).split()) <= 40
    short = worlds.world(NeedleConfig(documents=50, min_filler=0, max_filler=0, questions=10), 0)
    assert all(text.strip() for text in short.corpus.values())  # a document without a needle is never empty


def test_empty_lists_are_refused():
    with pytest.raises(ValueError, match="one of the lists is empty"):
        NeedleWorlds(ADJECTIVES, [], HAYSTACK)


def test_values_may_be_shorter_numbers_than_keys(worlds):
    config = NeedleConfig(key_kinds=("number",), value_kinds=("number",), number_digits=5, value_digits=2, two_hop=0)
    for sample in worlds.world(config, 3).samples:
        if sample.positives:
            assert re.fullmatch(r"\d\d", sample.answer)
            assert re.search(r"for \d{5} mentioned", sample.query)


@pytest.mark.parametrize("kind", KINDS)
def test_alike_keys_are_near_twins_of_each_other(worlds, kind):
    settings = {"key_kinds": (kind,), "hard_negatives": 0.0, "two_hop": 0.0, "distractors": 0.0}
    apart, alike = (keys_of(worlds.world(NeedleConfig(alike=share, **settings), 5)) for share in (0.0, 1.0))
    assert nearest_parts(alike, kind) < nearest_parts(apart, kind)
    if kind == "word":
        adjectives, nouns = zip(*(key.split("-") for key in alike), strict=True)
        assert max(len(set(adjectives)), len(set(nouns))) <= 13
    else:
        assert max(differences(one, other) for one in alike for other in alike) <= 4


def test_invented_words_begin_and_end_like_words_and_are_none(worlds):
    settings = {"key_kinds": ("word",), "value_kinds": ("word",), "two_hop": 0.0, "unanswerable": 0.0}
    invented = worlds.world(NeedleConfig(invented=1.0, **settings), 5)
    known = worlds.world(NeedleConfig(**settings), 5)
    for memory, least, most in ((invented, 0.0, 0.7), (known, 1.0, 1.0)):
        adjectives, nouns = zip(*(key.split("-") for key in keys_of(memory)), strict=True)
        values = [sample.answer.split("-") for sample in memory.samples]
        assert least <= sum(word in ADJECTIVES for word in adjectives) / len(adjectives) <= most
        assert least <= sum(value[1] in NOUNS for value in values) / len(values) <= most
        assert {word[0] for word in nouns} <= {noun[0] for noun in NOUNS}
        assert {word[-1] for word in adjectives} <= {adjective[-1] for adjective in ADJECTIVES}
        for sample in memory.samples:
            assert sample.answer in memory.corpus[sample.positives[0]]


def differences(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True))


def nearest_parts(keys, kind):
    """Mean over keys of the parts in which the most similar other key differs."""
    split = [key.split("-") if kind == "word" else list(key) for key in keys]
    nearest = [min(differences(one, other) for other in split if other is not one) for one in split]
    return sum(nearest) / len(nearest)


def test_a_sample_names_the_document_of_its_twin(worlds):
    world = worlds.world(NeedleConfig(hard_negatives=1.0, two_hop=0.0, unanswerable=0.3, key_kinds=("word",)), 1)
    named = [sample for sample in world.samples if sample.documents]
    assert len(named) > 0.9 * len(world.samples)
    for sample in named:
        key = ONE.fullmatch(sample.query)[2]
        (document,) = sample.documents
        assert any(is_twin(other, key, "word") for _, other, _ in NEEDLE.findall(world.corpus[document]))
