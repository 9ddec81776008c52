# `make study`: from nothing to the published page. `make test`: everything that is checked. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Everything installed is pinned by constraints.txt; the stamp is renewed when the pins or the package's needs change.
STAMP := $(VENV)/.installed
PAGE := _build/html/index.html

# Where Python is told to keep no bytecode, each of the hundreds of processes of `make test` would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study workflow test quick bench book book-check install format clean help

study: $(STAMP)  ## train a small network on the embedded digits, certify it, build the book
	mkdir -p results/local/notebooks
	$(BIN)/papermill --no-progress-bar --log-output notebooks/train.ipynb results/local/notebooks/train.ipynb </dev/null
	$(BIN)/lipcert runs list
	$(MAKE) --no-print-directory book
	@echo
	@$(BIN)/lipcert runs latest
	@echo "The book: $(CURDIR)/$(PAGE)"

workflow: $(STAMP)  ## every run of the study that is missing, then the book; hours. What is missing: .venv/bin/snakemake -n
	$(BIN)/snakemake --cores 2

book: $(STAMP)  ## render the report from results/
	$(BIN)/jupyter-book build book/ -W -n --keep-going

test: $(STAMP)  ## all tests: unit, data, notebooks through nbval, the book from clean with warnings as errors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests
	OMP_NUM_THREADS=1 LIPCERT_RESULTS=$(CURDIR)/results $(BIN)/pytest -n 2 --dist loadfile --nbval-lax -p no:cacheprovider notebooks
	$(MAKE) --no-print-directory book-check

quick: $(STAMP)  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow" tests

bench: $(STAMP)  ## quick benchmarks of this machine, no data needed; about 6 minutes on two cores, records in results/local/checks
	$(BIN)/python -m benchmarks.training_step --quick
	$(BIN)/python -m benchmarks.certification --quick
	$(BIN)/python -m benchmarks.peers --rounds 5

book-check: $(STAMP)
	$(BIN)/jupyter-book clean -a . >/dev/null
	$(MAKE) --no-print-directory book

install: $(STAMP)  ## make the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[all]" \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all]"  # where pip is configured and uv is not
	touch $@

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-count --keep-id notebooks/*.ipynb

clean:  ## remove the built book and the environment; runs in results/local stay
	rm -rf _build $(VENV)

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'
