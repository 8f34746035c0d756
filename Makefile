# Two commands do everything: `make demo` and `make test`. Each makes its own environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Python writes compiled modules at the first import; pip would compile all of them.
unexport PYTHONDONTWRITEBYTECODE
export MUJOCO_GL ?= egl
export PYOPENGL_PLATFORM ?= egl

.PHONY: help env demo test integration chaos fuzz slow bench gpu gpu-ray mutants check ui docs lock format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml requirements.lock
	@infra/system-libraries.sh
	@date +%s > .venv-began
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo $$(( $$(date +%s) - $$(cat .venv-began) )) > $@ && rm .venv-began

env: $(STAMP)  ## create the environment in .venv, nothing else

demo: $(STAMP)  ## from nothing to a registered encoder and its first score
	$(BIN)/python jobs/demo.py

# Tiny tensors on threads of a busy machine wait for one another: one thread is faster.
# Two files at a time, each with a Ray cluster of its own: most of it waits for processes to start.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)  ## the tests, with one small job of each kind (11 minutes on 2 cores)
	$(PYTEST) $(IN_TWO) -m "not integration and not slow and not gpu and not chaos and not fuzz and not bench"

integration: $(STAMP)  ## whole jobs, the code of the docs, one fault of each kind (20 to 27 minutes on 2 cores)
	$(PYTEST) $(IN_TWO) -m "integration and not gpu"

chaos: $(STAMP)  ## kill drivers, workers and nodes, fill disks, damage checkpoints (slow)
	$(BIN)/python -m pytest -m chaos

fuzz: $(STAMP)  ## damaged recordings of every kind through preprocessing
	$(BIN)/python -m pytest -m fuzz

slow: $(STAMP)  ## long tests: every scripted expert, whole searches
	$(BIN)/python -m pytest -m slow

bench: $(STAMP)  ## benchmarks: ratios of two things measured in one run
	$(BIN)/python -m pytest -m bench -s

# On a machine with a GPU and whatever Python is there: no environment, no pip, no network.
GPU_OUTPUT ?= gpu-check.json
gpu:  ## check a GPU machine with PYTHON as it is: right, fast, how much memory (8 minutes)
	$(PYTHON) infra/gpu_check/run.py --output $(GPU_OUTPUT)

gpu-ray:  ## on a GPU machine with Ray: a training that is killed and resumed, weights compared
	$(PYTHON) infra/gpu_check/ray_run.py

mutants: $(STAMP)  ## break the training on purpose, one line at a time; the tests must notice (slow)
	$(BIN)/python infra/ci/mutants.py

check: $(STAMP) types-tree  ## format, lint, types, import direction, naming
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python infra/ci/check_house.py
	$(BIN)/python infra/ci/settings_reference.py --check
	$(BIN)/mypy -n 2 -p dynaflip

ui: $(STAMP)  ## MLflow UI on the runs under DYNAFLIP_HOME
	$(BIN)/python jobs/ui.py

format: $(STAMP)  ## format the code and repair lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## generate docs/settings.md from the settings
	$(BIN)/python infra/ci/settings_reference.py

lock:  ## generate requirements.lock from pyproject.toml
	$(PYTHON) infra/ci/lock.py

# mypy does not follow __path__: it sees the same folders through links.
.PHONY: types-tree
types-tree:
	@rm -rf .types && mkdir -p .types/dynaflip
	@for f in losses encoders platform eval jobs; do ln -s ../../$$f .types/dynaflip/$$f; done
	@for f in dynaflip/*.py; do ln -s ../../$$f .types/dynaflip/; done

clean:  ## remove the environment and caches (never your runs)
	rm -rf $(VENV) .types .mypy_cache .ruff_cache .pytest_cache build *.egg-info
