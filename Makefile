# Needs: make, git, Python 3.11 or newer with venv (Debian, Ubuntu: apt install make git python3-venv).
#
#   make demo DATA_ZIP=FILE   takes the course's data from a zip on disk; several: DATA_ZIP='a.zip b.zip'
#   make test PYTHON=python3.12   takes another Python

PYTHON ?= python3
DATA_ZIP ?=
ID ?= demo

PYTHONS ?= python3.11 python3.12 python3.13
VENV ?= .venv

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
RUFF := ruff==0.17.6

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo data course frames pairs train evaluate grade test test-pythons test-slow lint bench clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

demo: data pairs train evaluate grade  ## everything: install, frames, pairs, both models, scores

test: venv  ## install, then the fast test suite
	$(PY) -m pytest -n auto --dist worksteal

test-pythons:  ## the fast tests on each of PYTHONS that starts, each in a virtual environment of its own
	@over=; for python in $(PYTHONS); do \
	    if $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "== $$python: $$($$python -V)"; \
	        $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$(basename $$python) || exit 1; \
	    else over="$$over $$python"; fi; \
	done; [ -z "$$over" ] || echo "passed over, since they do not start or have no venv module:$$over"

test-slow: venv  ## the tests that take minutes or gigabytes
	$(PY) -m pip install --quiet -r requirements-browser.txt
	$(PY) -m pytest -m slow

bench: venv  ## how fast it trains and answers on this machine
	$(PY) -m benchmarks.throughput

lint: venv  ## ruff
	$(PY) -m pip install --quiet $(RUFF)
	$(PY) -m ruff check

venv: $(INSTALLED)  ## the virtual environment with everything of requirements.txt

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'error: $(PYTHON) is not Python 3.11 or newer; apt install python3, or name another: make PYTHON=...'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'error: $(PYTHON) has no venv module; apt install python3-venv'; exit 1; }
	$(PY) -m pip --version 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install -r requirements.txt
	@touch $@

# .unfinished marks a data folder that a stopped download left behind: the next one goes on there.
data: venv  ## frames in data/: the course's from DATA_ZIP or that are there; else those of sample/
	@if [ -e data/.unfinished ] || { [ -n '$(DATA_ZIP)' ] && ! $(HAS_FRAMES); }; then \
	    $(MAKE) --no-print-directory course; \
	elif $(HAS_FRAMES); then \
	    echo 'data/train has frames: they are taken'; \
	else \
	    $(PY) -m supertux use-sample; \
	fi

# The sample's are no frames of the user's.
HAS_FRAMES = { [ ! -e data/.sample ] && find -L data/train -name '*_info.json' 2>/dev/null | grep -q .; }

course: venv  ## the course's own data set into data/: from DATA_ZIP, else from the net (464 MB)
	mkdir -p data && touch data/.unfinished
	$(PY) -m supertux download $(if $(DATA_ZIP),--from $(DATA_ZIP))
	rm data/.unfinished

frames: venv  ## draw 2,000 frames of our own into data/own, with the game's art
	$(PY) -m pip install --quiet -r supertux/requirements.txt
	$(PY) -m supertux install-art
	$(PY) -m supertux render --out data/own

pairs: venv  ## question-answer pairs and captions of train and valid
	$(PY) -m homework.generate_qa generate --split train
	$(PY) -m homework.generate_captions generate --split train
	$(PY) -m homework.generate_qa generate --split valid
	$(PY) -m homework.generate_captions generate --split valid

train: venv  ## the VLM and CLIP, into homework/weights/vlm and homework/weights/clip
	$(PY) -m homework.finetune train
	$(PY) -m homework.clip train

evaluate: venv  ## both on the whole valid split
	$(PY) -m homework.finetune test homework/weights/vlm --split valid --whole
	# the sample's valid split is too small for 2,000 questions, one a view
	$(PY) -m homework.clip test homework/weights/clip --split valid --whole $$([ -e data/.sample ] && echo 500 || echo 2000)

grade: venv  ## bundle the submission as ID.zip and grade it
	$(PY) bundle.py homework $(ID)
	$(PY) -m grader $(ID).zip

clean:  ## remove what minutes make again: .venv, caches, finished runs, demo.zip; not data, not runs/nano
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis data/.cache runs/vlm runs/clip runs/demo $(ID).zip
	find . -name __pycache__ -prune -exec rm -rf {} +
