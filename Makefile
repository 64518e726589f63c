# make setup | test | reproduce | lint | figures | serve | lock | gpu-env | clean | help
#
# Needs python3 (3.11 or newer, with venv), git and make. Variables:
#   PYTHON       interpreter that makes .venv            make setup PYTHON=python3.12
#   PIP_ARGS     extra arguments for pip, e.g. the index of CPU-only torch wheels
#   PYTEST_ARGS  extra arguments for pytest              make test PYTEST_ARGS="-k catalog"
#   ARGS         extra arguments for xrouter             make reproduce ARGS="--only 05"

PYTHON      ?= python3
PIP_ARGS    ?=
PYTEST_ARGS ?=
ARGS        ?=

VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
EXTRAS := train,serve,eval,notebooks,dev

.DEFAULT_GOAL := help
.PHONY: setup test reproduce lint figures serve lock gpu-env clean help

setup: $(STAMP) ## make .venv and install the CPU set

$(STAMP): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than 3.11; run make PYTHON=python3.12 or similar" >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || \
	  { echo "make: $(PYTHON) cannot make a venv; install its venv package" >&2; exit 1; }
	$(PY) -m pip install --quiet $(PIP_ARGS) -c constraints-cpu.txt -e '.[$(EXTRAS)]'
	@touch $@

test: $(STAMP) ## run the tests (no network, no GPU)
	$(PY) -m pytest $(PYTEST_ARGS)

reproduce: $(STAMP) ## run the notebooks: results/, paper_figures/ and an HTML report
	$(VENV)/bin/xrouter reproduce $(ARGS)

figures: $(STAMP) ## redraw paper_figures/ from the committed results
	$(VENV)/bin/xrouter figures $(ARGS)

serve: $(STAMP) ## start the OpenAI-compatible API
	$(VENV)/bin/xrouter serve $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

lock: ## rewrite constraints-cpu.txt from what is installed in .venv
	{ sed -n '/^#/p' constraints-cpu.txt; \
	  $(PY) -m pip freeze --exclude-editable --exclude xrouter --exclude setuptools --exclude pip \
	    | sed 's/+[a-z0-9.]*$$//'; } > constraints-cpu.new
	mv constraints-cpu.new constraints-cpu.txt

gpu-env: ## conda environment "xrouter" with the GPU stack, see environment.yml
	conda env create -f environment.yml
	conda run -n xrouter --no-capture-output \
	  pip install --no-build-isolation -c constraints-gpu.txt flash-attn

clean: ## remove caches and the executed copies of notebooks; .venv and results stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist results/executed
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
