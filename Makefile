# Two commands set everything up on a machine with Python 3.11 and gcc: `make demo` runs the whole road on real data,
# `make test` checks the code. Each keeps a virtualenv of its own and installs into it only when pyproject.toml changes.
PYTHON ?= python3
DEMO_OUT ?= demo
PIP = -m pip --disable-pip-version-check --quiet

.PHONY: demo test coverage lint mypy pyright bench clean

PACKAGE = src engine export quantize distill runtime

demo: .venv/ready
	@if find -L $(PACKAGE) -name '*.[pch]*' -newer .venv/ready | grep -q .; then \
	  .venv/bin/python $(PIP) install --no-deps . && touch .venv/ready; fi
	.venv/bin/python examples/demo.py --out $(DEMO_OUT)

test: .venv-test/ready
	$(MAKE) --no-print-directory -j3 lint mypy pyright
	.venv-test/bin/python -m pytest -n 2 --dist loadfile

# Watching every line slows tracing and compilation down.
coverage: .venv-test/ready
	.venv-test/bin/python -m pytest -n 2 --dist loadfile --cov --cov-report=term

lint: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .

mypy: .venv-test/ready
	.venv-test/bin/mypy

pyright: .venv-test/ready
	.venv-test/bin/pyright --pythonpath .venv-test/bin/python

bench: .venv/ready
	.venv/bin/python -m benchmarks.road

.venv/ready: pyproject.toml CMakeLists.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) install '.[train,export]'
	touch $@

.venv-test/ready: pyproject.toml CMakeLists.txt runtime/csrc runtime/include/attar.h engine/csrc $(wildcard runtime/csrc/*.c runtime/csrc/*.h engine/csrc/*)
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(PIP) install -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-test build demo
