import pytest

from msa.bench import Figure, table_rows


def times(best):
    return {"best": best, "median": 2 * best}


def figure(**changes):
    given = {
        "what": "routing",
        "times": times(0.002),
        "baselines": {"plain": times(0.03), "faiss flat": times(0.001)},
        "floors": {"reading": times(0.0005), "product": times(0.001)},
    }
    return Figure(**{**given, **changes})


def test_ratios_are_of_best_times_and_to_the_highest_floor():
    found = figure().to_json()
    assert found["baselines"]["plain"] == {"best": 0.03, "median": 0.06, "times as fast here": pytest.approx(15)}
    assert found["baselines"]["faiss flat"]["times as fast here"] == pytest.approx(0.5)
    assert found["highest floor"] == "product"
    assert found["/ floor"] == pytest.approx(2)


def test_rates_are_of_the_amount():
    found = figure(amount=10, unit="tokens", details={"documents": 3}).to_json()
    assert found["tokens/s"] == pytest.approx(5000)
    assert found["documents"] == 3
    assert not any(name.endswith("/s") for name in figure().to_json())


def test_a_row_for_each_baseline():
    header, first, second = table_rows([figure()])
    assert len(header) == len(first) == len(second)
    assert first == ["routing, ms", "2", "plain", "30", "15.00x", "product", "2.00"]
    assert second == ["", "", "faiss flat", "1", "0.50x", "", ""]


def test_a_figure_without_a_baseline_is_not_lost():
    _, row = table_rows([figure(baselines={}, amount=10, unit="tokens")])
    assert row == ["routing, tokens/s", "5,000", "", "", "", "product", "2.00"]


def test_what_was_not_measured_is_said_once():
    missing = {"peer": "not installed: pip install peer"}
    assert figure(missing=missing).to_json()["not measured"] == missing
    assert "not measured" not in figure().to_json()
    rows = table_rows([figure(missing=missing), figure(missing=missing), figure()])
    assert rows[-1] == ["peer", "", "not installed: pip install peer", "", "", "", ""]
    assert len(rows) == 1 + 3 * 2 + 1
