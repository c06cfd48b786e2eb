# Needs: make, git, Python 3.11 or newer with venv (Debian, Ubuntu: apt install make git python3-venv).
#
#   make demo DATA_ZIP=FILE   use the course's data from a zip on disk; several: DATA_ZIP='a.zip b.zip'
#   make test PYTHON=python3.12   use another Python

PYTHON ?= python3
DATA_ZIP ?=
ID ?= demo
VLM ?= runs/vlm
CLIP ?= runs/clip

PYTHONS ?= python3.11 python3.12 python3.13
VENV ?= .venv
COURSE_PYTHON ?= python3.12
COURSE_VENV ?= .venv-course

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
RUFF := ruff==0.17.6

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo data course frames pairs train evaluate grade install-weights
.PHONY: test test-pythons test-slow course-env export-env web lint bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

demo: data pairs train evaluate grade  ## everything: install, data, annotations, train both models, evaluate, bundle, grade

test: venv  ## install, then run the fast test suite
	$(PY) -m pytest -n auto --dist worksteal

test-pythons:  ## run the fast suite on each of PYTHONS that starts, each in its own virtual environment
	@over=; for python in $(PYTHONS); do \
	    if $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "== $$python: $$($$python -V)"; \
	        $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$(basename $$python) || exit 1; \
	    else over="$$over $$python"; fi; \
	done; [ -z "$$over" ] || echo "skipped, no such Python or no venv module:$$over"

course-env: $(COURSE_VENV)/.installed  ## install the environment in which the course grades (6 GB), for test-slow

$(COURSE_VENV)/.installed: grader/course_requirements.txt
	@$(COURSE_PYTHON) -c 'import ensurepip, venv, sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null || \
	    { echo 'error: $(COURSE_PYTHON) is not Python 3.12 with venv. Name one: make course-env COURSE_PYTHON=PATH'; exit 1; }
	$(COURSE_PYTHON) -m venv --clear $(COURSE_VENV)
	@echo 'installing grader/course_requirements.txt into $(COURSE_VENV): minutes, 6 GB'
	@$(COURSE_VENV)/bin/python -m pip install --quiet -r grader/course_requirements.txt
	@touch $@

test-slow: venv  ## run the tests that take minutes or gigabytes, browser tests included
	$(PY) -m pip install --quiet -r requirements-browser.txt
	$(PY) -m pytest -m slow

bench: venv  ## measure training and inference throughput on this machine
	$(PY) -m benchmarks.throughput

EXPORT_PY := .venv-export/bin/python

export-env: .venv-export/.installed  ## create .venv-export, in which `python -m export` runs (several GB with CUDA)

.venv-export/.installed: requirements-export.txt
	$(EXPORT_PY) -m pip --version 2>/dev/null || $(PYTHON) -m venv --clear .venv-export
	@echo 'installing requirements-export.txt into .venv-export: minutes, several GB with CUDA'
	@$(EXPORT_PY) -m pip install --quiet -r requirements-export.txt
	@touch $@

web: export-env  ## write web/, a static page with VLM and CLIP in the browser; needs npm
	$(EXPORT_PY) -m export web --vlm $(if $(wildcard $(VLM)/adapter_config.json),$(VLM),vlm) \
	    --clip $(if $(wildcard $(CLIP)/adapter_config.json),$(CLIP),clip) --output web

lint: venv  ## run ruff
	$(PY) -m pip install --quiet $(RUFF)
	$(PY) -m ruff check

venv: $(INSTALLED)  ## create the virtual environment and install requirements.txt

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'error: $(PYTHON) is not Python 3.11 or newer. Install one, or name it: make PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'error: $(PYTHON) has no venv module. Install it: apt install python3-venv'; exit 1; }
	$(PY) -m pip --version 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo 'installing requirements.txt into $(VENV): 1 to 2 minutes, 1.4 GB, and more with CUDA'
	@$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

# An interrupted download leaves one of these, and the next one resumes it.
IS_DOWNLOADING = ls -d data/.unpacking data/data.zip.part 2>/dev/null | grep -q .

data: venv  ## fill data/ from DATA_ZIP, or keep its frames, or unpack sample/
	@if $(IS_DOWNLOADING) || { [ -n '$(DATA_ZIP)' ] && ! $(HAS_FRAMES); }; then \
	    $(MAKE) --no-print-directory course; \
	elif $(HAS_FRAMES); then \
	    echo 'data/train has frames: using them'; \
	else \
	    $(PY) -m supertux use-sample; \
	fi

# The sample's frames do not count: the course's data replaces them.
HAS_FRAMES = { [ ! -e data/.sample ] && find -L data/train -name '*_info.json' 2>/dev/null | grep -q .; }

course: venv  ## install the course's data into data/, from DATA_ZIP or by download (464 MB)
	$(PY) -m supertux download $(if $(DATA_ZIP),--from $(DATA_ZIP))

frames: venv  ## render 2,000 frames into data/own; needs the game assets
	$(PY) -m pip install --quiet -r supertux/requirements.txt
	$(PY) -m supertux install-assets
	$(PY) -m supertux render --output data/own

pairs: venv  ## write QA pairs and captions for train and valid
	$(PY) -m homework.generate_qa generate --split train
	$(PY) -m homework.generate_captions generate --split train
	$(PY) -m homework.generate_qa generate --split valid
	$(PY) -m homework.generate_captions generate --split valid

train: venv  ## train the VLM into runs/vlm and CLIP into runs/clip
	$(PY) -m homework.finetune train
	$(PY) -m homework.clip train

evaluate: venv  ## evaluate VLM and CLIP, by default runs/vlm and runs/clip, on the whole valid split
	$(PY) -m homework.finetune test $(VLM) --split valid --all-questions
	# the sample's valid split is too small for 2,000 questions, one per image
	$(PY) -m homework.clip test $(CLIP) --split valid --num-questions $$([ -e data/.sample ] && echo 500 || echo 2000)

grade: venv  ## write the submission to ID.zip and grade it
	$(PY) bundle.py homework $(ID)
	$(PY) -m grader $(ID).zip

ADAPTER := adapter_config.json adapter_model.safetensors training.json

install-weights:  ## copy VLM and CLIP, by default runs/vlm and runs/clip, over the shipped homework/weights
	@for run in $(VLM) $(CLIP); do [ -e $$run/adapter_config.json ] || \
	    { echo "error: $$run is not a finished training run. Train first: make train"; exit 1; }; done
	cp $(addprefix $(VLM)/,$(ADAPTER)) homework/weights/vlm
	cp $(addprefix $(CLIP)/,$(ADAPTER) additional_weights.pt) homework/weights/clip

clean:  ## remove .venv, caches, checkpoints and demo.zip; keep data and trained models
	rm -rf .venv .venv-* build .pytest_cache .ruff_cache .hypothesis data/.cache
	rm -rf runs/vlm-run runs/clip-run runs/demo-run $(ID).zip
	find . -name __pycache__ -prune -exec rm -rf {} +
