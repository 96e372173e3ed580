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
# LONG=1 trains teacher and student as configs/studies/lightening.yaml does, in a folder of its own.
DATA ?=
LONG ?=
DEMO ?= demo/$(SOURCE)$(if $(LONG),_long)
STEPS = $(if $(LONG),trainer.max_steps=$(1) trainer.val_every=$(1))
# Few large objects need the picture: masks of two tokens and more at the demo's 128 px.
ifeq ($(DATA),)
SOURCE := synthetic
SCENES := image_size=192 min_area=2304 radius=[0.18,0.4] objects=[2,4]
TRAIN_DATA := count=$(if $(LONG),3000,1500) $(SCENES)
VAL_DATA := count=560 $(SCENES)
else
SOURCE := bsds500
TRAIN_DATA := inputs=$(DATA) samples_per_shard=25 min_area=9216
VAL_DATA := inputs=$(DATA) samples_per_shard=25 min_area=9216
endif
FRISKET := $(BIN)/frisket
HERE := configs/on/cpu.yaml out=$(DEMO) data.train=$(DEMO)/data/train data.val=null

.PHONY: help setup demo test test-long test-gpu bench check clean $(RUNS) evaluate study

help:  ## show this list
	@grep -hE '^[a-z$$()RUNS-]+:.*##' $(MAKEFILE_LIST) | sed 's/\$$(RUNS)/$(RUNS)/' | awk -F ':.*## ' '{printf "  make %-52s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with everything, CPU or CUDA build of torch as your index serves it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	touch $@

demo: $(READY)  ## two cores, 8 minutes: data, teacher, student, aligned decoder, controls, table. LONG=1, DATA=<BSDS500 folder>
	$(FRISKET) prep configs/prep_$(SOURCE).yaml $(TRAIN_DATA) split=train out=$(DEMO)/data/train
	$(FRISKET) prep configs/prep_$(SOURCE).yaml $(VAL_DATA) split=val out=$(DEMO)/data/val
	$(FRISKET) train configs/train_sam.yaml configs/demo/train_sam.yaml $(HERE) data.val=$(DEMO)/data/val $(call STEPS,6500)
	$(FRISKET) train configs/distill_lightening.yaml configs/demo/distill_lightening.yaml $(HERE) \
	  teacher=$(DEMO)/train_sam $(call STEPS,2000)
	$(FRISKET) train configs/distill_lightening.yaml configs/demo/distill_lightening.yaml $(HERE) \
	  teacher=$(DEMO)/train_sam name=untrained optim.lr=0 trainer.max_steps=1
	$(FRISKET) train configs/finetune_decoder.yaml configs/demo/finetune_decoder.yaml $(HERE) \
	  teacher=$(DEMO)/train_sam init_from=$(DEMO)/distill_lightening $(call STEPS,400)
	$(FRISKET) eval configs/eval_demo.yaml data=$(DEMO)/data/val out=$(DEMO)/eval tasks.fidelity.teacher=$(DEMO)/train_sam \
	  'checkpoint=[teacher:$(DEMO)/train_sam,untrained:$(DEMO)/untrained,student:$(DEMO)/distill_lightening,student+decoder:$(DEMO)/finetune_decoder]'

test: $(READY)  ## the CPU test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup tests $(ARGS)

test-long: $(READY)  ## what the suite leaves out to stay short: a dead node, kills at ten places each
	FRISKET_LONG=1 FRISKET_KILLS=10 FRISKET_SEEDS=10 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	  tests/slurm/test_requeue.py tests/engine/test_kill_ranks.py tests/engine/test_zero.py $(ARGS)

test-gpu: $(READY)  ## the tests marked gpu, on a machine with one, within ten minutes; figures: docs/results/gpu.json
	FRISKET_GPU_RESULTS=docs/results/gpu.json timeout 600 $(BIN)/python -m pytest -m gpu tests $(ARGS)

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
	rm -rf demo/{synthetic,bsds500}{,_long} .pytest_cache .ruff_cache && find src tests -name __pycache__ -prune -exec rm -rf {} +
