"""The method as a whole on tiny random networks: what is kept of documents, what questions attend to, decoding, files.

Plain references in this file go token by token and head by head, as the paper's equations read.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, random_tokens, tiny_lm
from transformers import AutoConfig, AutoModelForCausalLM

import msa.model.attention
import msa.model.memory_view
import msa.model.modeling_msa
from msa.documents.batching import pad_left, pad_right
from msa.errors import UnsupportedModelError
from msa.generation.decoding import Decoding, Prompt
from msa.generation.sampling import Sampling
from msa.model import DocumentMemory, MSAConfig, MSAForCausalLM, PrefixMemory
from msa.ops.attend_memory import attend_memory_naive
from msa.ops.pool_chunks.naive import pool_chunks_naive
from msa.ops.route import route_naive

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
DOCUMENTS = random_tokens(9, 3, 14, 1, 8, seed=1)
PREFIX = random_tokens(3, seed=2)[0]
QUESTION = random_tokens(11, seed=3)[0]
ROUTES = [False, True, True, False, True, True, True, True, False, False, False]
SETTINGS = {
    "llama": {"backbone": "llama"},
    "mistral": {"backbone": "mistral"},
    "qwen2": {"backbone": "qwen2"},
    "qwen3": {"backbone": "qwen3"},
    "smollm3": {"backbone": "smollm3"},
    "dot": {"routing_similarity": "dot"},
    "undecoupled": {"decouple_router": False},
    "biased": {"routing_bias": True},
    "all-layers": {"router_layers": "all", "routing_bias": True},
    "other-reductions": {"head_reduce": "max", "query_reduce": "mean", "chunk_reduce": "mean"},
}


def memory_of(lm, documents=DOCUMENTS):
    return lm.encode_documents(*pad_right(documents))


def prefix_of(lm):
    return lm.encode_prefix(torch.tensor(PREFIX))


def ask(lm, question=QUESTION, routes=ROUTES, **inputs):
    """One question alone, in one pass, no cache."""
    return lm(torch.tensor([question]), routing_mask=torch.tensor([routes]), use_cache=False, **inputs)


def selected(out):
    return {layer: routing.doc_indices.tolist() for layer, routing in out.routing.items()}


# ---- plain reference


def rotate(states, positions, theta):
    """RoPE of ``[T, H, D]`` as the multiplication of complex numbers that it is."""
    half = states.shape[-1] // 2
    frequency = theta ** -(torch.arange(half) / half)
    turned = torch.complex(states[..., :half], states[..., half:]) * torch.exp(
        1j * positions[:, None, None] * frequency
    )
    return torch.cat((turned.real, turned.imag), -1).to(states.dtype)


def plain_layers(lm, ids, start, columns_before=None):
    """Run one text; ``columns_before(index, hidden, q)`` gives keys, values ``[S, Hkv, D]`` and bias ``[S]``.

    Returns the final normed states, and of each layer the normed input, keys and values.
    """
    config = lm.config
    dim, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    positions = torch.arange(start, start + len(ids))
    x, kept = lm.model.embed_tokens(torch.tensor(ids)), []
    for index, layer in enumerate(lm.model.layers):
        attention = layer.self_attn
        hidden = layer.input_layernorm(x)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (projection(hidden).unflatten(-1, (-1, dim)) for projection in projections)
        if config.backbone == "qwen3":
            q, k = attention.q_norm(q), attention.k_norm(k)
        if config.no_rope_layers is None or config.no_rope_layers[index]:
            theta = config.rope_parameters["rope_theta"]
            q, k = rotate(q, positions, theta), rotate(k, positions, theta)
        kept.append((hidden, k, v))
        before_k, before_v, bias = k[:0], v[:0], torch.zeros(0)
        if columns_before is not None:
            before_k, before_v, bias = columns_before(index, hidden, q)
        heads = torch.zeros_like(q)
        for t in range(len(ids)):
            keys, values = torch.cat((before_k, k[: t + 1])), torch.cat((before_v, v[: t + 1]))
            logit_bias = torch.cat((bias, torch.zeros(t + 1)))
            for head in range(config.num_attention_heads):
                logits = keys[:, head // group] @ q[t, head] / dim**0.5 + logit_bias
                heads[t, head] = logits.softmax(0) @ values[:, head // group]
        x = x + attention.o_proj(heads.flatten(1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return lm.model.norm(x), kept


def plain_memory(lm, documents):
    """Router layer → per document the pooled (routing keys, keys, values), projected token by token, then averaged."""
    memory = {layer: [] for layer in lm.config.router_layers}
    for ids in documents:
        _, kept = plain_layers(lm, ids, 0)
        for layer, pooled in memory.items():
            hidden, k, v = kept[layer]
            attention = lm.model.layers[layer].self_attn
            routing = attention.router_k_proj(hidden).view(k.shape) if lm.config.decouple_router else k
            starts = range(0, len(ids), lm.config.chunk_size)
            pooled.append(
                [torch.stack([s[i : i + lm.config.chunk_size].mean(0) for i in starts]) for s in (routing, k, v)]
            )
    return memory


def plain_scores(lm, layer, hidden, q, routes, documents):
    """Eq. 2: per document the reduction over chunks, question tokens and heads, one number at a time."""
    config = lm.config
    group = config.num_attention_heads // config.num_key_value_heads
    if config.decouple_router:
        q = lm.model.layers[layer].self_attn.router_q_proj(hidden).view(q.shape)
    reduce = {"mean": lambda x: x.mean(), "max": lambda x: x.max()}
    cosine = config.routing_similarity == "cosine"
    scale = 1.0 if cosine and config.decouple_router else config.head_dim**-0.5

    def similarity(a, b):
        return scale * (torch.cosine_similarity(a, b, 0) if cosine else a @ b)

    scores = []
    for routing_keys, *_ in documents:
        chunks = []
        for key in routing_keys:
            tokens = [
                reduce[config.head_reduce](
                    torch.stack([similarity(q[t, h], key[h // group]) for h in range(len(q[t]))])
                )
                for t in range(len(routes))
                if routes[t]
            ]
            chunks.append(reduce[config.query_reduce](torch.stack(tokens)))
        scores.append(reduce[config.chunk_reduce](torch.stack(chunks)))
    return torch.stack(scores)


def plain_question(lm, question, routes, documents, prefix):
    """Logits and selected documents of a question that attends to [prefix | chunks of the selected | itself]."""
    memory, (_, before) = plain_memory(lm, documents), plain_layers(lm, prefix, 0)
    chosen = {}

    def columns_before(layer, hidden, q):
        keys, values, bias = [before[layer][1]], [before[layer][2]], [torch.zeros(len(prefix))]
        if layer in memory:
            scores = plain_scores(lm, layer, hidden, q, routes, memory[layer])
            chosen[layer] = scores.argsort(descending=True)[: lm.config.top_k_docs].tolist()
            for doc in chosen[layer]:
                _, k, v = memory[layer][doc]
                added = torch.zeros(())
                if lm.config.routing_bias:
                    alpha = lm.model.layers[layer].self_attn.routing_alpha
                    added = alpha * (scores[doc] - scores.max()) / lm.config.routing_temperature
                keys.append(k)
                values.append(v)
                bias.append(added.expand(len(k)))
        return torch.cat(keys), torch.cat(values), torch.cat(bias)

    states, _ = plain_layers(lm, question, len(prefix) + lm.config.top_k_docs, columns_before)
    return lm.lm_head(states), chosen


# ---- documents (stage 1)


@pytest.mark.parametrize("name", [*FAMILIES, "undecoupled", "all-layers"])
@torch.no_grad()
def test_documents_are_pooled_token_states(name):
    lm = tiny_lm(**SETTINGS[name])
    memory, expected = memory_of(lm), plain_memory(lm, DOCUMENTS)
    assert memory.num_documents == len(DOCUMENTS)
    assert sorted(memory.keys) == sorted(memory.values) == sorted(memory.routing_keys) == lm.config.router_layers
    for layer, documents in expected.items():
        for doc, pooled in enumerate(documents):
            rows = slice(*memory.chunk_offsets[doc : doc + 2].tolist())
            states = (memory.routing_keys[layer], memory.keys[layer], memory.values[layer])
            for ours, theirs in zip(states, pooled, strict=True):
                torch.testing.assert_close(ours[rows], theirs, **CLOSE)


@torch.no_grad()
def test_a_document_is_the_same_alone_in_any_batch_and_with_any_padding(lm):
    ids, lengths = pad_right(DOCUMENTS)
    alone = DocumentMemory.concatenate([memory_of(lm, [document]) for document in DOCUMENTS])
    for padding in (0, 77, 258):
        padded = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], padding)
        padded = torch.cat((padded, torch.full((len(ids), 5), padding)), 1)
        batch = lm.encode_documents(padded, lengths)
        assert batch.chunk_offsets.tolist() == alone.chunk_offsets.tolist()
        for layer in lm.config.router_layers:
            for name in ("keys", "values", "routing_keys"):
                torch.testing.assert_close(getattr(batch, name)[layer], getattr(alone, name)[layer], **CLOSE)


def test_bad_lengths_are_refused(lm):
    ids = torch.zeros(2, 4, dtype=torch.long)
    for lengths in ([4, 5], [4, 0]):
        with pytest.raises(ValueError, match="token"):
            lm.encode_documents(ids, torch.tensor(lengths))
    with pytest.raises(ValueError, match="empty"):
        DocumentMemory.concatenate([])


# ---- one question (stage 2)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_a_question_attends_to_prefix_selected_chunks_and_itself(name):
    lm = tiny_lm(**SETTINGS[name])
    out = ask(lm, memory=memory_of(lm), prefix=prefix_of(lm))
    logits, chosen = plain_question(lm, QUESTION, ROUTES, DOCUMENTS, PREFIX)
    assert {layer: rows[0] for layer, rows in selected(out).items()} == chosen
    torch.testing.assert_close(out.logits[0], logits, **CLOSE)


@torch.no_grad()
def test_memory_and_prefix_change_the_answer(lm):
    memory, prefix = memory_of(lm), prefix_of(lm)
    logits = [ask(lm, **given).logits for given in ({}, {"memory": memory}, {"memory": memory, "prefix": prefix})]
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert (logits[1] - logits[2]).abs().max() > 0.1


@torch.no_grad()
def test_only_the_routing_tokens_route(lm):
    memory = memory_of(lm)
    everything = ask(lm, routes=[True] * 11, memory=memory)
    unmarked = lm(torch.tensor([QUESTION]), memory=memory)
    some = ask(lm, memory=memory)
    layer = lm.config.router_layers[0]
    torch.testing.assert_close(unmarked.routing[layer].doc_scores, everything.routing[layer].doc_scores)
    assert (some.routing[layer].doc_scores <= everything.routing[layer].doc_scores + 1e-6).all()
    assert not torch.allclose(some.routing[layer].doc_scores, everything.routing[layer].doc_scores)


@torch.no_grad()
def test_routing_pass_scores_without_attending(lm):
    memory, prefix = memory_of(lm), prefix_of(lm)
    ids, routes = torch.tensor([QUESTION]), torch.tensor([ROUTES])
    passed = lm.route(ids, memory, routing_mask=routes, prefix=prefix)
    first, last = lm.config.router_layers
    attended = ask(lm, memory=memory, prefix=prefix).routing
    torch.testing.assert_close(passed[first].doc_scores, attended[first].doc_scores, **CLOSE)
    # the second router layer has not seen what the first one selected: as if its documents were hidden from it
    _, kept = plain_layers(
        lm,
        QUESTION,
        len(PREFIX) + lm.config.top_k_docs,
        lambda layer, hidden, q: (
            prefix.keys[layer].transpose(0, 1),
            prefix.values[layer].transpose(0, 1),
            torch.zeros(3),
        ),
    )
    documents = plain_memory(lm, DOCUMENTS)[last]
    expected = plain_scores(lm, last, kept[last][0], torch.zeros(11, 6, 8), ROUTES, documents)
    torch.testing.assert_close(passed[last].doc_scores[0], expected, **CLOSE)


@torch.no_grad()
def test_order_of_documents_does_not_matter_when_all_are_selected():
    lm = tiny_lm(top_k_docs=5, routing_bias=True)
    order = [3, 0, 4, 2, 1]
    straight = ask(lm, memory=memory_of(lm), prefix=prefix_of(lm))
    shuffled = ask(lm, memory=memory_of(lm, [DOCUMENTS[i] for i in order]), prefix=prefix_of(lm))
    torch.testing.assert_close(straight.logits, shuffled.logits, **CLOSE)
    for layer, rows in selected(shuffled).items():
        assert [order[i] for i in rows[0]] == selected(straight)[layer][0]


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_masked_documents_are_as_if_not_there(bias):
    lm = tiny_lm(routing_bias=bias)
    memory = memory_of(lm)
    best = selected(ask(lm, memory=memory))[2][0][0]
    kept = [index for index in range(5) if index != best]
    masked = ask(lm, memory=memory, doc_mask=torch.arange(5) != best)
    without = ask(lm, memory=memory_of(lm, [DOCUMENTS[i] for i in kept]))
    torch.testing.assert_close(masked.logits, without.logits, **CLOSE)
    for layer, rows in selected(without).items():
        assert [kept[i] for i in rows[0]] == selected(masked)[layer][0]


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_nothing_to_select(bias):
    """No documents, all documents hidden, or no routing token: the question attends to prefix and itself."""
    lm = tiny_lm(routing_bias=bias)
    prefix, memory = prefix_of(lm), memory_of(lm)
    empty = lm.encode_documents(torch.zeros(0, 4, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    positions = torch.arange(11)[None] + len(PREFIX) + lm.config.top_k_docs
    expected = ask(lm, prefix=prefix, position_ids=positions).logits
    for out in (
        ask(lm, prefix=prefix, memory=empty),
        ask(lm, prefix=prefix, memory=memory, doc_mask=torch.zeros(5, dtype=torch.bool)),
        ask(lm, prefix=prefix, memory=memory, routes=[False] * 11),
    ):
        torch.testing.assert_close(out.logits, expected, **CLOSE)
        assert all(doc == -1 for rows in selected(out).values() for doc in rows[0])


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_more_documents_wanted_than_there_are(bias):
    lm = tiny_lm(routing_bias=bias)
    memory = memory_of(lm)
    positions = torch.arange(11)[None] + 5
    wanted = ask(lm, memory=memory, top_k=9, position_ids=positions)
    torch.testing.assert_close(wanted.logits, ask(lm, memory=memory, top_k=5).logits, **CLOSE)
    assert sorted(selected(wanted)[2][0]) == [-1, -1, -1, -1, 0, 1, 2, 3, 4]


# ---- batches of questions


@pytest.mark.parametrize("name", ["qwen3", "biased"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_questions_in_a_batch_are_as_alone(name, side):
    lm = tiny_lm(**SETTINGS[name])
    memory, prefix = memory_of(lm), prefix_of(lm)
    questions = random_tokens(11, 4, 7, 5, seed=4)
    routes = [ROUTES, [True] * 4, [False] * 7, [False, True, False, False, False]]
    ids, mask = pad_left(questions)
    marks, _ = pad_left([[int(mark) for mark in row] for row in routes])
    if side == "right":
        ids, mask, marks = ids.flip(1), mask.flip(1), marks.flip(1)
        for row, (question, marked) in enumerate(zip(questions, routes, strict=True)):
            ids[row, mask[row]], marks[row, mask[row]] = torch.tensor(question), torch.tensor(marked).long()
    ids[~mask] = 99
    marks[~mask] = 1  # padding never routes, whatever it is marked as
    out = lm(ids, attention_mask=mask, routing_mask=marks, memory=memory, prefix=prefix)
    step = torch.tensor([[5, 6], [7, 8], [9, 10], [11, 12]])
    after = lm(step, cache=out.cache)
    for row, (question, marked) in enumerate(zip(questions, routes, strict=True)):
        alone = ask(lm, question, marked, memory=memory, prefix=prefix)
        torch.testing.assert_close(out.logits[row, mask[row]], alone.logits[0], **CLOSE)
        for layer, routing in alone.routing.items():
            torch.testing.assert_close(out.routing[layer].doc_scores[row], routing.doc_scores[0], **CLOSE)
            assert out.routing[layer].doc_indices[row].tolist() == routing.doc_indices[0].tolist()
        longer = ask(lm, question + step[row].tolist(), [*marked, False, False], memory=memory, prefix=prefix)
        torch.testing.assert_close(after.logits[row], longer.logits[0, -2:], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_memory(lm, side):
    """Nothing but padding is left of a padding token: no NaN comes of it, forward or backward."""
    ids, mask = pad_left([QUESTION, QUESTION[:4]])
    if side == "right":
        ids, mask = torch.stack((ids[0], ids[1].roll(4))), torch.stack((mask[0], mask[1].roll(4)))
    fresh = tiny_lm()
    out = fresh(ids, attention_mask=mask, labels=ids.masked_fill(~mask, -100))
    alone = lm(torch.tensor([QUESTION[:4]]))
    torch.testing.assert_close(out.logits[1, mask[1]], alone.logits[0], **CLOSE)
    out.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in fresh.parameters() if parameter.grad is not None)


def prompts_of(lengths=(11, 4, 7), tokens=9, **fields):
    for index, ids in enumerate(random_tokens(*lengths, seed=4)):
        routes = [place % 3 != index % 3 for place in range(len(ids))]
        yield Prompt(ids=ids, routes=routes, max_new_tokens=tokens, **fields)


def decode(lm, prompts, **given):
    decoding = Decoding(lm, list(prompts), **given)
    for _ in decoding.run():
        pass
    return decoding


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["llama", "biased"])
def test_rows_decode_as_alone(name, sampling):
    lm = tiny_lm(**SETTINGS[name])
    with torch.no_grad():
        given = {"memory": memory_of(lm), "prefix": prefix_of(lm)}
    prompts = list(prompts_of(sampling=sampling))
    prompts[1].max_new_tokens = 3
    prompts[2].routes = []
    batch = decode(lm, prompts, **given)
    assert (batch.routing[2].doc_indices[2] == -1).all()
    assert [len(row.generated) for row in batch.rows] == [9, 3, 9]
    for row, prompt in enumerate(prompts):
        alone = decode(lm, [prompt], **given)
        assert batch.rows[row].generated == alone.rows[0].generated
        for layer, routing in alone.routing.items():
            assert batch.routing[layer].doc_indices[row].tolist() == routing.doc_indices[0].tolist()
    assert len({tuple(row.generated[:3]) for row in batch.rows}) == 3  # the rows do differ


# ---- decoding


@pytest.mark.parametrize("name", ["qwen3", "biased", "all-layers"])
def test_decoding_equals_full_passes(name):
    lm = tiny_lm(**SETTINGS[name])
    with torch.no_grad():
        given = {"memory": memory_of(lm), "prefix": prefix_of(lm)}
        (row,) = decode(lm, [Prompt(ids=QUESTION, routes=ROUTES, max_new_tokens=20)], **given).rows
        ids, expected = list(QUESTION), []
        for _ in range(20):
            expected.append(int(ask(lm, ids, ROUTES + [False] * len(expected), **given).logits[0, -1].argmax()))
            ids.append(expected[-1])
    assert row.generated == expected
    assert len(set(expected)) > 3


@torch.no_grad()
def test_cache_grows_past_its_reserve(lm):
    memory, prefix = memory_of(lm), prefix_of(lm)
    ids = random_tokens(400, seed=5)[0]
    out = lm(torch.tensor([QUESTION]), memory=memory, prefix=prefix, routing_mask=torch.tensor([ROUTES]))
    logits = []
    for piece in (ids[:1], ids[1:150], ids[150:151], ids[151:]):
        out = lm(torch.tensor([piece]), cache=out.cache)
        logits.append(out.logits[0])
    whole = ask(lm, QUESTION + ids, ROUTES + [False] * 400, memory=memory, prefix=prefix)
    torch.testing.assert_close(torch.cat(logits), whole.logits[0, 11:], **CLOSE)


@pytest.mark.parametrize("prefill_tokens", [1, 3, 5, 8])
def test_prefill_in_pieces_equals_whole(lm, prefill_tokens):
    with torch.no_grad():
        given = {"memory": memory_of(lm), "prefix": prefix_of(lm)}
    prompts = list(prompts_of(lengths=(23, 4, 9)))
    prompts[0].routes = [place < 6 for place in range(23)]
    prompts[1].routes = prompts[2].routes = []  # these rows are all padding in the first pieces
    whole, pieces = decode(lm, prompts, **given), decode(lm, prompts, prefill_tokens=prefill_tokens, **given)
    assert [row.generated for row in whole.rows] == [row.generated for row in pieces.rows]
    for layer, routing in whole.routing.items():
        assert routing.doc_indices.tolist() == pieces.routing[layer].doc_indices.tolist()
    assert (whole.routing[2].doc_indices[0] >= 0).all()


@pytest.mark.parametrize("ended_by", ["stop", "length"])
@pytest.mark.parametrize("name", ["qwen3", "biased"])
def test_extending_equals_a_fresh_prefill(name, ended_by):
    lm = tiny_lm(**SETTINGS[name])
    with torch.no_grad():
        given = {"memory": memory_of(lm), "prefix": prefix_of(lm)}
    prompt = Prompt(ids=QUESTION, routes=ROUTES, max_new_tokens=6)
    if ended_by == "stop":
        prompt.stop_when = lambda generated: len(generated) == 4
    decoding = decode(lm, [prompt], **given)
    assert decoding.rows[0].finish_reason == ended_by
    added = random_tokens(7, seed=6)[0]
    transcript = [*QUESTION, *decoding.rows[0].generated, *added]
    onward = Prompt(ids=transcript, routes=ROUTES + [False] * (len(transcript) - 11), max_new_tokens=10)
    decoding.extend(added, onward)
    for _ in decoding.run():
        pass
    assert decoding.rows[0].generated == decode(lm, [onward], **given).rows[0].generated


def test_limits_of_a_row(lm):
    free = decode(lm, prompts_of(lengths=(8,))).rows[0].generated
    row = decode(lm, prompts_of(lengths=(8,), stop_ids=frozenset({free[2]}))).rows[0]
    assert (row.generated, row.finish_reason) == (free[: free.index(free[2]) + 1], "stop")
    row = decode(lm, prompts_of(lengths=(8,), allowed=lambda generated: [7, 9] if len(generated) % 2 else [8])).rows[0]
    assert row.generated[::2] == [8] * 5
    assert set(row.generated[1::2]) <= {7, 9}


def test_decoding_stops_between_tokens_when_cancelled(lm):
    seen = []
    decoding = Decoding(lm, list(prompts_of()))
    for index, token in decoding.run(cancelled=lambda: len(seen) >= 6):
        seen.append((index, token))
    assert [row.finish_reason for row in decoding.rows] == ["cancelled"] * 3
    assert [index for index, _ in seen] == [0, 1, 2, 0, 1, 2]


def test_empty_prompts_and_batches_that_cannot_be_extended_are_refused(lm):
    for prompts in ([], [Prompt(ids=[])]):
        with pytest.raises(ValueError, match="at least one token"):
            Decoding(lm, prompts)
    with pytest.raises(ValueError, match="single row"):
        decode(lm, prompts_of()).extend([1], Prompt(ids=[1]))


# ---- fused projections


@pytest.mark.parametrize("name", [*FAMILIES, "biased"])
def test_fused_projections_change_nothing(name, tmp_path):
    """Neither outputs nor gradients, nor what is saved."""
    separate, fused = (tiny_lm(**SETTINGS[name], mlp_bias=name == "llama") for _ in range(2))
    before = {key: tensor.clone() for key, tensor in fused.state_dict().items()}
    fused.fuse_projections()
    assert all(torch.equal(tensor, before[key]) for key, tensor in fused.state_dict().items())
    answers = []
    for lm in (separate, fused):
        with torch.no_grad():
            given = {"memory": memory_of(lm), "prefix": prefix_of(lm)}
        answers.append(decode(lm, prompts_of(), **given))
        training_step(lm).loss.backward()
    assert [row.generated for row in answers[0].rows] == [row.generated for row in answers[1].rows]
    for (key, theirs), (_, ours) in zip(separate.named_parameters(), fused.named_parameters(), strict=True):
        if key != "temperature":
            torch.testing.assert_close(ours.grad, theirs.grad, msg=key, **CLOSE)
    fused.save_pretrained(tmp_path)
    loaded = MSAForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in loaded.state_dict().items())


def scale_in_place(layer):
    layer.self_attn.k_proj.weight.mul_(2)


def replace_weight(layer):
    layer.mlp.up_proj.weight = torch.nn.Parameter(layer.mlp.up_proj.weight * 2)


def replace_bias(layer):
    layer.self_attn.k_proj.bias = torch.nn.Parameter(layer.self_attn.k_proj.bias * 2 + 1)


def replace_layer(layer):
    layer.self_attn.v_proj = torch.nn.Sequential(layer.self_attn.v_proj, torch.nn.Tanh())


def take_a_step(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("change", [scale_in_place, replace_weight, replace_bias, replace_layer, take_a_step])
@torch.no_grad()
def test_fused_projections_see_every_change(change):
    separate, fused = tiny_lm("llama"), tiny_lm("llama")
    fused.fuse_projections()
    before = ask(fused).logits
    for lm in (separate, fused):
        change(lm.model.layers[1])
    after = ask(fused).logits
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, ask(separate).logits, **CLOSE)


@torch.no_grad()
def test_fused_projections_move_to_another_dtype():
    lm = tiny_lm()
    lm.fuse_projections()
    plain = tiny_lm().bfloat16()
    torch.testing.assert_close(ask(lm.bfloat16()).logits, ask(plain).logits)


# ---- training


def training_step(lm):
    """Two samples with their own documents and positives, padded; everything the loss can depend on is asked for."""
    questions = random_tokens(9, 6, seed=7)
    ids, lengths = pad_right(questions)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    labels = ids.masked_fill(~mask, -100)
    return lm(
        ids,
        attention_mask=mask,
        routing_mask=torch.tensor([[1, 1, 0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0]]),
        labels=labels,
        answer_labels=labels.masked_fill(torch.arange(9) < 3, -100),
        memory=memory_of(lm, random_tokens(9, 3, 14, 1, 8, 6, 5, seed=8)),
        prefix=prefix_of(lm),
        doc_sample=torch.tensor([0, 1, 0, 1, 1, 0, 0]),
        positives=[[0, 5], [3]],
    )


def naive_causal(query, keys, values):
    hidden = torch.full((query.shape[2],) * 2, float("-inf")).triu(1)
    return attend_memory_naive(query, keys, values, hidden[None, None])


def naive_pooling(lengths, num_tokens, chunk_size, device):
    return lambda states: pool_chunks_naive(states, lengths, chunk_size)


@pytest.mark.parametrize("name", ["qwen3", "biased", "qwen2", "other-reductions", "undecoupled"])
def test_training_step_equals_the_naive_operations(name, monkeypatch):
    lm = tiny_lm(**SETTINGS[name])
    results = []
    for naive in (False, True):
        if naive:
            monkeypatch.setattr(msa.model.attention, "attend_memory", attend_memory_naive)
            monkeypatch.setattr(msa.model.attention, "attend_causal", naive_causal)
            monkeypatch.setattr(msa.model.modeling_msa, "ChunkPooling", naive_pooling)
            monkeypatch.setattr(msa.model.memory_view, "route", route_naive)
        lm.zero_grad()
        out = training_step(lm)
        out.loss.backward()
        assert out.cache is None
        results.append((out, {name: parameter.grad for name, parameter in lm.named_parameters()}))
    (ours, our_grads), (theirs, their_grads) = results
    assert selected(ours) == selected(theirs)
    for rows in selected(ours).values():
        assert set(rows[0]) <= {0, 2, 5, 6}
        assert set(rows[1]) <= {1, 3, 4}
    for field in ("loss", "lm_loss", "answer_loss", "aux_loss", "logits"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), **CLOSE)
    for parameter, grad in our_grads.items():
        if parameter == "temperature":
            assert grad is None
        else:
            assert grad.isfinite().all()
            torch.testing.assert_close(grad, their_grads[parameter], **CLOSE)


def test_losses_are_weighted():
    out = training_step(tiny_lm(lm_loss_weight=0.3, routing_loss_weight=2.0, answer_loss_weight=0.7))
    torch.testing.assert_close(out.loss, 0.3 * out.lm_loss + 2.0 * out.aux_loss + 0.7 * out.answer_loss)


@pytest.mark.parametrize("bias", [False, True])
def test_what_the_language_loss_trains(bias):
    """It reaches documents through their content; routers only through the routing bias."""
    lm = tiny_lm(routing_bias=bias)
    training_step(lm).lm_loss.backward()
    for layer in lm.config.router_layers:
        attention = lm.model.layers[layer].self_attn
        assert attention.k_proj.weight.grad.any()
        for name in ("router_q_proj", "router_k_proj"):
            grad = getattr(attention, name)[0].weight.grad
            assert (grad is not None and bool(grad.any())) == bias
        if bias:
            assert attention.routing_alpha.grad.abs() > 0


def test_the_routing_loss_trains_the_routers():
    lm = tiny_lm()
    training_step(lm).aux_loss.backward()
    for layer in lm.config.router_layers:
        attention = lm.model.layers[layer].self_attn
        assert attention.router_q_proj[0].weight.grad.any()
        assert attention.router_k_proj[0].weight.grad.any()


@pytest.mark.parametrize("bias", [False, True])
def test_a_sample_without_documents_does_no_harm(bias):
    """A row that can select nothing has the gradients of its language loss, and no NaN."""
    lm = tiny_lm(routing_bias=bias)
    ids = torch.tensor(random_tokens(6, 6, seed=7))
    out = lm(ids, labels=ids, memory=memory_of(lm), doc_sample=torch.zeros(5, dtype=torch.long), positives=[[1], []])
    assert selected(out)[2][1] == [-1, -1, -1]
    out.loss.backward()
    damaged = [
        name
        for name, parameter in lm.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    assert damaged == []


def test_document_masks_combine(lm):
    with torch.no_grad():
        out = lm(
            torch.tensor(random_tokens(6, 6, seed=7)),
            memory=memory_of(lm),
            doc_sample=torch.tensor([0, 0, 1, 1, 1]),
            doc_mask=torch.tensor([True, False, True, False, True]),
        )
    assert [sorted(row) for row in selected(out)[2]] == [[-1, -1, 0], [-1, 2, 4]]


def test_routers_of_the_lower_half_have_no_routing_loss():
    lm = tiny_lm(router_layers="all")
    training_step(lm).aux_loss.backward()
    for layer, decoder_layer in enumerate(lm.model.layers):
        grad = decoder_layer.self_attn.router_q_proj[0].weight.grad
        assert (grad is not None and bool(grad.any())) == (layer >= 2)
    with pytest.raises(ValueError, match="upper half"):
        training_step(tiny_lm(router_layers=[0, 1]))


def test_positives_without_a_memory_are_refused(lm):
    with pytest.raises(ValueError, match="needs a memory"):
        lm(torch.tensor([QUESTION]), positives=[[0]])


def test_training_after_inference(lm):
    """Tables that a first pass in inference mode leaves behind must not spoil a later backward."""
    fresh = tiny_lm()
    with torch.inference_mode():
        ask(fresh, memory=memory_of(fresh), prefix=prefix_of(fresh))
    training_step(fresh).loss.backward()
    assert fresh.model.embed_tokens.weight.grad.any()


# ---- configuration and files


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("shards", ["5GB", "50KB"])
@torch.no_grad()
def test_saved_models_load_the_same(name, shards, tmp_path):
    lm = tiny_lm(**SETTINGS[name])
    lm.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "50KB")
    loaded = MSAForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.dtype == torch.float32
    for (key, ours), (_, theirs) in zip(lm.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), key
    given = {"memory": memory_of(lm), "prefix": prefix_of(lm)}
    torch.testing.assert_close(ask(loaded, **given).logits, ask(lm, **given).logits, rtol=0, atol=0)


@torch.no_grad()
def test_tied_embeddings_are_saved_once_and_stay_tied(tmp_path):
    lm = tiny_lm(tie_word_embeddings=True)
    lm.tie_weights()
    lm.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = MSAForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    torch.testing.assert_close(loaded.eval()(torch.tensor([QUESTION])).logits, ask(lm).logits)


def test_auto_classes_find_the_model(tmp_path):
    tiny_lm().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MSAConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), MSAForCausalLM)


@torch.no_grad()
def test_bfloat16(tmp_path):
    lm = tiny_lm(routing_bias=True)
    lm.save_pretrained(tmp_path)
    loaded = MSAForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    memory = memory_of(loaded)
    assert memory.keys[2].dtype == torch.bfloat16
    ids, mask = pad_left([QUESTION, QUESTION[:5]])
    out = loaded(ids, attention_mask=mask, memory=memory, prefix=prefix_of(loaded))
    assert out.routing[2].scores.dtype == torch.float32
    after = loaded(torch.tensor([[3], [4]]), cache=out.cache)
    assert after.logits.dtype == torch.bfloat16
    expected = lm(ids, attention_mask=mask, memory=memory_of(lm), prefix=prefix_of(lm)).routing[2].doc_scores
    torch.testing.assert_close(out.routing[2].doc_scores, expected, rtol=0, atol=0.05)
    saved = tmp_path / "bfloat16"
    loaded.save_pretrained(saved)
    assert MSAForCausalLM.from_pretrained(saved).dtype == torch.bfloat16


def test_a_checkpoint_without_routers_gets_fresh_ones(tmp_path):
    """Continual training starts so; missing tensors are initialised, never left as they lay in memory."""
    plain = tiny_lm(router_layers=[3])
    plain.save_pretrained(tmp_path)
    config = MSAConfig.from_pretrained(tmp_path, router_layers=[2, 3], routing_bias=True)
    loaded = MSAForCausalLM.from_pretrained(tmp_path, config=config)
    for layer in (2, 3):
        attention = loaded.model.layers[layer].self_attn
        assert attention.routing_alpha.item() == 1.0
        assert attention.router_q_proj[0].weight.isfinite().all()
    assert loaded.model.layers[2].self_attn.router_q_proj[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert loaded.temperature.item() == pytest.approx(0.1)


CHANGED = {
    "backbone": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "hidden_act": "gelu",
    "max_position_embeddings": 777,
    "initializer_range": 0.5,
    "rms_norm_eps": 1e-4,
    "use_cache": False,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 12345.0, "factor": 2.0},
    "no_rope_layers": [1, 0, 1, 1, 1, 0],
    "attention_bias": True,
    "mlp_bias": True,
    "attention_dropout": 0.25,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "eos_token_id": [7, 8],
    "router_layers": [1, 5],
    "chunk_size": 16,
    "top_k_docs": 7,
    "decouple_router": False,
    "routing_similarity": "dot",
    "head_reduce": "max",
    "query_reduce": "last",
    "chunk_reduce": "mean",
    "routing_loss": "INFONCE_FOCAL",
    "routing_temperature": 0.05,
    "routing_bias_temperature": 0.2,
    "lm_loss_weight": 0.5,
    "routing_loss_weight": 0.25,
    "answer_loss_weight": 0.75,
    "routing_bias": True,
    "protocol": {"prefix": "<|im_start|>user\n", "reader_documents": 2},
}


def own_fields(config):
    return {name: getattr(config, name) for name in MSAConfig.__annotations__ if name != "model_type"}


def test_config_round_trip_keeps_every_field(tmp_path):
    config = MSAConfig(**CHANGED)
    defaults = own_fields(MSAConfig())
    assert sorted(defaults) == sorted(CHANGED)
    assert [name for name, value in defaults.items() if value == CHANGED[name]] == []
    config.save_pretrained(tmp_path)
    assert own_fields(MSAConfig.from_pretrained(tmp_path)) == own_fields(config) == CHANGED


def test_config_round_trip_keeps_defaults_that_another_field_would_imply(tmp_path):
    """head_dim 128 is the default's own, and not hidden_size / heads here."""
    config = MSAConfig(hidden_size=2560, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    config.save_pretrained(tmp_path)
    assert own_fields(MSAConfig.from_pretrained(tmp_path)) == own_fields(config)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [2, 3]),
        ("all", [0, 1, 2, 3]),
        ("2,3", [2, 3]),
        (" 3, 1 ", [1, 3]),
        ([3, 2, 3], [2, 3]),
        ([0], [0]),
    ],
)
def test_router_layers_are_understood(layers, expected):
    assert MSAConfig(num_hidden_layers=4, router_layers=layers).router_layers == expected


