import json

import pytest


def ratios_hold(figure):
    best = figure["seconds"]["best"]
    assert 0 < best <= figure["seconds"]["median"]
    for times in figure["baselines"].values():
        assert times["times as fast here"] == pytest.approx(times["best"] / best)
    highest = max(times["best"] for times in figure["floors"].values())
    assert figure["floors"][figure["highest floor"]]["best"] == highest
    assert figure["/ floor"] == pytest.approx(best / highest)


def test_everything_is_measured_and_every_ratio_is_of_reported_numbers(msa, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("msa.bench.encoding._WARM_UP", 8)
    out = tmp_path / "speed.json"
    result = msa("bench", "--quick", "--model", model_folder, "--device", "cpu", "--tokens", "16K", "--out", out)
    assert result.code == 0, result.err
    found = json.loads(out.read_text())
    assert {"what", "command", "machine", "date", "model", "settings", "versions"} <= set(found)
    assert found["settings"] == {"what": "all", "tokens": 16000, "published": False, "quick": True}
    assert found["command"] == f"msa bench all --model {model_folder} --device cpu --tokens 16000 --quick"
    figures = [figure for part in ("routing", "encoding", "answering") for figure in found[part]]
    assert len(figures) == 3 + 2 + 4
    for figure in figures:
        assert figure["baselines"]
        ratios_hold(figure)
        assert figure["what"] in result.out
    assert found["routing"][0]["chunks"] == 250
    assert found["routing"][0]["heads"] == "2 kv heads x 3 x 8, cosine"
    lines = result.out.splitlines()
    assert lines[0].split() == ["here", "beside", "theirs", "faster", "floor", "x", "floor"]
    assert f"written to {out}" in lines[-1]


def test_one_part_in_the_published_shape(msa, model_folder, tmp_path):
    out = tmp_path / "routing.json"
    options = ("--quick", "--published", "--model", model_folder, "--device", "cpu", "--tokens", "6400", "--out", out)
    assert msa("bench", "routing", *options).code == 0
    found = json.loads(out.read_text())
    assert "encoding" not in found
    assert {(figure["heads"], figure["chunks"]) for figure in found["routing"]} == {("8 kv heads x 4 x 128, dot", 100)}
    assert [figure["key bytes"] for figure in found["routing"]] == [100 * 1024, 100 * 2048, 100 * 2048]


@pytest.mark.parametrize("out", ["", "missing/speed.json"])
def test_a_place_that_cannot_be_written_is_refused_before_measuring(msa, tmp_path, out):
    result = msa("bench", "--model", "never loaded", "--out", tmp_path / out)
    assert result.code == 2
    assert "--out must be a file in a folder that exists" in result.err


def test_model_options_reach_the_model(msa, monkeypatch):
    found = []

    def load(*names, **options):
        found.append((*names, options))
        raise ValueError("enough")

    monkeypatch.setattr("msa.zoo.load", load)
    assert msa("bench", "--model", "m", "--device", "cpu", "--dtype", "float32").err == "msa: enough\n"
    assert found == [("m", {"device": "cpu", "dtype": "float32"})]


def test_unknown_parts_and_sizes(msa):
    assert msa("bench", "speed").code == 2
    assert msa("bench", "routing", "--tokens", "0").code == 2
    result = msa("bench", "answering", "--published", "--model", "never loaded")
    assert (result.code, "answering does without them" in result.err) == (2, True)
    assert msa("bench", "routing", "--model", "no-such-model", "--device", "cpu").code == 1
