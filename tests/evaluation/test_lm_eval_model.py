"""The model inside lm-evaluation-harness: the backbone's numbers are transformers', answers are the memory's.

Two models of the same weights are compared through lm-eval: a Llama of transformers' as ``hf``, converted as ``msa``.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny import VOCABULARY, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from msa.conversion import convert
from msa.errors import EvaluationError
from msa.evaluation import lm_eval_model

PAIRS = [
    ("The sky is", " blue"),
    ("", "Grass is green and the sun"),
    ("A much longer text that comes before what is scored. " * 4, "Yes."),
    ("The sky is", " grey, and it is raining"),
    ("One plus one is", " 2"),
]
PROMPTS = ["The sky", "A longer prompt, which is not padded", "x"]
GREEDY = {"until": [], "max_gen_toks": 24, "do_sample": False}


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'lm-eval[ruler]'")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random Llama and the same, converted."""
    root = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=257,
    )
    llama = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|im_start|>"
    assert tokenizer.eos_token_id == 257
    llama.save_pretrained(root / "llama")
    tokenizer.save_pretrained(root / "llama")
    convert(root / "llama", root / "msa", init="tied", dtype=torch.float32, device="cpu")
    return root


@pytest.fixture(scope="module")
def theirs(lm_eval, folders):
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(folders / "llama"), device="cpu", dtype="float32", batch_size=3)


@pytest.fixture(scope="module")
def ours(lm_eval, folders):
    return lm_eval_model.register()(str(folders / "msa"), device="cpu", dtype="float32", batch_size=3)


@pytest.fixture
def requests(lm_eval):
    """Requests of a kind from the arguments of each."""
    from lm_eval.api.instance import Instance

    def make(kind, arguments):
        return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]

    return make


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    for name in ("lm_eval", "lm_eval.api.registry", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EvaluationError, match=r"needs the package lm_eval.*'memory-sparse-attention\[lm-eval\]'"):
        lm_eval_model.register()


def test_registered_once_beside_the_others(lm_eval):
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    assert lm_eval_model.register() is lm_eval_model.register() is get_model("msa")
    assert issubclass(get_model("msa"), HFLM)
    assert get_model("hf") is HFLM


def test_log_likelihoods_are_transformers(ours, theirs, requests):
    asked = requests("loglikelihood", PAIRS)
    found, expected = ours.loglikelihood(asked, True), theirs.loglikelihood(asked, True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(value, 2) for value, _ in found}) == len(PAIRS)


def test_log_likelihoods_are_the_networks(ours, requests):
    (context, continuation), *_ = PAIRS
    ((found, _),) = ours.loglikelihood(requests("loglikelihood", PAIRS[:1]), True)
    ids = ours.tokenizer(context + continuation, return_tensors="pt").input_ids
    first = len(ours.tokenizer(context).input_ids)
    with torch.inference_mode():
        chances = ours.msa.lm(ids).logits.log_softmax(-1)[0, first - 1 : -1]
    assert found == pytest.approx(float(chances.gather(1, ids[0, first:, None]).sum()), abs=1e-3)


def test_rolling_log_likelihoods_beyond_the_context(ours, theirs, requests):
    asked = requests("loglikelihood_rolling", [("The sky is blue. " * 50,), ("Short.",)])
    found, expected = ours.loglikelihood_rolling(asked, True), theirs.loglikelihood_rolling(asked, True)
    assert found == pytest.approx(expected, rel=1e-5)


def test_plain_generation_is_transformers(ours, theirs, requests):
    asked = requests("generate_until", [(prompt, GREEDY) for prompt in PROMPTS])
    found = ours.generate_until(asked, True)
    assert found == theirs.generate_until(asked, True)
    assert len(set(found)) == len(PROMPTS)


def test_plain_generation_stops_where_it_is_told(ours, theirs, requests):
    (whole,) = ours.generate_until(requests("generate_until", [(PROMPTS[0], GREEDY)]), True)
    word = whole[8:11]
    asked = requests("generate_until", [(prompt, {**GREEDY, "until": [word]}) for prompt in PROMPTS])
    found = ours.generate_until(asked, True)
    assert found == theirs.generate_until(asked, True)
    assert found[0] == whole.split(word)[0]
    steps, forward = [], ours.msa.lm.forward
    ours.msa.lm.forward = lambda *given, **named: steps.append(1) or forward(*given, **named)
    try:
        ours.generate_until(asked[:1], True)
    finally:
        del ours.msa.lm.forward
    assert len(steps) < 20 < GREEDY["max_gen_toks"]


