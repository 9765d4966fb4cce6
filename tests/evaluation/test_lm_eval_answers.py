"""lm-eval's prompts answered with a memory: how a prompt is taken apart, what is honoured, and what is refused."""

import tempfile
from pathlib import Path

import pytest
import torch
from needle_memory import NEEDLES

import msa
from msa.bank import MemoryBank
from msa.errors import BankMismatchError, BankNotFoundError, EvaluationError
from msa.evaluation.alternatives import make
from msa.evaluation.lm_eval_answers import MemoryAnswers, ask_options, sampled, split
from msa.evaluation.ruler import TASKS, SampleMaker, question_set

SETTINGS = {"until": [], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0}


def ask(key):
    return f"What is the special magic number for {key} mentioned in the provided text?"


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary memories are made, and every memory that is."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made, create = [], MemoryBank.create
    monkeypatch.setattr(MemoryBank, "create", lambda path, **given: made.append(Path(path)) or create(path, **given))
    return tmp_path, made


def counter(model):
    return lambda text: len(model.protocol.plain_ids(text))


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_of_ruler_becomes_the_documents_of_our_own_evaluation(task, trained):
    count = counter(trained)
    for sample in SampleMaker(task, 2048, count).samples(2):
        context, question = split(sample.input + sample.answer_prefix, True)
        assert question == sample.question
        expected = question_set(sample, count, document_tokens=256).documents
        assert MemoryAnswers(trained, None, True, document_tokens=256).documents(context) == expected
        for needle in sample.asked():
            text = sample.context[needle.start : needle.end]
            assert sum(text in document for document in expected.values()) == 1


@pytest.mark.parametrize("task", ["niah_single_2", "niah_multikey_2", "vt"])
def test_answers_are_those_of_our_own_evaluation(task, trained):
    count = counter(trained)
    samples = list(SampleMaker(task, 1024, count).samples(2))
    asked = [(sample.input + sample.answer_prefix, {**SETTINGS, "max_gen_toks": 32}) for sample in samples]
    answers = dict(MemoryAnswers(trained, None, True).answer(asked))
    for index, sample in enumerate(samples):
        questions, row = question_set(sample, count), make("msa", trained)
        row.prepare(questions.documents)
        assert answers[index] == row.answer(questions.questions[0], 32).text
        row.close()


def test_words_before_the_question():
    prompt = "Question: is old.\nMore text.\n\nQuestion: Who asks?\nAnswer:  "
    context, question = split(prompt, "Question:")
    assert (context.text, question) == ("Question: is old.\nMore text.", "Who asks?")
    assert split("text [Q] What does 'Answer: 3' mean?", "[Q]")[1] == "What does 'Answer: 3' mean?"


@pytest.mark.parametrize(
    "prompt",
    ["", "Question: no context", "  \nQuestion: no context", "text\nQuestion:", "text Question: \nAnswer:", "none"],
)
def test_prompts_without_context_or_question_are_refused(prompt):
    with pytest.raises(EvaluationError, match=r"cut='Question:' expects prompts that hold 'Question:'"):
        split(prompt, "Question:")


@pytest.mark.parametrize("prompt", ["", "2 + 2 =", "Some special magic numbers are hidden. " * 1000])
def test_prompts_that_are_not_rulers_are_refused(prompt):
    with pytest.raises(EvaluationError, match=r"cut=true expects prompts of RULER's.*cut='Question:'") as raised:
        split(prompt, True)
    assert len(str(raised.value)) < 400


def test_settings_of_a_request():
    asked = ask_options({"until": ["\n", "", "Q:"], "max_gen_toks": 7, "do_sample": False, "temperature": 0.9})
    assert asked == {"max_new_tokens": 7, "stop": ("\n", "Q:"), "temperature": 0.0}
    drawn = sampled({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 3, "num_beams": 1})
    assert drawn == {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 3}
    assert sampled({"do_sample": True})["temperature"] == 1.0
    assert sampled({}) == {"temperature": 0.0}


def test_draws_follow_torchs_generator_and_differ():
    torch.manual_seed(1234)
    first = [sampled({"temperature": 0.7})["seed"] for _ in range(3)]
    torch.manual_seed(1234)
    assert [sampled({"temperature": 0.7})["seed"] for _ in range(3)] == first
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 is not offered"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not offered. Known: until, max_gen_toks"),
        ({"do_sample": True, "temperature": -1}, "temperature must lie in"),
        ({"temperature": "hot"}, "of the generation settings"),
        ({"top_p": 2}, "top_p must lie in"),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1, got 0"),
    ],
)
def test_settings_a_memory_does_not_have_are_refused(settings, message):
    with pytest.raises(EvaluationError, match=message):
        ask_options({**SETTINGS, "do_sample": None, **settings})


