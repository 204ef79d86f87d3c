# make infer | test | lint | train-mini [STEPS=50] | ablations [LIMIT=200] [WORKERS=2]: each sets up .venv first, if needed.
# SYSTEM_TORCH=1 uses the torch that the system's python3 already has.

PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
SYSTEM_TORCH ?=
STEPS ?=
# Samples of the test split. One took 11 s through all variants, in one process.
LIMIT ?= 200
# Processes that share them.
WORKERS ?= 2
ROOT := $(CURDIR)
# A full training goes to runs/mini; a short one to a folder of its own, which may be thrown away.
WORK := $(if $(STEPS),$(ROOT)/out/train-mini-$(STEPS),$(ROOT))
SHORT := $(if $(STEPS),--trainer.max_steps $(STEPS) --trainer.val_check_interval $(STEPS) --trainer.limit_val_batches 2 --data.scenes 3)
FIT := cd $(WORK) && $(BIN)/python -m
TELL = @echo; echo "[$(1) of 14] $(2)"
STAGE = @$(FIT) training.$(1) fit $(foreach one,$(2) $(3),--config $(ROOT)/configs/train/$(one).yaml) --ckpt_path last $(SHORT)

.PHONY: infer test lint train-mini ablations
.DELETE_ON_ERROR:

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) $(VENV)
	$(if $(SYSTEM_TORCH),,$(BIN)/pip install --quiet "torch>=2.11,<2.14")
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	# sam2 is built against the torch that is already there, without its CUDA kernel, which only videos want.
	$(BIN)/pip install --quiet setuptools wheel
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation sam2==1.1.0
	touch $@

infer: $(VENV)/installed
	$(BIN)/python -m rea2seg.infer --image examples/scene.png --query "$$(cat examples/scene.txt)" --out out/infer

test: $(VENV)/installed-dev
	# One thread for each of the two processes: threads that wait for each other on busy cores cost more than they give.
	# worksteal: neighbours stay in one process, so that what a module of tests shares is seldom made twice.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Whenever it is stopped, the same command goes on where it was and ends with the same weights.
train-mini: $(VENV)/installed-dev
	@mkdir -p $(WORK)/runs/mini
	@echo "Curves and example pictures: $(BIN)/tensorboard --logdir $(WORK)/runs/mini"
	$(call TELL,1,tokenizer)
	@$(FIT) training.tokenizer --out runs/mini/tokenizer $(if $(STEPS),--scenes $(STEPS))
	$(call TELL,2,segmenter)
	$(call STAGE,segmenter,segmenter)
	$(call TELL,3,vision tower of the generator)
	$(call STAGE,vision,vision_generator)
	$(call TELL,4,generator)
	$(call STAGE,generator,generator) $(if $(STEPS),--model.masks_from 0)
	$(call TELL,5,the generator as it ships)
	@$(FIT) training.ship --runs runs/mini --out runs/mini/shipped
	$(call TELL,6,candidates for the evaluator to score)
	@# A generator of few steps finds no masks that could be scored: a trial takes the candidates of the shipped one.
	@$(FIT) training.scoring_data --config $(ROOT)/configs/train/scoring_data.yaml \
	    $(if $(STEPS),--scenes $(STEPS) --weights $(ROOT)/rea2seg/mini/v4)
	$(call TELL,7,vision tower of the evaluator)
	$(call STAGE,vision,vision_evaluator)
	$(call TELL,8,the same tower on larger pictures)
	$(call STAGE,vision,vision_evaluator,vision_evaluator_fine)
	$(call TELL,9,evaluator)
	$(call STAGE,evaluator,evaluator_stage1)
	$(call TELL,10,evaluator with reasoning)
	$(call STAGE,evaluator,evaluator_stage2)
	$(call TELL,11,vision tower of the smaller evaluator)
	$(call STAGE,vision,vision_evaluator,vision_evaluator_small)
	$(call TELL,12,smaller evaluator)
	$(call STAGE,evaluator,evaluator_stage1,evaluator_small)
	$(call TELL,13,all of mini as it ships)
	@$(FIT) training.ship --runs runs/mini --out runs/mini/shipped
	$(call TELL,14,an answer)
	@$(FIT) rea2seg.infer --weights runs/mini/shipped --image $(ROOT)/examples/scene.png \
	    --query "$$(cat $(ROOT)/examples/scene.txt)" --out out/infer

# Stopped and given again, it goes on where it was; a larger LIMIT keeps what a smaller one found.
ablations: $(VENV)/installed
	@# One thread each: models as small as mini lose more by waiting for a second one than it gives.
	OMP_NUM_THREADS=1 $(BIN)/python -m rea2seg.evaluate.ablations --table configs/evaluate/ablations.yaml \
	    --benchmark sgdr-synth --limit $(LIMIT) --workers $(WORKERS) --out out/ablations
