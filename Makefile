# make demo   edit a rendered clip in three turns, then look at demo/out
# make test   lint, types, tests (what continuous integration runs)
# make bench  every benchmark; writes docs/benchmarks.md
# make train-mini   the model in the box from nothing, into build/ (SIZE=gpu on a GPU; FOOTAGE=DIR LICENCE=... adds clips)
PYTHON ?= python3
SIZE ?= cpu
BIN := .venv/bin

.PHONY: install demo test lint bench check-docs train-mini clean

install: .venv/installed

# The stamp makes a second call free; a change of either file installs again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} found, 3.11 or newer needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m jobs.demo demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

bench: install
	$(BIN)/python -m benchmarks

check-docs: install
	$(BIN)/python -m tests.check_docs

# What mini learns from: scenes, four rays a pixel, at three frame rates, with many edits and with depth.
PIXELS_cpu := 48
PIXELS_gpu := 96
SCENES := build/scenes-$(SIZE)
CLIPS := height=$(PIXELS_$(SIZE)) width=$(PIXELS_$(SIZE)) samples=2 rates=[6,12,24] edits=8 edited_cameras=1 depth=true
# glibc gives large buffers back to the system after every operation; keeping them makes copying along rays twice as fast.
KEEP := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000

train-mini: install
	$(BIN)/memory-v2v synthesize --out $(SCENES) --scenes 900 $(CLIPS)
	$(if $(FOOTAGE),$(BIN)/memory-v2v synthesize --out $(SCENES) --from-videos $(FOOTAGE) licence=$(LICENCE) $(CLIPS))
	$(KEEP) $(BIN)/memory-v2v train --data $(SCENES) --out build/mini-$(SIZE) --config configs/mini-$(SIZE).yaml

clean:
	rm -rf demo .venv