def test_plain_generation_draws_by_torchs_seed(ours, requests):
    settings = {"until": [], "max_gen_toks": 16, "do_sample": True, "temperature": 1.5}
    asked = requests("generate_until", [("The sky", settings)] * 2)
    torch.manual_seed(1)
    first = ours.generate_until(asked, True)
    torch.manual_seed(1)
    assert ours.generate_until(asked, True) == first
    assert first[0] != first[1]
    torch.manual_seed(2)
    assert ours.generate_until(asked, True) != first


def test_settings_the_backbone_does_not_have_are_refused(ours, requests):
    with pytest.raises(EvaluationError, match="num_beams=4 is not offered"):
        ours.generate_until(requests("generate_until", [("The sky", {**GREEDY, "num_beams": 4})]), True)


def test_a_memory_answers(lm_eval, trained, needle_folder, requests):
    lm = lm_eval_model.register()(trained, memory=str(needle_folder), batch_size="2", max_rounds=2)
    kept = []
    lm.cache_hook.add_partial = lambda *given: kept.append(given)
    question = "What is the special magic number for quiet-river mentioned in the provided text?"
    asked = requests("generate_until", [(question, {"until": ["\n"]}), (question, {"until": "21", "max_tokens": 20})])
    found = lm.generate_until(asked, True)
    assert "4821937" in found[0]
    assert found[1] == found[0].split("21")[0]
    assert kept == [("generate_until", one.args, text) for one, text in zip(asked, found, strict=True)]
    assert lm.get_model_info()["msa_answers_from"] == f"memory {needle_folder}"


def test_a_memory_brings_its_own_model(lm_eval, needle_folder):
    lm = lm_eval_model.register()(memory=str(needle_folder), device="cpu", dtype="float32")
    assert lm.msa.name == "msa-tiny"
    assert lm.msa.lm.dtype == torch.float32


def test_a_memory_has_neither_log_likelihoods_nor_chat_templates(lm_eval, trained, needle_folder, requests):
    lm = lm_eval_model.register()(trained, memory=str(needle_folder))
    for refused in (
        lambda: lm.loglikelihood(requests("loglikelihood", PAIRS)),
        lambda: lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("text",)])),
        lambda: lm.apply_chat_template([{"role": "user", "content": "Hello"}]),
    ):
        with pytest.raises(EvaluationError, match=r"without .*\. Leave out either these tasks"):
            refused()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peft": "folder"}, "model argument 'peft' is not known. Known: pretrained, memory, cut"),
        ({"tokenizer": "folder"}, "'tokenizer' is not known; give RULER's tasks theirs with --metadata"),
        ({"max_rounds": 2}, "'max_rounds' needs memory= or cut="),
        ({"cut": True, "batch_size": "auto"}, "expected --batch_size N, got auto"),
        ({"cut": True, "memory": "FOLDER"}, "either memory=FOLDER or cut=true, and not both"),
        ({"cut": 7}, "cut must be true or the words before the question, got 7"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(lm_eval, trained, needle_folder, given, message):
    given = {name: str(needle_folder) if value == "FOLDER" else value for name, value in given.items()}
    with pytest.raises(EvaluationError, match=message):
        lm_eval_model.register()(trained, **given)


def test_the_command_runs_ruler(lm_eval, tmp_path):
    """lm-eval's own code makes the samples, sized by the tokenizer of a model it does not know."""
    pytest.importorskip("nltk", reason="lm-eval's RULER needs nltk: pip install 'lm-eval[ruler]'")
    # its sentence model is fetched when RULER is imported, and used by the essay tasks alone
    (tmp_path / "nltk" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    command = [sys.executable, "-m", "msa.evaluation.lm_eval_model", "--model", "msa"]
    command += ["--model_args", "pretrained=msa-tiny,cut=true", "--tasks", "niah_single_1", "--limit", "2"]
    command += ["--metadata", '{"max_seq_lengths": [1024]}', "--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = {**os.environ, "NLTK_DATA": str(tmp_path / "nltk"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (results,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("results_*.json"))
    assert results["results"]["niah_single_1"]["1024,none"] == 1.0
    assert results["config"]["msa_model"] == "msa-tiny"
    assert results["config"]["msa_answers_from"].startswith("each prompt's context, cut into documents")
    (lines,) = (path.read_text().splitlines() for path in (tmp_path / "out").rglob("samples_*.jsonl"))
    samples = [json.loads(line) for line in lines]
    assert [sample["doc"]["max_length"] for sample in samples] == [1024, 1024]
    assert all(sample["doc"]["length"] > 800 for sample in samples)
