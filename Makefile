# `make demo` and `make test` need nothing but Python >= 3.11 and make: both build .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

EXTRAS ?= client-tests,fuzz-tests,lm-eval,ray
EXTRA_TESTS := tests/serving/test_clients.py tests/serving/test_openapi.py tests/test_deploy.py \
	tests/evaluation/test_lm_eval_model.py tests/evaluation/test_ruler_public.py

.PHONY: demo test test-extras lint report clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## build a memory from the documents in examples/ and ask it five questions
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed  ## the whole test suite
	$(BIN)/python -m pytest

$(VENV)-extras/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-extras
	$(VENV)-extras/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,$(EXTRAS)]'
	@touch $@

test-extras: $(VENV)-extras/.installed  ## what `make test` skips: other programs' clients, fuzzing, lm-eval, Ray
	$(VENV)-extras/bin/python -m pytest --nothing-missing $(EXTRA_TESTS)

lint: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

report: $(VENV)/.installed  ## docs/report.md out of the stored results
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) $(VENV)-extras demo-memory