@pytest.mark.parametrize("layers", ["upper", "2,x", "", "2,4", [4], [-1], []])
def test_bad_router_layers_are_refused(layers):
    with pytest.raises(UnsupportedModelError, match="router layers"):
        MSAConfig(num_hidden_layers=4, router_layers=layers)


def test_published_settings_are_translated(tmp_path):
    published = {
        "router_layer_idx": "2,3",
        "pooling_kernel_size": 32,
        "top_k_docs": 5,
        "aux_loss_method": "INFONCE",
        "infonce_loss_temp": 0.2,
        "lmloss_weigth": 0.9,
        "rewrite_position": True,
    }
    config = MSAConfig(num_hidden_layers=4, msa_config=published)
    assert (config.router_layers, config.chunk_size, config.top_k_docs) == ([2, 3], 32, 5)
    assert (config.routing_loss, config.routing_similarity, config.lm_loss_weight) == ("INFONCE", "cosine", 0.9)
    config.save_pretrained(tmp_path)
    assert "msa_config" not in json.loads((tmp_path / "config.json").read_text())
    assert own_fields(MSAConfig.from_pretrained(tmp_path)) == own_fields(config)


@pytest.mark.parametrize(
    ("published", "message"),
    [({"doc_top_k": 3}, "doc_top_k.*known are"), ({"decouple_pooling_mode": "max"}, "'mean', found 'max'")],
)
def test_unknown_published_settings_are_refused(published, message):
    with pytest.raises(UnsupportedModelError, match=message):
        MSAConfig(msa_config=published)


@pytest.mark.parametrize("field", ["chunk_size", "top_k_docs"])
def test_sizes_below_one_are_refused(field):
    with pytest.raises(ValueError, match="at least 1"):
        MSAConfig(**{field: 0})


def test_training_scores_by_cosine_whatever_inference_does(lm):
    dotted = tiny_lm(routing_similarity="dot")
    for out, like in ((training_step(dotted), True), (ask(dotted, memory=memory_of(dotted)), False)):
        assert bool((out.routing[2].scores <= 1).all()) == like
    torch.testing.assert_close(training_step(dotted).aux_loss, training_step(lm).aux_loss)
    config = MSAConfig(routing_similarity="dot", head_dim=64)
    assert config.routing_spec().similarity == "dot"
    assert config.routing_spec().scale == 64**-0.5
    assert config.routing_spec(training=True).similarity == "cosine"
    assert config.routing_spec(training=True).scale == 1.0


def test_prefix_of_nothing():
    assert PrefixMemory().num_tokens == 0
