"""The names users build on: what the package exports and how it is reached through transformers."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch
from tiny import tiny_lm
from transformers import AutoConfig, AutoModelForCausalLM

import msa

EXPORTED = [
    "AddProgress",
    "Answer",
    "AskOptions",
    "Document",
    "DocumentMemory",
    "DocumentRetrieved",
    "Done",
    "Engine",
    "Event",
    "Hit",
    "MSAConfig",
    "MSAError",
    "MSAForCausalLM",
    "MSAModel",
    "MSAOutput",
    "Memory",
    "MemoryView",
    "Protocol",
    "ProtocolStrings",
    "Round",
    "RoundStarted",
    "Sampling",
    "TextPiece",
    "Tiers",
    "Usage",
    "convert",
    "load",
]
PARAMETERS = {
    msa.load: ["name", "device", "dtype"],
    msa.Memory.open: ["path", "model", "create", "read_only", "max_bytes", "tiers", "ranks"],
    msa.Memory.add: ["self", "documents", "progress"],
    msa.Memory.delete: ["self", "ids"],
    msa.Memory.get: ["self", "doc_id"],
    msa.Memory.list: ["self", "limit", "after"],
    msa.Memory.search: ["self", "query", "top_k", "where", "hybrid"],
    msa.Memory.ask: ["self", "question", "options"],
    msa.Memory.stream: ["self", "question", "cancelled", "options"],
    msa.Memory.stats: ["self"],
    msa.Memory.verify: ["self"],
    msa.Memory.compact: ["self", "drop_damaged", "check"],
    msa.Memory.backup: ["self", "destination"],
    msa.Memory.close: ["self"],
    msa.MSAForCausalLM.encode_documents: ["self", "input_ids", "lengths"],
    msa.MSAForCausalLM.encode_prefix: ["self", "prefix_ids"],
}
FORWARD = {
    "input_ids", "attention_mask", "routing_mask", "position_ids", "memory", "prefix", "cache", "top_k", "labels",
    "doc_sample", "positives",
}  # fmt: skip
FIELDS = {
    msa.Answer: {"text", "sources", "rounds", "finish_reason", "usage", "timings"},
    msa.Hit: {"id", "text", "score", "metadata"},
    msa.Round: {"retrieved"},
    msa.Done: {"answer"},
    msa.DocumentRetrieved: {"round", "hit"},
    msa.RoundStarted: {"round"},
    msa.TextPiece: {"text"},
    msa.DocumentMemory: {"keys", "values", "routing_keys", "chunk_offsets"},
    msa.MSAOutput: {"logits", "routing", "cache", "loss", "lm_loss", "aux_loss"},
    msa.AskOptions: {"max_rounds", "max_new_tokens"},
}


def test_exports():
    assert msa.__all__ == EXPORTED
    assert all(hasattr(msa, name) for name in EXPORTED)
    assert msa.__version__
    with pytest.raises(AttributeError, match="module 'msa' has no attribute 'Memories'"):
        msa.Memories  # noqa: B018


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda function: function.__qualname__)
def test_parameters(function):
    assert list(inspect.signature(function).parameters) == PARAMETERS[function]


def test_defaults():
    def default(function, name):
        return inspect.signature(function).parameters[name].default

    assert default(msa.Memory.open, "create") is True
    assert default(msa.Memory.open, "read_only") is False
    assert default(msa.Memory.search, "top_k") == 16
    assert (msa.AskOptions().max_rounds, msa.AskOptions().max_new_tokens) == (4, 256)
    assert (default(msa.load, "device"), default(msa.load, "dtype")) == ("auto", "auto")


def test_forward_parameters():
    assert set(inspect.signature(msa.MSAForCausalLM.forward).parameters) >= FORWARD


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields(kind):
    assert {field.name for field in dataclasses.fields(kind)} >= FIELDS[kind]


def test_a_model_has_network_tokenizer_and_protocol(model):
    assert isinstance(model, msa.MSAModel)
    assert isinstance(model.lm, msa.MSAForCausalLM)
    assert isinstance(model.protocol, msa.Protocol)
    assert model.tokenizer("a")["input_ids"]


def test_memories_in_ram_are_memory_views(lm):
    docs = lm.encode_documents(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    assert isinstance(docs, msa.DocumentMemory)
    assert isinstance(docs, msa.MemoryView)
    assert not isinstance(object(), msa.MemoryView)
    assert all(issubclass(getattr(msa.errors, name), msa.MSAError) for name in ("BankError", "DocumentError"))


def test_transformers_auto_classes(tmp_path):
    lm = tiny_lm()
    lm.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, msa.MSAConfig)
    assert isinstance(msa.MSAConfig.from_pretrained(tmp_path), msa.MSAConfig)
    assert config.router_layers == [2, 3]
    ids = torch.tensor([[1, 2, 3]])
    for cls in (AutoModelForCausalLM, msa.MSAForCausalLM):
        loaded = cls.from_pretrained(tmp_path, dtype=torch.float32)
        assert isinstance(loaded, msa.MSAForCausalLM)
        assert torch.equal(loaded(ids).logits, lm(ids).logits)


TRANSFORMERS_FIRST = """
import sys
import msa
from transformers import AutoConfig
assert type(AutoConfig.from_pretrained(sys.argv[1])) is msa.MSAConfig
"""


def test_importing_the_package_is_enough_for_the_auto_classes(tmp_path):
    tiny_lm().config.save_pretrained(tmp_path)
    subprocess.run([sys.executable, "-c", TRANSFORMERS_FIRST, str(tmp_path)], check=True, timeout=120)
