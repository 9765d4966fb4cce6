"""A layer more in a network that has learnt to route: what it compares, and what stays as it was."""

import pytest
import torch
from recipe_files import recipe
from torch import nn
from watching import Watching

import msa
from msa.model.bundle import MSAModel
from msa.training.config import TrainConfig
from msa.training.data.collate import rows_alone
from msa.training.reading_layer import with_reading_layer
from msa.training.tiny import PROTOCOL, QUOTING_PROTOCOL, fresh_network, tiny_config, train_tokenizer

WORDS = [f"{letter}{other}ing" for letter in "abcdefgh" for other in "klmnop"]
HAYSTACK = ["The grass is green.", "The sky is blue.", "A river ran past the old mill and on to the sea."]


@pytest.fixture
def model():
    """As a recipe begins: its first layer sees the tokens before."""
    # the word that makes a quotation a refusal is a token of its own
    tokenizer = train_tokenizer([*HAYSTACK, *WORDS, *[" mentioned"] * 100], 400)
    config = tiny_config(tokenizer, num_hidden_layers=4, router_layers=[2, 3], chunk_size=8)
    return MSAModel(fresh_network(config, seed=0), tokenizer, name="small")


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(20, 330, (60, 100), generator=generator).tolist()
    return rows_alone([(ids, ids) for ids in drawn], ["random"] * len(drawn))


def test_the_layer_goes_in_behind_the_first_and_routers_move_up(model, rows):
    before = {name: value.clone() for name, value in model.lm.named_parameters()}
    vocabulary = len(model.tokenizer)
    grown = with_reading_layer(model, rows, QUOTING_PROTOCOL, seed=0)
    config = grown.lm.config
    assert (config.num_hidden_layers, config.router_layers) == (5, [3, 4])
    assert config.no_rope_layers == [1, 0, 1, 1, 1]
    assert grown.protocol.strings == QUOTING_PROTOCOL
    assert grown.protocol.quotation_end_id == vocabulary == config.vocab_size - 1
    assert len(model.tokenizer) == vocabulary, "the model it is a copy of stays as it was"
    after = dict(grown.lm.named_parameters())
    for name, value in before.items():
        first, _, rest = name.removeprefix("model.layers.").partition(".")
        moved = f"model.layers.{int(first) + 1}.{rest}" if first.isdigit() and first != "0" else name
        kept = after[moved][:vocabulary] if "embed_tokens" in name else after[moved]
        assert torch.equal(kept, value), name
    assert grown.lm.lm_head.weight is grown.lm.model.embed_tokens.weight
    colon, quoted = grown.lm.model.embed_tokens.weight[[grown.tokenizer.convert_tokens_to_ids(":"), vocabulary]]
    assert nn.functional.cosine_similarity(colon, quoted, dim=0) > 0.5


def test_a_layer_that_writes_nothing_changes_nothing(model, rows):
    expected = model.lm(rows.input_ids[:3, :40]).logits
    grown = with_reading_layer(model, rows, PROTOCOL, seed=0)
    assert grown.lm.config.vocab_size == model.lm.config.vocab_size
    with torch.no_grad():
        grown.lm.model.layer(1).self_attn.o_proj.weight.zero_()
        torch.testing.assert_close(grown.lm(rows.input_ids[:3, :40]).logits, expected)


@torch.no_grad()
def test_its_heads_find_where_the_last_tokens_stood_before_at_any_distance(model, rows):
    grown = with_reading_layer(model, rows, QUOTING_PROTOCOL, seed=0)
    drawn = torch.randperm(300, generator=torch.Generator().manual_seed(1)) + 25
    for distance in (40, 250):
        text = drawn[:distance]
        ids = torch.cat([text, text[10:30]])[None]  # token distance + i is token 10 + i
        reader = Watching()
        grown.lm.model(ids, torch.arange(ids.shape[1])[None], reader)
        followers = torch.stack([reader.weights[1][:, distance + i, 11 + i] for i in range(5, 19)]).mean(0)
        comparing, other = followers.split([4, 2])
        assert comparing.min() > 5 / ids.shape[1], "of even attention it would have 1 / length"
        assert comparing.min() > 5 * other.max()


def test_the_same_seed_makes_the_same_layer(model, rows):
    one, same, other = (with_reading_layer(model, rows, QUOTING_PROTOCOL, seed=seed) for seed in (3, 3, 4))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_networks_that_cannot_have_one_are_refused(model, rows):
    model.lm.config.router_layers = [0, 3]
    with pytest.raises(ValueError, match="tied embeddings and a layer below the first router"):
        with_reading_layer(model, rows, QUOTING_PROTOCOL, seed=0)


def test_a_grown_model_is_saved_loaded_and_asked(model, rows, tmp_path):
    grown = with_reading_layer(model, rows, QUOTING_PROTOCOL, seed=0)
    grown.save_pretrained(tmp_path / "model")
    loaded = msa.load(tmp_path / "model", dtype="float32")
    assert loaded.fingerprint == grown.fingerprint
    with msa.Memory.open(tmp_path / "memory", loaded) as memory:
        memory.add([{"id": f"d{number}", "text": text} for number, text in enumerate(HAYSTACK)])
        assert isinstance(memory.ask("What is blue?", max_new_tokens=5).text, str)


def test_the_recipe_reads_last_from_the_model_that_has_decided(tmp_path, monkeypatch):
    tiny = recipe("tiny")
    out = str(tmp_path / "x")
    trained: list[TrainConfig] = []
    monkeypatch.setattr(tiny, "train", lambda model, config: trained.append(config) or f"{config.out}/model")
    monkeypatch.setattr(tiny, "fresh_model", lambda *given, **named: "fresh")
    monkeypatch.setattr(tiny, "reader", lambda model, worlds: f"{model} that reads")
    monkeypatch.setattr(tiny.msa, "load", lambda name, **options: name)
    monkeypatch.setattr("sys.argv", ["tiny.py", "--out", out, "--scale", "0.1"])
    tiny.main()
    assert [config.out for config in trained] == [out, f"{out}/deciding", f"{out}/reading"]
    assert [config.model for config in trained] == ["fresh", f"{out}/model", f"{out}/deciding/model"]
    reading = tiny.reading("runs/x")
    assert all(phase.recalls is not None for phase in reading.phases)
    assert reading.decay_steps >= reading.total_steps
    trained.clear()
    monkeypatch.setattr("sys.argv", ["tiny.py", "--out", out, "--reading-from", "other"])
    tiny.main()
    assert [config.out for config in trained] == [f"{out}/reading"]
    trained.clear()
    monkeypatch.setattr("sys.argv", ["tiny.py", "--out", out, "--phases", "2"])
    tiny.main()
    assert [len(config.phases) for config in trained] == [2]
