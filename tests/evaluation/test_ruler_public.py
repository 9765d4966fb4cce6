"""Our tasks beside the public harness (lm-eval), whose own code makes the samples that are compared and read here.

Nothing is fetched: the essay tasks get our text and our sentences in both, and lm-eval's sentence model is not asked for.
"""

import contextlib
import io
import json
import random
import re

import numpy as np
import pytest

from msa.evaluation.alternatives import make
from msa.evaluation.haystack import NOISE_LINE, Essay, load_essay
from msa.evaluation.ruler import NIAH, TASKS, SampleMaker, read_samples, ruler_words, sample_sets, string_match_all
from msa.evaluation.side_by_side import opened

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'lm-eval[ruler]'")
nltk = pytest.importorskip("nltk", reason="lm-eval's RULER needs nltk: pip install 'lm-eval[ruler]'")

SIZE, NUM = 2048, 150


class Tokens:
    """As much of a tokenizer as lm-eval needs."""

    def __init__(self, text=""):
        self.input_ids = re.findall(r"\w+|[^\w\s]", text)

    def __call__(self, text):
        return Tokens(text)


def count(text):
    return len(Tokens(text).input_ids)


@pytest.fixture(scope="module")
def essay():
    return load_essay()


@pytest.fixture(scope="module")
def public(essay):
    """lm-eval's modules, without its network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda *name: True)
        from lm_eval.tasks.ruler import common_utils, niah_utils, prepare_niah, vt_utils

        patch.setattr(prepare_niah, "cached_sent_tokenize", lambda text: sentences(text))
        patch.setattr(niah_utils, "get_tokenizer", lambda name: Tokens())
        patch.setattr(niah_utils, "download_dataset", list)
        patch.setattr(
            niah_utils,
            "get_haystack",
            lambda type_haystack: (
                list(essay.words)
                if type_haystack == "essay"
                else prepare_niah.get_haystack(type_haystack=type_haystack)
            ),
        )
        yield {"common": common_utils, "niah": niah_utils, "prepare": prepare_niah, "vt": vt_utils}


def sentences(text):
    words = tuple(text.split())
    return Essay(words, "a test", "").sentences(len(words))


@pytest.fixture(scope="module", params=TASKS)
def pair(request, public, essay, tmp_path_factory):
    """lm-eval's samples of a task as we read them, and ours."""
    task = request.param
    random.seed(42)
    np.random.seed(42)
    with contextlib.redirect_stdout(io.StringIO()):
        if task == "vt":
            vt = public["vt"]
            solved = vt.sys_vartrack_w_noise_random(Tokens(), num_samples=1, max_seq_length=500, incremental=5)[0]
            rows = vt.sys_vartrack_w_noise_random(Tokens(), num_samples=NUM, max_seq_length=SIZE, icl_example=solved)
        else:
            rows = niah_rows(public, task)
    path = tmp_path_factory.mktemp("ruler") / task / "validation.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task, list(read_samples(path, task)), list(SampleMaker(task, SIZE, count, essay=essay).samples(NUM))


def niah_rows(public, task):
    """Samples of one of lm-eval's task functions, fewer than it would make."""
    made = public["prepare"].generate_samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public["niah"], "generate_samples", lambda *a, **k: made(*a, **{**k, "num_samples": NUM}))
        ((*rows,),) = getattr(public["niah"], task)(tokenizer="ours", max_seq_lengths=[SIZE])
    return rows


@pytest.mark.parametrize("task", NIAH)
def test_parameters_are_those_of_lm_eval(public, task):
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public["niah"], "generate_samples", lambda *a, **k: asked.append(k) or [])
        getattr(public["niah"], task)(tokenizer="ours", max_seq_lengths=[SIZE])
    (theirs,), ours = asked, TASKS[task]
    assert theirs["type_haystack"].replace("repeat", "noise") == ours.haystack
    assert (theirs["type_needle_k"], theirs["type_needle_v"]) == (ours.key, ours.value)
    numbers = [theirs.get(f"num_needle_{kind}", 1) for kind in "kvq"]
    assert numbers == [ours.num_keys, ours.num_values, ours.num_queries]


def test_words_are_those_of_lm_eval(public):
    ours = ruler_words()
    assert {word.strip() for word in public["prepare"].nouns} == set(ours.nouns)
    assert {word.strip() for word in public["prepare"].adjs} == set(ours.adjectives)


def test_as_many_needles(pair):
    task, theirs, ours = pair
    assert len(theirs) == len(ours) == NUM
    lines = TASKS[task].haystack == "needle"
    for samples in (theirs, ours):
        for one in samples:
            assert len(one.asked()) == len(one.answers) == len(theirs[0].answers)
            assert lines or len(one.needles()) == len(theirs[0].needles())
    if lines:
        number = [np.mean([len(one.needles()) for one in samples]) for samples in (theirs, ours)]
        assert abs(number[0] - number[1]) <= 5  # one of lm-eval's steps