def test_prompts_are_asked_of_the_memory(trained, needle_folder):
    requests = [
        (ask("quiet-river"), SETTINGS),
        (ask("brave-lamp"), {**SETTINGS, "max_gen_toks": 10}),
        (ask("brave-lamp"), SETTINGS),
        (ask("quiet-river"), {**SETTINGS, "until": ["21", "9"]}),
        (ask("nobody-here"), SETTINGS),
    ]
    answers = dict(MemoryAnswers(trained, needle_folder).answer(requests))
    with msa.Memory.open(needle_folder, trained, read_only=True) as memory:
        alone = [
            memory.ask(prompt, max_new_tokens=given["max_gen_toks"], stop=tuple(given["until"])).text
            for prompt, given in requests
        ]
    assert [answers[index] for index in range(len(requests))] == alone
    assert "4821937" in answers[0]
    assert "7710254" in answers[2]
    assert answers[1] in ("7", "77", "771", "7710")
    assert answers[3] == answers[0].split("21")[0]
    assert dict(MemoryAnswers(trained, needle_folder, batch_size=3).answer(requests)) == answers


def test_options_reach_the_memory(trained, needle_folder):
    asked = [(ask("quiet-river"), SETTINGS)]
    (usual,) = MemoryAnswers(trained, needle_folder).answer(asked)
    (unread,) = MemoryAnswers(trained, needle_folder, retrieval="routed", max_documents=0).answer(asked)
    assert "4821937" in usual[1]
    assert "4821937" not in unread[1]


def test_one_memory_for_each_context_and_none_is_left(trained, scratch):
    root, made = scratch
    ours = list(SampleMaker("niah_single_1", 1024, counter(trained)).samples(2))
    requests = [(ours[i].input + ours[i].answer_prefix, SETTINGS) for i in (0, 1, 0)]
    answers = dict(MemoryAnswers(trained, None, True, document_tokens=128).answer(requests))
    assert len(made) == 2
    assert all(path.is_relative_to(root) for path in made)
    assert list(root.iterdir()) == []
    assert answers[0] == answers[2]
    # each from its own context: the tiny model is not right every time
    assert ours[0].answers[0] in answers[0]
    assert ours[0].answers[0] not in answers[1]


def test_no_memory_is_left_when_answering_stops(trained, scratch):
    root, made = scratch
    running = MemoryAnswers(trained, None, "Question:").answer(
        [(f"{NEEDLES['green']} Question: {what}", SETTINGS) for what in ("Is it?", "Was it?")]
    )
    next(running)
    assert len(list(root.iterdir())) == len(made) == 1
    running.close()
    assert list(root.iterdir()) == []
    long = f"{NEEDLES['green']} Question: {'why ' * 5000}"
    with pytest.raises(ValueError, match="does not fit this model's context"):
        list(MemoryAnswers(trained, None, "Question:").answer([(long, SETTINGS)]))
    assert len(made) == 2
    assert list(root.iterdir()) == []


def test_every_prompt_is_looked_at_before_the_first_is_answered(trained, scratch):
    _, made = scratch
    requests = [(f"text Question: {what}", SETTINGS) for what in ("Is it?", "")]
    with pytest.raises(EvaluationError):
        next(MemoryAnswers(trained, None, "Question:").answer(requests))
    assert made == []


def test_an_empty_prompt_is_refused(trained, needle_folder):
    with pytest.raises(ValueError, match="the question is empty"):
        list(MemoryAnswers(trained, needle_folder).answer([(" \n", SETTINGS)]))
    assert list(MemoryAnswers(trained, needle_folder).answer([])) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": None}, "either memory=FOLDER or cut=true, and not both"),
        ({"context": True}, "either memory=FOLDER or cut=true, and not both"),
        ({"memory": None, "context": " "}, "cut must be true or the words before the question"),
        ({"memory": None, "context": 5}, "cut must be true or the words before the question, got 5"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"document_tokens": "512"}, "document_tokens must be 1 or more, got '512'"),
        ({"retrieval": "magic"}, "of the model arguments retrieval must be one of"),
        ({"rounds": 3}, "of the model arguments .*rounds"),
        ({"max_documents": "many"}, "of the model arguments"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(given, message, trained, needle_folder):
    with pytest.raises(EvaluationError, match=message):
        MemoryAnswers(trained, **{"memory": needle_folder, **given})


def test_a_memory_that_is_not_there_or_not_ours_is_refused_at_once(trained, model, needle_folder, tmp_path):
    with pytest.raises(BankNotFoundError):
        MemoryAnswers(trained, tmp_path / "none")
    with pytest.raises(BankMismatchError):
        MemoryAnswers(model, needle_folder)
