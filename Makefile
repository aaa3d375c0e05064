# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests use one thread each: two processes use two cores.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Commands in notebooks are those of the environment. mkdocs-material advertises its successor otherwise.
MKDOCS := HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 PATH=$(abspath $(BIN)):$$PATH $(BIN)/mkdocs

LOWEST := $(VENV)-lowest

.PHONY: demo demo-generate demo-detect demo-segment test test-all test-lowest lint format docs docs-serve bench bench-quick gpu gpu-wheels clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

demo-generate: $(VENV)/.generate
	$(BIN)/python examples/demo_generate.py

demo-detect: $(VENV)/.dense
	$(BIN)/python examples/demo_detect.py

demo-segment: $(VENV)/.dense
	$(BIN)/python examples/demo_segment.py

test: $(VENV)/.dev $(VENV)/.web
	$(PYTEST)

test-all: $(VENV)/.dev $(VENV)/.web
	$(PYTEST) -m ""

# The lowest versions that pyproject.toml allows, in an environment of their own.
test-lowest: $(LOWEST)/.dev
	HF_HUB_OFFLINE=1 $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	$(MKDOCS) build --strict --quiet

docs-serve: $(VENV)/.dev
	$(MKDOCS) serve

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench.py

bench-quick: $(VENV)/.dev
	$(BIN)/python benchmarks/bench.py --quick

# On a GPU, with any Python that has PyTorch, and without a network (benchmarks/README.md). RESULTS is a folder.
gpu:
	$(if $(wildcard .wheels/*.whl),$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target .wheels/site .wheels/*.whl)
	PYTHONPATH=.wheels/site $(PYTHON) benchmarks/gpu.py $(if $(RESULTS),--results $(RESULTS))

gpu-wheels: $(VENV)/.dev
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest .wheels diffusers lmdb timm torch-fidelity

clean:
	rm -rf $(VENV) $(LOWEST) site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[train]'
	touch $@

$(VENV)/.generate: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[generation]'
	touch $@ $(VENV)/.demo

$(VENV)/.dense: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[dense]'
	touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@ $(VENV)/.demo $(VENV)/.generate $(VENV)/.dense

# What runs a model in a browser: npm fetches it once. Tests use no network, and skip the page where this failed.
$(VENV)/.web: src/atconv/deploy/web.py | $(VENV)/.dev
	@$(BIN)/python -c "from atconv.deploy.web import fetch_runtime; fetch_runtime()" 2> /dev/null && touch $@ \
		|| echo "onnxruntime-web could not be fetched with npm: tests of the page in a browser are skipped"

$(LOWEST)/.dev: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install uv
	$(LOWEST)/bin/uv pip compile --quiet --upgrade --resolution lowest-direct --extra dev --python $(LOWEST)/bin/python \
		--output-file $(LOWEST)/versions.txt pyproject.toml
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --requirements $(LOWEST)/versions.txt
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --no-deps --editable .
	touch $@
