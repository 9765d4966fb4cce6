"""Samples: sized to what was asked, the same from the same settings, with every needle where RULER would put it."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa.evaluation.haystack import NOISE_LINE, Essay
from msa.evaluation.ruler import NIAH, TASKS, SampleMaker, Words
from msa.evaluation.ruler.generate import DEPTHS, _largest
from msa.evaluation.ruler.samples import NotRulerError, asked_keys, split_prompt


def count(text):
    return len(re.findall(r"\w+|[^\w\s]", text))


def sample(task, index=0, size=2048, **settings):
    return SampleMaker(task, size, count, **settings).sample(index)


@pytest.mark.parametrize("task", ["niah_single_2", "niah_multikey_2", "vt"])
def test_a_sample_depends_on_its_number_alone_so_more_samples_are_more_of_the_same(task):
    few = list(SampleMaker(task, 1024, count).samples(2))
    many = list(SampleMaker(task, 1024, count).samples(4))
    assert many[:2] == few
    assert SampleMaker(task, 1024, count).sample(3) == many[3]
    assert len({one.context for one in many}) == 4


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_fits_and_wastes_little(task):
    made = SampleMaker(task, 2048, count)
    lengths = [one.length for one in made.samples(6)]
    for one, length in zip(made.samples(6), lengths, strict=True):
        assert length == count(one.input + one.answer_prefix) + TASKS[task].tokens_to_generate
    step = 500 * 1.3 if TASKS[task].haystack == "essay" else 5 * 40  # a sample too long gives up one of RULER's steps
    assert max(lengths) <= 2048
    assert min(lengths) > 2048 - step
    assert max(lengths) > 2048 - 60


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_is_a_function_of_its_settings(task):
    made = SampleMaker(task, 1024, count)
    later = made.sample(3)
    assert later == sample(task, 3, 1024)
    assert later != made.sample(2)
    assert later.context != sample(task, 3, 1024, seed=43).context


@pytest.mark.parametrize("task", NIAH)
def test_needles(task):
    settings = TASKS[task]
    shapes = {"numbers": r"[1-9]\d{6}", "uuids": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "words": r".+-.+"}
    for one in SampleMaker(task, 2048, count).samples(5):
        needles, asked = one.needles(), one.asked()
        hidden = settings.hidden_keys * settings.num_values
        lines = one.context.count("\n") + 1
        assert len(needles) == (lines if settings.haystack == "needle" else hidden)
        assert len(asked) == settings.num_queries * settings.num_values == len(one.answers)
        assert Counter(needle.value for needle in asked) == Counter(one.answers)
        assert {needle.key for needle in asked} == set(asked_keys(one.question))
        keys = Counter(needle.key for needle in needles)
        assert set(keys.values()) == {settings.num_values}  # no other needle has a key that is asked for
        assert all(re.fullmatch(shapes[settings.key], needle.key) for needle in needles)
        assert all(re.fullmatch(shapes[settings.value], needle.value) for needle in needles)
        for needle in needles:
            assert one.context[needle.start : needle.end] == settings.needle(needle.key, needle.value)


def test_depths_are_rulers_grid():
    # numpy.round(numpy.linspace(0, 100, num=40)).astype(int), as RULER has it
    assert DEPTHS[:6] == (0, 3, 5, 8, 10, 13)
    assert DEPTHS[-3:] == (95, 97, 100)
    assert len(set(DEPTHS)) == 40
    essay = Essay(tuple(f"w{n}." if n % 5 == 4 else f"{'W' if n % 5 == 0 else 'w'}{n}" for n in range(2000)), "e", "")
    seen = set()
    for one in SampleMaker("niah_multikey_1", 2048, count, essay=essay).samples(60):
        whole = len(re.findall(r"w\d+\.", one.context))
        sentences = whole + (not one.context.removesuffix(one.needles()[-1].value + ".").endswith("."))
        places = [len(re.findall(r"w\d+\.", one.context[: needle.start])) for needle in one.needles()]
        assert len(set(places)) == 4
        assert set(places) <= {int(number * (depth / 100)) for depth in DEPTHS for number in (whole, sentences)}
        seen.update(places)
    assert len(seen) > 35


def test_noise_needles_fall_anywhere():
    depths = [
        one.needles()[0].start / len(one.context) for one in SampleMaker("niah_single_1", 1024, count).samples(200)
    ]
    assert min(depths) < 0.05
    assert max(depths) > 0.9
    assert 0.42 < sum(depths) / len(depths) < 0.58


def test_variable_tracking():
    for one in SampleMaker("vt", 1024, count).samples(5):
        lines = one.context.split("\n")
        chain = [line for line in lines if line != NOISE_LINE]
        variables = [re.match(r"VAR ([A-Z]{5}) = ", line)[1] for line in chain]
        value = re.search(r"the value (\d{5}) in", one.question)[1]
        assert chain[0] == f"VAR {variables[0]} = {value}"
        assert [line.split(" = ")[1] for line in chain[1:]] == [f"VAR {name} " for name in variables[:-1]]
        assert one.answers == tuple(variables)
        assert len(set(variables)) == 5
        example, own = one.input.rsplit("Memorize and track", 1)
        assert example.startswith("Memorize and track the chain(s)")
        assert count(example) < 520
        assert re.search(r"they are:  [A-Z]{3}( [A-Z]{3}){4}\n\n$", example)
        assert not re.search(r"VAR [A-Z]{3} ", own)
    assert len({one.example for one in SampleMaker("vt", 1024, count).samples(3)}) == 3


def test_notes_name_the_haystack_its_repetition_and_other_words():
    essay = Essay(("One", "two.", "Three.") * 100, "e", "essay haystack: e")
    words = Words(("a", "b"), tuple(f"n{n}" for n in range(50)), "other words")
    assert sample("niah_single_2", essay=essay, words=words, size=400).note == "essay haystack: e; other words"
    assert re.fullmatch(
        r"essay haystack: e; its text is repeated \d\.\d times", sample("niah_single_2", essay=essay).note
    )
    assert sample("niah_single_1").note == ""


@pytest.mark.parametrize("task", TASKS)
def test_a_size_too_small_is_said_to_be(task):
    with pytest.raises(ValueError, match=rf"at least \d+ tokens for {task}, found 64"):
        sample(task, size=64)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 200), st.integers(0, 5000))
def test_the_search_finds_the_last_unit_that_fits(fewest, slope, start, limit):
    tried = []

    def length(units):
        tried.append(units)
        return start + slope * units + units // 7

    found = _largest(length, limit, fewest)
    assert found >= fewest
    assert found == fewest or length(found) <= limit
    assert length(found + 1) > limit
    assert len(tried) < 40


def test_a_tokenizer_that_counts_nothing_ends():
    with pytest.raises(ValueError, match="counts too few"):
        SampleMaker("niah_single_1", 512, lambda text: 0).sample(0)


@pytest.mark.parametrize("wrapped", ["{}", "[INST] {} [/INST]", "You are helpful. USER: {} ASSISTANT:"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_prompts_come_apart_again(task, wrapped, flat):
    made = sample(task, 1, 1024)
    prompt = wrapped.format(made.input) + made.answer_prefix
    if flat:  # RULER's --remove_newline_tab
        prompt = " ".join(prompt.split())
    example, head, context, question, prefix = split_prompt(TASKS[task], prompt)
    assert (head, question) == (made.head, made.question)
    assert context.split() == made.context.split()
    assert prefix.strip() == made.answer_prefix.strip()
    assert example.split() == made.example.split()
    if not flat:
        assert (context, prefix, example) == (made.context, made.answer_prefix, made.example)


@pytest.mark.parametrize(
    ("task", "prompt", "message"),
    [
        ("niah_single_1", "", "words that begin"),
        ("niah_single_1", sample("vt").input, "words that begin"),
        ("vt", sample("niah_single_1").input, "words that begin"),
        ("niah_single_1", sample("niah_single_1").input.replace("What is", "Where is"), "question"),
        ("niah_single_1", sample("niah_single_1").head + "\n\n" + sample("niah_single_1").question, "no context"),
        ("vt", sample("vt").input.replace("Find all", "Find any"), "question"),
    ],
)
def test_other_prompts_are_refused(task, prompt, message):
    with pytest.raises(NotRulerError, match=message):
        split_prompt(TASKS[task], prompt)
