"""One more token of every row: the pass without modules computes what the decoder computes, and knows when it cannot."""

import copy

import peft
import pytest
import torch
from tiny import FAMILIES, random_tokens, tiny_lm

import msa.model.token_pass
from msa.documents.batching import pad_right
from msa.model import RunningCache
from msa.model.attention import QuestionReader
from msa.model.token_pass import Product, TokenPass, norm_of_few_rows

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
QUESTIONS = torch.tensor(random_tokens(7, 7, 7, seed=4))


@torch.no_grad()
def started(lm, rows=1):
    """Questions over a memory and a prefix, read but for their last token."""
    memory = lm.encode_documents(*pad_right(random_tokens(9, 3, 14, 1, 8, seed=1)))
    prefix = lm.encode_prefix(torch.tensor(random_tokens(3, seed=2)[0]))
    return lm(QUESTIONS[:rows, :-1], memory=memory, prefix=prefix, use_cache=True)


@torch.no_grad()
def next_token(lm, rows=1):
    return lm(QUESTIONS[:rows, -1:], cache=started(lm, rows).cache).logits


def without_modules(lm, monkeypatch):
    """Fail wherever the decoder's own forward pass is called."""

    def forward(*_):
        raise AssertionError("went through the modules")

    monkeypatch.setattr(lm.model, "forward", forward)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("backbone", FAMILIES)
def test_equals_the_decoder(backbone, rows, monkeypatch):
    plain, fused = tiny_lm(backbone, mlp_bias=backbone == "llama"), tiny_lm(backbone, mlp_bias=backbone == "llama")
    fused.fuse_projections()
    out = started(fused, rows)
    without_modules(fused, monkeypatch)
    with torch.no_grad():
        logits = fused(QUESTIONS[:rows, -1:], cache=out.cache).logits
    torch.testing.assert_close(logits, next_token(plain, rows), **CLOSE)


@torch.no_grad()
def test_a_single_token_routes_as_through_the_modules(monkeypatch):
    plain, fused = tiny_lm(routing_bias=True), tiny_lm(routing_bias=True)
    fused.fuse_projections()
    memory = plain.encode_documents(*pad_right(random_tokens(9, 3, 14, 1, 8, seed=1)))
    without_modules(fused, monkeypatch)
    for ids in QUESTIONS[:, :1]:
        theirs, ours = (lm(ids[None], memory=memory) for lm in (plain, fused))
        torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
        for layer, routing in theirs.routing.items():
            assert torch.equal(ours.routing[layer].doc_indices, routing.doc_indices)


@pytest.mark.parametrize("rows", [1, 3])
def test_bfloat16_is_as_close_as_bfloat16_is(rows):
    exact, plain, fused = tiny_lm("llama"), tiny_lm("llama").bfloat16(), tiny_lm("llama").bfloat16()
    fused.fuse_projections()
    expected = next_token(exact, rows)
    errors = [(next_token(lm, rows).float() - expected).norm() for lm in (plain, fused)]
    assert errors[1] < 1.5 * errors[0] < 0.1 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_few_rows(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 64, dtype=dtype) * 5 + 2, torch.randn(64, dtype=dtype)
    expected = torch.nn.functional.rms_norm(x.double(), (64,), weight.double(), 1e-5)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(norm_of_few_rows(x, weight, 1e-5).double(), expected, **close)
    assert torch.equal(norm_of_few_rows(torch.zeros(1, 64, dtype=dtype), weight, 1e-5), torch.zeros(1, 64, dtype=dtype))


def scale_in_place(lm):
    lm.model.layers[1].self_attn.k_proj.weight.mul_(2)
    lm.model.layers[1].post_attention_layernorm.weight.mul_(2)


def replace_weight(lm):
    lm.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(lm.model.layers[1].mlp.up_proj.weight * 2)


def replace_bias(lm):
    lm.model.layers[1].self_attn.k_proj.bias = torch.nn.Parameter(lm.model.layers[1].self_attn.k_proj.bias * 2 + 1)


def remove_bias(lm):
    lm.model.layers[1].self_attn.o_proj.bias = None


def wrap_layer(lm):
    lm.model.layers[1].self_attn.o_proj = torch.nn.Sequential(lm.model.layers[1].self_attn.o_proj, torch.nn.Tanh())


def replace_norm(lm):
    lm.model.norm = torch.nn.LayerNorm(48)


def move_data(lm):
    weight = lm.model.layers[1].mlp.down_proj.weight
    weight.data = weight.data * 2


def scale_data_in_place(lm):  # leaves pointers and versions as they are
    for layer in lm.model.layers:
        layer.mlp.down_proj.weight.data.mul_(2)


def merge_an_adapter(lm):
    torch.manual_seed(0)
    adapted = peft.get_peft_model(lm, peft.LoraConfig(target_modules=["o_proj", "down_proj"], init_lora_weights=False))
    adapted.merge_and_unload()


