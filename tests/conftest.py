import pytest
import torch
from hypothesis import settings
from tiny import tiny_lm, tiny_model, tiny_tokenizer

_THREADS = torch.get_num_threads()

settings.register_profile("msa", deadline=None, derandomize=True)
settings.load_profile("msa")


def pytest_addoption(parser):
    parser.addoption("--nothing-missing", action="store_true", help="a library that is not installed is a failure")


def _not_missing(report, config):
    """With ``--nothing-missing`` a skip that says that something is not there fails."""
    reason = str(report.longrepr)
    if (
        report.skipped
        and config.getoption("--nothing-missing")
        and ("not installed" in reason or "could not import" in reason)
    ):
        report.outcome, report.longrepr = "failed", f"skipped, though nothing may be missing: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    _not_missing(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _not_missing(report, collector.config)
    return report


def pytest_runtest_setup(item):
    """One thread for tiny tensors, where threads would only wait for each other."""
    torch.set_num_threads(_THREADS if item.get_closest_marker("default_model") else 1)


@pytest.fixture
def plain_log(monkeypatch):
    """Training without the picture of its curves and the measured peak, which take longer than tiny runs do."""
    monkeypatch.setattr("msa.training.log.draw_curves", lambda *_: None)
    monkeypatch.setattr("msa.training.log.matmul_peak", lambda *_: 1e9)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def lm():
    """A shared tiny network; tests must not change its weights."""
    return tiny_lm()


@pytest.fixture(scope="session")
def model():
    """A shared tiny network with tokenizer and transcript; tests must not change its weights."""
    return tiny_model()
