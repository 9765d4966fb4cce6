# `make demo` and `make test` need nothing but Python >= 3.11 and make: both build .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# where pip finds torch; empty: where it finds everything else, which on Linux x86-64 usually is a build with gigabytes of
# CUDA packages. PyTorch's installation page names the index of its builds for CPUs alone: make demo TORCH_INDEX=URL
TORCH_INDEX ?=
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

# what `make test` skips, by the extra that it needs; each in a .venv of its own, for their libraries do not all agree
EXTRA ?= fuzz-tests
TESTS-client-tests := tests/serving/test_clients.py -k 'langchain or llama'
TESTS-fuzz-tests := tests/serving/test_openapi.py
TESTS-lm-eval := tests/evaluation/test_lm_eval_model.py tests/evaluation/test_ruler_public.py tests/serving/test_clients.py \
	-k 'not langchain and not llama and not openai'
TESTS-browser-tests := tests/serving/test_page_in_browser.py
TESTS-ray := tests/test_deploy.py -k ray

.PHONY: demo test test-extra lint report clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python $(PIP_INSTALL) --index-url '$(TORCH_INDEX)' torch)
	$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## build a memory from the documents in examples/ and ask it five questions
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed  ## the whole test suite
	$(BIN)/python -m pytest

$(VENV)-$(EXTRA)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-$(EXTRA)
	$(if $(TORCH_INDEX),$(VENV)-$(EXTRA)/bin/python $(PIP_INSTALL) --index-url '$(TORCH_INDEX)' torch)
	$(VENV)-$(EXTRA)/bin/python $(PIP_INSTALL) -e '.[tests,train,eval,serve,mcp,$(EXTRA)]'
	$(if $(filter browser-tests,$(EXTRA)),command -v chromium || $(VENV)-$(EXTRA)/bin/python -m playwright install chromium)
	@touch $@

test-extra: $(VENV)-$(EXTRA)/.installed  ## EXTRA=client-tests, fuzz-tests, browser-tests, lm-eval or ray: what `make test` skips of it
	$(VENV)-$(EXTRA)/bin/python -m pytest --nothing-missing $(TESTS-$(EXTRA))

lint: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

report: $(VENV)/.installed  ## docs/report.md out of the stored results
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) $(VENV)-* demo-memory
