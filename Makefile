# make demo              train a small RepLKNet on handwritten digits
# make test              run the tests
# make lint              check style and types
# make test-jax-latest   run with the newest JAX what it may break
# make kernels-sass      compile the GPU kernels, without a GPU, and see what they occupy
#
# PYTHON names the interpreter that the environment is made with, VENV where it lies, and JOBS
# how many tests run at once. The last two need Python 3.12 or newer, which they look for or
# LATEST_PYTHON names, and have environments of their own; to update one, delete its folder.

PYTHON ?= python3
JOBS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: demo test lint test-jax-latest test-operators kernels-sass

demo: $(VENV)/train.stamp
	$(BIN)/python -m train.main --config configs/digits.py --workdir out/digits

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test-jax-latest:
	@if python=$$(.ci/newer-python); then \
	  $(MAKE) --no-print-directory VENV=.venv-jax-latest PYTHON=$$python test-operators; \
	elif test "$$LATEST_PYTHON"; then echo "$$python" >&2; exit 1; \
	else echo "test-jax-latest is skipped: $$python"; fi

# The tests of what uses JAX in ways that its releases change: kernels, its profiler's traces and the
# conversion to ONNX. Those of the implementations in plain JAX are left out. What a new release
# deprecates is shown, and is no failure yet.
test-operators: $(VENV)/latest.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -W default -m "not slow and not gpu and not exhaustive" \
	  tests/ops --ignore tests/ops/depthwise/test_implementations.py tests/export/test_program.py::test_onnx \
	  tests/benchmark/test_profile.py

kernels-sass:
	@python=$$(.ci/newer-python) || { echo "kernels-sass needs a newer Python: $$python" >&2; exit 1; }; \
	$(MAKE) --no-print-directory VENV=.venv-sass PYTHON=$$python .venv-sass/sass.stamp || \
	  { echo "kernels-sass: see above why its packages (1.5 GB) could not be installed." >&2; exit 1; }
	.venv-sass/bin/python .ci/sass/check.py

# The environment, with the dependencies of one extra of pyproject.toml.
$(VENV)/%.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@
