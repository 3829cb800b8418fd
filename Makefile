# make demo   edit a rendered clip in three turns, then look at demo/out
# make test   lint, types, tests (what continuous integration runs)
# make bench  every benchmark; writes docs/benchmarks.md
# make train-mini   mini from nothing, into build/ (SIZE=gpu: the size of the one in the box, on a GPU; FOOTAGE=DIR LICENCE=... adds
#                   clips; SCENES=N, SETTINGS="key=value ..." and, of what then learns from its edits, DETAILS="..." change how much)
PYTHON ?= python3
SIZE ?= cpu
BIN := .venv/bin

# Python keeps what it has compiled, or every one of many processes would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test lint bench check-docs train-mini train-mini-cpu train-mini-gpu clean

install: .venv/installed

# The stamp makes a second call free; a change of either file installs again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} found, 3.11 or newer needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m jobs.demo demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

# Two at a time, each file as a whole, in the order of their names: those that take longest begin first.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks

check-docs: install
	$(BIN)/python -m tests.check_docs

# What mini learns from on two cores: scenes, four rays a pixel, at three frame rates, with many edits and with depth.
CLIPS := height=48 width=48 samples=2 rates=[6,12,24] edits=8 edited_cameras=1 depth=true
# glibc gives large buffers back to the system after every operation; keeping them makes copying along rays twice as fast.
KEEP := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000

train-mini: train-mini-$(SIZE)

train-mini-cpu: SCENES ?= 900
train-mini-cpu: install
	$(BIN)/memory-v2v synthesize --out build/scenes --scenes $(SCENES) $(CLIPS)
	$(if $(FOOTAGE),$(BIN)/memory-v2v synthesize --out build/scenes --from-videos $(FOOTAGE) licence=$(LICENCE) $(CLIPS))
	$(KEEP) $(BIN)/memory-v2v train --data build/scenes --out build/mini-cpu --config configs/mini-cpu.yaml $(SETTINGS)
	$(KEEP) $(BIN)/memory-v2v train --data build/scenes --out build/mini-cpu-details --model build/mini-cpu/model --config configs/mini-cpu-details.yaml $(DETAILS)

# On a GPU scenes are rendered as the training begins; only footage comes from a data set.
train-mini-gpu: SCENES ?= 4000
train-mini-gpu: install
	$(if $(FOOTAGE),$(BIN)/memory-v2v synthesize --out build/footage --scenes 0 --from-videos $(FOOTAGE) licence=$(LICENCE) $(CLIPS))
	$(if $(FOOTAGE),rm -rf build/pieces && $(BIN)/python -m jobs.pieces build/footage build/pieces)
	$(BIN)/python -m pipeline.training.alone --out build/mini-gpu --config configs/mini-gpu.yaml --scenes $(SCENES) $(if $(FOOTAGE),--footage build/pieces) $(SETTINGS)
	$(BIN)/python -m pipeline.training.alone --out build/mini-gpu-details --begin build/mini-gpu/model --config configs/mini-gpu-details.yaml --scenes $(SCENES) $(if $(FOOTAGE),--footage build/pieces) $(DETAILS)

clean:
	rm -rf demo/out demo/room.mp4 .venv
