# `make` lists the targets. What is needed is installed into .venv; the versions are those of constraints.txt.
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
SEED ?= 0
# further flags of `make demo`, as in: make demo ARGS='--algo ppo'
ARGS ?=
# one test process for each core
WORKERS ?= auto
# one thread: the networks are small, and two simulators on two cores should not fight over them
export OMP_NUM_THREADS ?= 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# the demo needs one simulator only; where everything is installed, it uses that
DEMO := $(if $(wildcard .venv/.everything),.venv/.everything,.venv/.demo)

.DEFAULT_GOAL := help
.PHONY: help demo test unit integration format lint type docs check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO) ## steer the policy that ships with dsrl, on robosuite Lift (SEED=0)
	$(BIN)/dsrl finetune --run-dir "runs/demo-$$(date +%Y%m%d-%H%M%S)-seed$(SEED)" --seed $(SEED) \
		--eval-interval 1000 --eval-episodes 50 $(ARGS)

test: .venv/.everything ## all tests: unit and integration
	$(BIN)/pytest tests -n $(WORKERS) --dist worksteal --maxprocesses 8

unit: .venv/.everything ## seconds
	$(BIN)/pytest tests/unit

integration: .venv/.everything ## end-to-end runs, minutes
	$(BIN)/pytest tests/integration -n $(WORKERS) --dist worksteal --maxprocesses 8

format: .venv/.everything ## rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: .venv/.everything ## ruff, changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# wrappers/ and pretrained/ are dsrl.wrappers and dsrl.pretrained only where the package is installed: mypy reads such a tree
type: .venv/.everything ## mypy
	@rm -rf build/types && mkdir -p build/types
	@cp -R dsrl build/types/dsrl && cp -R wrappers build/types/dsrl/wrappers && cp -R pretrained build/types/dsrl/pretrained
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

docs: .venv/.everything ## run the snippets of README and docs/
	$(BIN)/pytest tests -k docs

check: lint type test ## what a pull request has to pass

clean: ## remove what can be made again, but neither runs/ nor .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find dsrl wrappers pretrained tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.everything: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[robosuite,metaworld,ogbench,remote,video,dev]'
	@touch $@

.venv/.demo: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[robosuite]'
	@touch $@
