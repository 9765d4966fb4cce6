"""Golden inputs and outputs of the published implementation, recorded on tiny random weights (tests/data/parity)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from msa.model import MSAConfig, MSAForCausalLM

DATA = Path(__file__).parent.parent / "data" / "parity"
CASES = json.loads((DATA / "cases.json").read_text())
VARIANTS = [variant["name"] for variant in CASES["infer"]["variants"]]
LOSSES = ["INFONCE", "INFONCE_DECOUPLE", "INFONCE_FOCAL"]
TOLERANCE = {"atol": 5e-5, "rtol": 0}


@pytest.fixture(scope="module")
def golden():
    return load_file(DATA / "cases.safetensors")


def load_variant(folder, **overrides) -> MSAForCausalLM:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DATA / name, folder)
    config = json.loads((folder / "config.json").read_text())
    config["msa_config"].update(overrides)
    (folder / "config.json").write_text(json.dumps(config))
    return MSAForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(params=VARIANTS)
def variant(request, tmp_path):
    return request.param, load_variant(tmp_path, aux_loss_method=request.param)


def encode(lm, documents):
    lengths = torch.tensor([len(ids) for ids in documents])
    padded = torch.zeros(len(documents), int(lengths.max()), dtype=torch.long)
    for row, ids in zip(padded, documents, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return lm.encode_documents(padded, lengths)


def test_published_config_is_read_as_it_is():
    config = MSAConfig.from_pretrained(DATA)
    assert (config.router_layers, config.chunk_size, config.top_k_docs) == ([2, 3], 4, 3)
    assert (config.backbone, config.routing_similarity, config.routing_loss) == ("qwen3", "dot", "INFONCE_DECOUPLE")


@torch.no_grad()
def test_encoding(golden, variant):
    name, lm = variant
    docs = encode(lm, CASES["infer"]["documents"])
    prefix = lm.encode_prefix(torch.tensor(CASES["infer"]["template_prefix_ids"]))
    assert docs.chunk_offsets.tolist() == golden["infer.doc_chunk_offsets"].tolist()
    for layer in lm.config.router_layers:
        torch.testing.assert_close(docs.keys[layer].transpose(0, 1), golden[f"infer.pooled_k.L{layer}"], **TOLERANCE)
        torch.testing.assert_close(docs.values[layer].transpose(0, 1), golden[f"infer.pooled_v.L{layer}"], **TOLERANCE)
        rk = docs.routing_keys[layer]
        if name == "INFONCE":
            rk = torch.nn.functional.normalize(rk, dim=-1)
        torch.testing.assert_close(rk.transpose(0, 1), golden[f"infer.{name}.router_k.L{layer}"], **TOLERANCE)
    for layer in range(lm.config.num_hidden_layers):
        torch.testing.assert_close(prefix.keys[layer], golden[f"infer.template_k.L{layer}"], **TOLERANCE)
        torch.testing.assert_close(prefix.values[layer], golden[f"infer.template_v.L{layer}"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("default_positions", [True, False])
def test_prefill_and_greedy_decoding(golden, variant, default_positions):
    name, lm = variant
    docs = encode(lm, CASES["infer"]["documents"])
    prefix = lm.encode_prefix(torch.tensor(CASES["infer"]["template_prefix_ids"]))
    mask = golden["infer.attention_mask"]
    real = mask.bool()
    out = lm(
        golden["infer.input_ids"],
        attention_mask=mask,
        routing_mask=(golden["infer.doc_ids"] == 0) & real,
        position_ids=None if default_positions else golden["infer.position_ids"],
        memory=docs,
        prefix=prefix,
        output_hidden_states=True,
    )
    for layer in lm.config.router_layers:
        routing = out.routing[layer]
        expected = f"infer.{name}.%s.L{layer}"
        torch.testing.assert_close(routing.chunk_scores, golden[expected % "chunk_scores"], **TOLERANCE)
        torch.testing.assert_close(routing.doc_scores, golden[expected % "doc_scores"], **TOLERANCE)
        torch.testing.assert_close(routing.scores, golden[expected % "selected_scores"], **TOLERANCE)
        assert routing.doc_indices.tolist() == golden[expected % "selected_docs"].tolist()
    for mine, theirs in zip(out.hidden_states, golden[f"infer.{name}.hidden_states"], strict=True):
        torch.testing.assert_close(mine[real], theirs[real], **TOLERANCE)
    torch.testing.assert_close(out.logits[real], golden[f"infer.{name}.prefill_logits"][real], **TOLERANCE)

    logits, tokens, positions = [out.logits[:, -1]], [], []
    for _ in range(8):
        tokens.append(logits[-1].argmax(-1))
        positions.append(out.cache.next_position)
        out = lm(tokens[-1][:, None], cache=out.cache)
        logits.append(out.logits[:, -1])
    assert torch.stack(tokens, 1).tolist() == golden[f"infer.{name}.gen_tokens"].tolist()
    assert torch.stack(positions, 1).tolist() == golden[f"infer.{name}.gen_position_ids"].tolist()
    torch.testing.assert_close(torch.stack(logits[:-1], 1), golden[f"infer.{name}.gen_logits"], **TOLERANCE)


def training_forward(lm, golden, with_answer: bool):
    """The recorded training batch through the public API: documents, prefix and question as separate passes."""
    ids, doc_ids = golden["train.input_ids"], golden["train.doc_ids"]
    real = golden["train.attention_mask"].bool()
    documents, sample, positives, first = [], [], [], 0
    for row, labels in enumerate(CASES["train"]["batch_aux_labels"]):
        documents += [ids[row][doc_ids[row] == doc].tolist() for doc in range(1, len(labels) + 1)]
        sample += [row] * len(labels)
        positives.append([first + i for i, label in enumerate(labels) if label])
        first += len(labels)
    prefix_ids = ids[0][:3]
    # what follows the last document of each row, right padded
    starts = [int((doc_ids[row] > 0).nonzero()[-1]) + 1 for row in range(len(ids))]
    length = max(int(real[row, start:].sum()) for row, start in enumerate(starts))

    def tail(tensor, fill):
        rows = tensor.new_full((len(starts), length, *tensor.shape[2:]), fill)
        for row, start in enumerate(starts):
            kept = tensor[row, start : int(real[row].sum())]
            rows[row, : len(kept)] = kept
        return rows

    mask = tail(real.long(), 0)
    answers = tail(golden["train.answer_labels"], -100)
    answers[1:] = -100  # only the first sample counts as question answering
    out = lm(
        tail(ids, 0),
        attention_mask=mask,
        routing_mask=(tail(doc_ids, -2) == 0) & mask.bool(),
        labels=tail(golden["train.labels"], -100),
        answer_labels=answers if with_answer else None,
        memory=encode(lm, documents),
        prefix=lm.encode_prefix(prefix_ids),
        doc_sample=torch.tensor(sample),
        positives=positives,
        output_hidden_states=True,
    )
    return out, tail, mask.bool(), sample


@pytest.mark.parametrize("method", LOSSES)
@pytest.mark.parametrize("kind", ["qa_none", "qa_first"])
def test_training_losses(golden, tmp_path, method, kind):
    lm = load_variant(tmp_path, aux_loss_method=method)
    expected = CASES["train"]["losses"][method][kind]
    out, *_ = training_forward(lm, golden, with_answer=kind == "qa_first")
    assert out.lm_loss.item() == pytest.approx(expected["lm_loss"], abs=5e-5)
    assert out.aux_loss.item() == pytest.approx(expected["aux_loss"], abs=5e-5)
    assert out.loss.item() == pytest.approx(expected["total_loss"], abs=5e-5)


def test_decoupled_focal_loss_has_the_documented_gamma(golden, tmp_path):
    """The published trainer passes the number of positives as gamma by mistake; ours is the documented one."""
    lm = load_variant(tmp_path, aux_loss_method="INFONCE_DECOUPLE_FOCAL")
    expected = CASES["train"]["losses"]["INFONCE_DECOUPLE_FOCAL"]["qa_none"]["aux_loss_if_gamma_were_2"]
    out, *_ = training_forward(lm, golden, with_answer=False)
    assert out.aux_loss.item() == pytest.approx(expected, abs=5e-5)


def test_training_states_scores_and_gradients(golden, tmp_path):
    lm = load_variant(tmp_path)
    out, tail, real, sample = training_forward(lm, golden, with_answer=True)
    own = [[i for i, row in enumerate(sample) if row == r] for r in range(2)]
    for layer in lm.config.router_layers:
        for row, docs in enumerate(own):
            scores = golden[f"train.doc_scores.L{layer}"][row, 1 : len(docs) + 1]
            torch.testing.assert_close(out.routing[layer].doc_scores[row, docs], scores, **TOLERANCE)
            chosen = out.routing[layer].doc_indices[row] - docs[0] + 1
            assert chosen.tolist() == golden[f"train.selected_docs.L{layer}"][row].tolist()
    for mine, theirs in zip(out.hidden_states, golden["train.hidden_states"], strict=True):
        torch.testing.assert_close(mine[real], tail(theirs, 0)[real], **TOLERANCE)
    torch.testing.assert_close(out.logits[real], tail(golden["train.logits"], 0)[real], **TOLERANCE)
    out.loss.backward()
    for name, parameter in lm.named_parameters():
        if name == "temperature":
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, golden[f"train.grad.{name}"], atol=2e-4, rtol=0)
