# make demo              train a small RepLKNet on handwritten digits
# make demo-segmentation train a small UPerNet on digits scattered over photographs
# make demo-detection    train a small FCOS on the same digits
# make test              run the tests
# make lint              check style and types
# make test-jax-latest   test with the newest JAX the code that its releases may break
# make kernels-sass      compile the GPU kernels, without a GPU, and check registers and memory
#
# Variables: PYTHON is the interpreter of the environment, VENV its folder, and JOBS the number of
# parallel tests. The last two targets need Python 3.12 or newer: they search for one, or use
# LATEST_PYTHON. They have their own environments; to update one, delete its folder.

PYTHON ?= python3
JOBS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: demo demo-segmentation demo-detection test lint test-jax-latest test-operators kernels-sass

demo: $(VENV)/train.stamp
	$(BIN)/python -m train.main --config configs/digits.py --workdir out/digits

demo-segmentation: $(VENV)/train.stamp
	$(BIN)/python -m train.main --config configs/segmentation/scattered_digits.py --workdir out/scattered_digits

demo-detection: $(VENV)/train.stamp
	$(BIN)/python -m train.main --config configs/detection/scattered_digits.py --workdir out/detected_digits

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

# Tests of the code that depends on interfaces that change between releases of JAX: kernels, traces
# of the profiler and the conversion to ONNX. Implementations in plain JAX are not tested. What a new
# release deprecates is shown, and does not fail the tests.
test-operators: $(VENV)/latest.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -W default -m "not slow and not gpu and not exhaustive" \
	  tests/ops --ignore tests/ops/depthwise/test_implementations.py tests/export/test_program.py::test_onnx \
	  tests/benchmark/test_profile.py

kernels-sass:
	@python=$$(.ci/newer-python) || { echo "kernels-sass needs a newer Python: $$python" >&2; exit 1; }; \
	$(MAKE) --no-print-directory VENV=.venv-sass PYTHON=$$python .venv-sass/sass.stamp || \
	  { echo "kernels-sass: its packages (1.5 GB) could not be installed; see above." >&2; exit 1; }
	.venv-sass/bin/python .ci/sass/check.py

# The environment with the dependencies of an extra of pyproject.toml.
$(VENV)/%.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Choose another with: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@