def test_lengths_differ_by_no_more_than_a_step(pair):
    """lm-eval grows its haystack in steps, of 5 lines, 10 (variables) or 500 words; ours and NVIDIA's unit by unit."""
    task, theirs, ours = pair
    step = {"noise": 5, "needle": 5, "essay": 500}[TASKS[task].haystack] * (2 if task == "vt" else 1)
    unit = {"noise": count(NOISE_LINE), "needle": 31, "essay": 1.2}[TASKS[task].haystack]
    assert max(one.length for one in (*theirs, *ours)) <= SIZE
    mean = [np.mean([one.length for one in samples]) for samples in (theirs, ours)]
    # our example in variable tracking may be longer by the last lines that fit
    slack = 3 * unit if task == "vt" else unit
    assert -slack < mean[1] - mean[0] < step * unit + slack


def test_depths_are_distributed_alike(pair):
    """Kolmogorov-Smirnov's distance of the depths of all needles asked for, below its 0.1 % point."""
    _, theirs, ours = pair
    depths = [
        np.sort([needle.start / len(one.context) for one in samples for needle in one.asked()])
        for samples in (theirs, ours)
    ]
    every = np.concatenate(depths)
    shares = [np.searchsorted(own, every, side="right") / len(own) for own in depths]
    assert np.abs(shares[0] - shares[1]).max() < 1.95 * (1 / len(depths[0]) + 1 / len(depths[1])) ** 0.5


def skeleton(sample, essay):
    """A prompt without keys and values; repeated lines once, running text as its name, any white space as one space.

    lm-eval has the layout of variable tracking that NVIDIA's had until 2025: spaces where there are line breaks now.
    """
    text = f"{sample.example} | {sample.head} | CONTEXT | {sample.question} | {sample.answer_prefix.strip()}"
    rest, end, needles = [], 0, set()
    for needle in sample.needles():
        rest.append(sample.context[end : needle.start])
        needles.add(sample.context[needle.start : needle.end].replace(needle.key, "KEY").replace(needle.value, "VALUE"))
        end = needle.end
    around = "".join([*rest, sample.context[end:]]).split()
    if tuple(around) == essay.words[: len(around)]:
        around = ["ESSAY"] if around else []
    line = " ".join(around).replace(NOISE_LINE, "").strip()
    for name in {*(n.key for n in sample.asked()), *(n.value for n in sample.asked())}:
        text = text.replace(name, "NAME")
    text = re.sub(
        r"VAR [A-Z]{3,5}\b|\b[A-Z]{3}\b(?= |$)|\b\d{5}\b", "X", " ".join(text.replace(NOISE_LINE, "").split())
    )
    return text, frozenset(re.sub(r"VALUE|\d{5}|VAR [A-Z]+", "X", needle) for needle in needles), line


def test_templates_are_the_same(pair, essay):
    _, theirs, ours = pair
    found = [{skeleton(one, essay) for one in samples} for samples in (theirs, ours)]
    assert len(found[0]) == 1
    assert found[0] == found[1]


def test_their_samples_become_memories(pair):
    _, theirs, _ = pair
    for questions in sample_sets(theirs[:10], count, document_tokens=128):
        (question,) = questions.questions
        assert len(questions.documents) > 8
        for answer in question.answers:
            assert {name for name, text in questions.documents.items() if answer in text} <= set(question.positives)


def test_scores_are_the_same(public):
    common = public["common"]
    rng = random.Random(0)
    for _ in range(200):
        answers = [str(rng.randrange(100)) for _ in range(rng.randint(1, 4))]
        text = rng.choice(["", " \n", "\x00"]) + " and ".join(rng.sample([str(n) for n in range(100)], 30)).upper()
        theirs = common.string_match_all(common.postprocess_pred([text]), [answers])
        assert string_match_all(text, answers) == theirs


def test_a_model_has_the_same_score_on_both(public, essay, trained, tmp_path):
    """Of lm-eval's samples through our reader as of our own, within three standard errors; noise is the haystack."""
    task, number = "niah_single_1", 60
    path = tmp_path / task / "validation.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in niah_rows(public, task)))
    shares = []
    for samples in (read_samples(path, task), SampleMaker(task, SIZE, count, essay=essay).samples(number)):
        sets = sample_sets(
            list(samples)[:number], lambda text: len(trained.protocol.plain_ids(text)), document_tokens=256
        )
        scores = []
        for questions in sets:
            with opened(lambda name: make(name, trained), "msa") as row:
                row.prepare(questions.documents)
                (question,) = questions.questions
                answer = row.answer(question, question.max_new_tokens or 128)
            scores.append(string_match_all(answer.text, question.answers))
        shares.append(np.mean(scores))
    assert min(shares) > 0.5, "too little is answered to compare"
    spread = (np.mean(shares) * (1 - np.mean(shares)) * 2 / number) ** 0.5
    assert abs(shares[0] - shares[1]) <= 3 * max(spread, 1 / number), shares
