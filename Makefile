# make demo: the whole method on handwritten digits    make test: the tests    make help: everything else
PYTHON ?= python3
SEEDS ?= 0
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
DIGITS := $(BIN)/python cifar/pipeline.py --arch resnet20 --dataset digits --compare --no-report --seeds $(SEEDS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow chaos bench gpu docs lint clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 16

setup: $(VENV)/.ready ## Make .venv with the pinned packages and everything the demo and the tests need

$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("KESI needs Python 3.10 or newer; try make PYTHON=python3.12 ..." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready ## Run all five steps on digits, both methods, and print the paper's table (SEEDS="0 1 2": more runs)
	$(DIGITS) --method filter --save $(DEMO)/filter
	$(DIGITS) --method weight --save $(DEMO)/weight --model '$(DEMO)/filter/seed{seed}/baseline'
	$(BIN)/kesi report $(DEMO)/filter $(DEMO)/weight

# One thread a process: two processes of one thread each finish sooner than one after the other with two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/.ready ## Run the tests of the method, about ten minutes on two cores
	$(PYTEST) -m 'not slow'

slow: $(VENV)/.ready ## Run the tests of notebook, documents, studies, own networks, benchmarks, Ray and several processes
	$(PYTEST) -m slow

chaos: $(VENV)/.ready ## Kill pipelines 100 times and compare with runs left alone, then tamper with runs 100 times
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --kills 50 --seed 0 --method filter
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --kills 50 --seed 0 --method weight
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tampering --tamperings 100 --seed 0

bench: $(VENV)/.ready ## Measure the speed of this machine against the classic way, about a quarter of an hour
	$(BIN)/python -m benchmarks.throughput --json benchmarks/throughput.json

# A Python that is named is used as it is: on a rented machine it has torch, and there may be no network.
NAMED := $(filter command environment,$(origin PYTHON))
LIMIT ?= 570
DEVICE ?= auto
ARCH ?= resnet56
DATASET ?= digits
DATA ?= data
SCALE ?= 1
GPU ?= runs/gpu
gpu: $(if $(NAMED),,$(VENV)/.ready) ## All that a first rented GPU should tell, within LIMIT seconds; goes on with the same command
	PYTHONPATH=. $(if $(NAMED),$(PYTHON),$(BIN)/python) -m benchmarks.gpu --limit $(LIMIT) --device $(DEVICE) \
		--arch $(ARCH) --dataset $(DATASET) --data $(DATA) --epochs-scale $(SCALE) --save $(GPU)

docs: $(VENV)/.ready ## Make the site of documents and API reference in docs/site
	$(BIN)/python docs/build.py

lint: $(VENV)/.ready ## Check the style
	$(BIN)/ruff check .

clean: ## Remove the virtual environment and caches (runs/ and data/ stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
