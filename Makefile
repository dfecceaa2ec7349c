# Every target sets up what it needs from nothing: Python 3.11 and network are enough.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RUN    ?= demo
# Test processes beside each other, each of which starts up to three more: three for two cores, since they wait for
# servers, disks and clocks a fifth of their time.
TESTS  ?= 3
# The tests start hundreds of programs: what Python compiles is kept, whatever the caller's environment says.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -n $(TESTS) --dist loadgroup

.PHONY: help configs demo demo-zeroshot test test-all test-unit test-cluster durations lint bench bench-cluster clean-demo

help:
	@echo "make demo   generated faces -> shards -> five folds -> report, in $(RUN)/ (about 3 minutes on two cores)"
	@echo "make demo-zeroshot   generated faces and sentences -> small CLIP -> projection head -> zero-shot table (about 3 minutes)"
	@echo "make test   the tests, in $(TESTS) processes (at most 12 minutes)      make test-unit   the quick ones      make lint"
	@echo "make test-all   the long form, before a release: docs/testing.md says what it adds (about an hour and a half)"
	@echo "make durations  the tests, and their seconds as docs/benchmarks/test_durations.json; on an idle machine"
	@echo "make test-cluster  SLURM, Ray and S3 on virtual hosts; Debian 12, as root (about 23 minutes)"
	@echo "make configs  configs/README.md, from the table in dfer/jobs/rows.py"
	@echo "make bench  loader and training step, measured on this machine"
	@echo "make bench-cluster  what SLURM and Ray cost, on the same virtual hosts (about 30 minutes)"

# The stamp is renewed only when the dependencies change, so a second make goes straight to work.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or set PYTHON=..." >&2; exit 2; }
	@echo "Installing into $(VENV) (about 7 GB with PyTorch, some minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' 2> $(VENV)/pip.log \
		|| { cat $(VENV)/pip.log >&2; exit 1; }
	@touch $@

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/demo.sh $(RUN)

demo-zeroshot: RUN = demo-zeroshot
demo-zeroshot: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/demo_zeroshot.sh $(RUN)

test: $(READY)
	$(PYTEST)

# Every process a new program, every hostile file, every size; then the cluster, which wants the machine for itself.
test-all: $(READY)
	$(PYTEST) --long -m "not cluster"
	tests/cluster/install.sh
	$(BIN)/python -m pytest --long -m cluster

durations: $(READY)
	$(PYTEST) --durations-json=docs/benchmarks/test_durations.json

test-unit: $(READY)
	$(BIN)/python -m pytest tests/unit

# As root on Debian 12: installs SLURM where it is missing; its daemons are the tests' own and end with them.
test-cluster: $(READY)
	tests/cluster/install.sh
	$(BIN)/python -m pytest -m cluster

# The list of configurations, from its table.
configs: $(READY)
	$(BIN)/python -m dfer.jobs.rows

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/dfer-shards synth dfew $(RUN)/raw --clips 980 --seed 1
	$(BIN)/dfer-shards build dfew $(RUN)/raw $(RUN)/shards_224
	$(BIN)/dfer bench loader $(RUN)/shards_224
	$(BIN)/dfer bench step
	$(BIN)/dfer bench step --precision bf16

# As test-cluster; on a machine that does nothing else.
bench-cluster: $(READY)
	tests/cluster/install.sh
	$(BIN)/python -m tests.cluster.bench

clean-demo:
	rm -rf $(RUN)