def replace_head(lm):
    torch.manual_seed(0)
    lm.lm_head = torch.nn.Linear(48, lm.config.vocab_size, bias=False)


CHANGES = [
    scale_in_place,
    replace_weight,
    replace_bias,
    remove_bias,
    wrap_layer,
    replace_norm,
    move_data,
    scale_data_in_place,
    merge_an_adapter,
    replace_head,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in bfloat16 by weights packed for several rows
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_every_change_of_the_network_is_seen(change, dtype):
    plain, fused = tiny_lm("llama").to(dtype), tiny_lm("llama").to(dtype)
    fused.fuse_projections()
    before = next_token(fused, 3)
    for lm in (plain, fused):
        change(lm)
        lm.to(dtype)
    after, expected = next_token(fused, 3), next_token(plain, 3)
    assert (after - expected).norm() < (1e-4 if dtype == torch.float32 else 0.4) * (expected - before).norm()


@torch.no_grad()
def test_a_change_that_torch_does_not_count_is_seen_by_rows_that_join_a_batch():
    def two_rows(lm):
        cache = RunningCache()
        for _ in range(2):
            cache.join(started(lm).cache)
        return cache.decode(lm, [1, 2])

    plain, fused = tiny_lm("llama").bfloat16(), tiny_lm("llama").bfloat16()
    fused.fuse_projections()
    before = two_rows(fused)
    for lm in (plain, fused):
        merge_an_adapter(lm)
    after, expected = two_rows(fused), two_rows(plain)
    assert (after - expected).norm() < 0.1 * (expected - before).norm()


@pytest.mark.parametrize("bias", [False, True])
def test_packed_products_are_the_plain_ones(bias):
    torch.manual_seed(0)
    weight, offset = torch.randn(96, 64).bfloat16(), torch.randn(96).bfloat16() if bias else None
    plain, packed = Product(weight, offset), Product(weight, offset)
    packed.pack()
    for rows in (1, 2, 5, 16):
        x = torch.randn(rows, 64).bfloat16()
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-2, atol=5e-2)
    weight.zero_()
    x = torch.randn(2, 64).bfloat16()
    assert packed(x).count_nonzero() > 100, "the packed weight is a copy"
    packed.pack()
    torch.testing.assert_close(packed(x), plain(x))


def test_large_networks_are_not_packed(monkeypatch):
    monkeypatch.setattr(msa.model.token_pass, "PACKED_BYTES", 1000)
    monkeypatch.setattr(Product, "pack", lambda _: pytest.fail("packed"))
    fused = tiny_lm().bfloat16()
    fused.fuse_projections()
    next_token(fused, 3)


@torch.no_grad()
def test_a_copy_of_the_network_has_its_own_weights():
    fused = tiny_lm()
    fused.fuse_projections()
    copied = copy.deepcopy(fused)
    expected = next_token(fused)
    for parameter in fused.parameters():
        parameter.zero_()
    torch.testing.assert_close(next_token(copied), expected, **CLOSE)


def test_gradients_go_through_the_modules():
    lm = tiny_lm()
    lm.fuse_projections()
    lm(QUESTIONS[:1, :1]).logits.sum().backward()
    assert all(parameter.grad is not None for name, parameter in lm.named_parameters() if "o_proj" in name)


def test_layers_that_are_no_plain_ones_are_refused():
    lm = tiny_lm()
    lm.fuse_projections()
    lm.lm_head = torch.nn.Sequential(lm.lm_head)
    with pytest.raises(TypeError, match="lm_head"):
        TokenPass(lm)


def test_needs_fused_projections():
    with pytest.raises(RuntimeError, match="fuse"):
        TokenPass(tiny_lm())


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@torch.no_grad()
def test_hooks_of_modules_are_called(kind):
    lm, called = tiny_lm(), []
    lm.fuse_projections()
    out = started(lm)
    handle = getattr(lm.model.layers[1].mlp, kind)(lambda *_: called.append(1))
    lm(QUESTIONS[:1, -1:], cache=out.cache)
    assert called == [1]
    handle.remove()
    lm(QUESTIONS[:1, -1:], cache=out.cache)
    assert called == [1]


@torch.no_grad()
def test_hidden_states_are_collected_by_the_modules():
    lm = tiny_lm()
    lm.fuse_projections()
    out = lm(QUESTIONS[:1, :1], output_hidden_states=True)
    assert out.hidden_states is not None
    assert len(out.hidden_states) == lm.config.num_hidden_layers + 1


def test_separated_projections_end_it():
    lm = tiny_lm()
    lm.fuse_projections()
    lm.separate_projections()
    reader = QuestionReader(spec=lm.config.routing_spec(), top_k=1)
    with torch.no_grad():
        states, logits = lm.read_token(QUESTIONS[:1, :1], torch.zeros(1, 1, dtype=torch.int64), reader)
    assert states.shape == (1, 1, 48)
    assert logits.shape == (1, 1, lm.config.vocab_size)
