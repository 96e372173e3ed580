# Verbs a person types. `make help` lists them. Every run is also `frisket train configs/<run>.yaml`.
#   LOCAL=1 make distill-lightening      runs here, without Slurm
#   make distill-lightening ARGS="optim.lr=1e-4 name=try2"
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS := $(subst _,-,$(patsubst slurm/%.sh,%,$(filter-out slurm/env.sh slurm/evaluate.sh slurm/study.sh,$(wildcard slurm/*.sh))))
ARGS ?=
# The demo's data: our synthetic photographs, or DATA=<BSDS500 folder>; each has its own folder, so both can be kept.
DATA ?=
DEMO ?= demo/$(SOURCE)
# Masks wider than a token or two: at the demo's 128 px a token is 48 px (synthetic) or 60 px (BSDS500) wide.
ifeq ($(DATA),)
SOURCE := synthetic
TRAIN_DATA := count=400 samples_per_shard=50 min_area=4096
VAL_DATA := count=60 samples_per_shard=30 min_area=4096
else
SOURCE := bsds500
TRAIN_DATA := inputs=$(DATA) samples_per_shard=25 min_area=9216
VAL_DATA := inputs=$(DATA) samples_per_shard=25 min_area=9216
endif
FRISKET := $(BIN)/frisket
HERE := configs/on/cpu.yaml out=$(DEMO) data.train=$(DEMO)/data/train data.val=$(DEMO)/data/val

.PHONY: help setup demo test test-gpu bench check clean $(RUNS) evaluate study

help:  ## show this list
	@grep -hE '^[a-z$$()RUNS-]+:.*##' $(MAKEFILE_LIST) | sed 's/\$$(RUNS)/$(RUNS)/' | awk -F ':.*## ' '{printf "  make %-52s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with everything, CPU or CUDA build of torch as your index serves it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	touch $@

demo: $(READY)  ## two cores, minutes: data, teacher, student, aligned decoder, table, picture. DATA=<BSDS500 folder>
	$(FRISKET) prep configs/prep_$(SOURCE).yaml $(TRAIN_DATA) split=train out=$(DEMO)/data/train
	$(FRISKET) prep configs/prep_$(SOURCE).yaml $(VAL_DATA) split=val out=$(DEMO)/data/val
	$(FRISKET) train configs/train_sam.yaml configs/demo/train_sam.yaml $(HERE)
	$(FRISKET) train configs/distill_lightening.yaml configs/demo/distill_lightening.yaml $(HERE) \
	  teacher=$(DEMO)/train_sam
	$(FRISKET) train configs/finetune_decoder.yaml configs/demo/finetune_decoder.yaml $(HERE) \
	  init_from=$(DEMO)/distill_lightening
	$(FRISKET) eval configs/eval_miou.yaml data=$(DEMO)/data/val out=$(DEMO)/eval \
	  'checkpoint=[teacher:$(DEMO)/train_sam,student:$(DEMO)/distill_lightening,student+decoder:$(DEMO)/finetune_decoder]'

test: $(READY)  ## the CPU test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup tests $(ARGS)

test-gpu: $(READY)  ## the tests marked gpu, on a machine with one
	$(BIN)/python -m pytest -m gpu tests $(ARGS)

bench: $(READY)  ## speed as ratios against a baseline in the same process, each with a correctness guard
	$(FRISKET) bench configs/bench.yaml $(ARGS)

check: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright

$(RUNS): $(READY)  ## start or resume a run: on Slurm, or here with LOCAL=1
	$(if $(LOCAL),PATH="$(abspath $(BIN)):$$PATH" bash,sbatch) slurm/$(subst -,_,$@).sh $(ARGS)

evaluate: $(READY)  ## judge a checkpoint: ARGS="checkpoint=… data=…"
	$(if $(LOCAL),PATH="$(abspath $(BIN)):$$PATH" bash,sbatch) slurm/evaluate.sh $(ARGS)

study: $(READY)  ## arms, seeds, one judge: STUDY=lightening (configs/studies/), again to go on
	$(FRISKET) study $(STUDY:%=studies/%.yaml) jobs=2 $(ARGS)

clean:  ## remove the demo's files and Python caches (never runs/ or .venv)
	rm -rf demo/synthetic demo/bsds500 .pytest_cache .ruff_cache && find src tests -name __pycache__ -prune -exec rm -rf {} +
