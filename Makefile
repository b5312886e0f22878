# `make demo` and `make test` are all a newcomer needs; both install first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEVICES := build/devices
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet
BY_TWO := --numprocesses 2 --dist loadgroup

# Kept where Python is told to keep none, too: else each process compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-devices nightly lint wheel

install: $(STAMP)

# torch goes first and alone (its CPU wheel); all pins then resolve in one command, because
# executorch and litert-torch installed one after the other leave typing-extensions broken.
# No bytecode: of these 3 GB a run imports little, which Python then compiles by itself.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --no-compile torch==2.13.0
	$(PIP) install --no-compile --editable '.[tasks,cluster,dev]'
	touch $@

demo: install
	$(BIN)/edgeprune build --profile host --task minilm-20news --budget latency=60% --out build/minilm

test: install
	$(PYTEST) $(BY_TWO) -m "not nightly and not alone"
	$(PYTEST) -m "alone and not nightly"

# Arm processors, without one: emulated; sshd and adbd. Installs Debian packages, so it must be root.
test-devices: install $(DEVICES)/.installed
	$(PYTEST) $(BY_TWO) -m "not nightly and not alone" tests/on_devices
	$(PYTEST) -m "alone and not nightly" tests/on_devices

$(DEVICES)/.installed: tests/on_devices/install.sh pyproject.toml | install
	tests/on_devices/install.sh $(DEVICES) $(BIN)/python
	touch $@

# Every test there is, those of `make test-devices` too: root, on Debian.
nightly: install $(DEVICES)/.installed
	$(PYTEST) $(BY_TWO) -m "not alone"
	$(PYTEST) -m alone
	$(PYTEST) $(BY_TWO) -m "not alone" tests/on_devices
	$(PYTEST) -m alone tests/on_devices

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy edgeprune
	$(BIN)/clang-format --dry-run --Werror backends/*/*.c backends/*/*.cc backends/*/*.h tests/native/*

# With our libraries for this machine, which the packages in .venv are needed to compile.
wheel: install
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .
