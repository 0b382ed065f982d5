# Two commands for a fresh machine; each sets everything up by itself.
#   make demo    run the main study (two_layer_relu)
#   make test    run the tests
# For contributors:
#   make check   lint, formatting, types, import directions and tests
#   make test-cluster   the tests of Ray and of Hydra's launchers, which `make test` skips
#   make bench   the benchmarks, as ratios to a plain step, beside other packages (more than an hour on one core)

PYTHON ?= python3
VENV ?= .venv
RECIPE ?= two_layer_relu
READY = $(VENV)/.ready
WITH_FRAMEWORKS = $(VENV)/.with_frameworks

# Other packages that ask for torchvision, or for a torch of their own, and run without.
PEERS = backpack-for-pytorch==1.7.1 nngeometry==0.4 laplace-torch==0.3 asdfghjkl==0.1a4 \
	torchmetrics==1.9.0 lightning-utilities==0.15.3

.PHONY: demo test test-cluster lint check bench clean

demo: $(READY)
	$(VENV)/bin/python -m flattrain recipe=$(RECIPE)

test: $(WITH_FRAMEWORKS)
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4

test-cluster: $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[sweeps,ray]' -c constraints.txt
	$(VENV)/bin/python -m pytest tests/lab/test_ray_executor.py tests/lab/test_sweep.py

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: lint test

bench: $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]' -c constraints.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	$(VENV)/bin/python -m benchmarks.steps
	$(VENV)/bin/python -m benchmarks.kernel
	$(VENV)/bin/python -m benchmarks.seeds --write
	$(VENV)/bin/python -m benchmarks.curvature --memory --write

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

# The frameworks whose examples in docs/integrations.md are run: 190 MB, most of a minute.
$(WITH_FRAMEWORKS): $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[integrations]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV)
