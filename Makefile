# Everything a checkout can do; needs Python >= 3.11 with venv and pip, and a network with PyPI and npm.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help setup demo demo-model test test-slow test-clients image-test cuda-image-test test-gpu check bench clean

help:
	@echo "make demo         serve the demo model from Azurite and ask it a question (CHECK=1: exit after the answer)"
	@echo "make demo-model   only .models/smollm2-135m-instruct/"
	@echo "make test         everything the tests need, then the tests"
	@echo "make test-slow    the tests that take long or show rare cases"
	@echo "make test-clients lm-eval, LangChain, LiteLLM and llm against a whole server (part of test-slow)"
	@echo "make image-test   the image, built and run as a pod: as root, on Debian (part of test-slow)"
	@echo "make cuda-image-test  the image for GPUs, as far as it runs without one: several gigabytes"
	@echo "make test-gpu     the tests that need a CUDA device"
	@echo "make check        lint, format, types"
	@echo "make bench        the benchmarks"
	@echo "make setup        the virtual environment, for development"
	@echo "make clean        remove what the above made"

setup: .venv/.development

demo: .venv/.demo
	@$(BIN)/python -m tools.demo $(if $(CHECK),--check)

demo-model: .venv/.demo
	@$(BIN)/python -m tools.demo_model

# Most tests wait more than they compute: two at once, a file's in one process, since they share what is dear to start. Those of
# whole servers kill and time them: one at a time.
test: setup demo-model
	@$(BIN)/python -m tools.azurite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/e2e --ignore tests/conformance
	$(BIN)/python -m pytest tests/e2e tests/conformance

test-slow: setup demo-model
	@$(BIN)/python -m tools.azurite
	$(BIN)/python -m pytest -m slow
	@$(MAKE) --no-print-directory test-clients image-test

test-clients: setup demo-model .venv/.clients/.ready
	PYTHONPATH=$(CURDIR) HF_HUB_OFFLINE=1 .venv/.clients/bin/python -m pytest -m clients tests/conformance/clients

# Rootless containers would need what a machine may not allow, so this is root's.
image-test: setup demo-model
	@$(BIN)/python -m tools.azurite
	$(BIN)/python -m pytest -m image tests/image

cuda-image-test: setup
	$(BIN)/python -m pytest -m cuda_image tests/image

test-gpu: setup
	$(BIN)/python -m pytest -m gpu tests/gpu

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Imports are cold start, and an installed package has its bytecode.
bench: setup demo-model
	@$(BIN)/python -m compileall -q app streaming
	$(BIN)/python -m bench

clean:
	rm -rf .venv .models .tools build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "coldstream needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

# What the demo needs is less than what development needs: no test runner, no plots, no mock clouds.
.venv/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

.venv/.development: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[demo,dev,otel]'
	@touch .venv/.demo $@

# Other people's clients, above the development environment so that what both need is there once.
.venv/.clients/.ready: tests/conformance/clients/requirements.txt .venv/.development
	$(PYTHON) -m venv .venv/.clients
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$(.venv/.clients/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/development.pth
	.venv/.clients/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		--requirement tests/conformance/clients/requirements.txt
	@touch $@
