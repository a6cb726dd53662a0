# make chat                opens a conversation; make chat PROMPT="…" answers once
# make test                installs what the tests need and runs them all
# make format              puts the code into shape
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.PHONY: chat test format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= smollm2-135m-instruct
export PROMPT

# pip's own words, shortened: what it collects, and how far llama.cpp's compilation is
PROGRESS := awk '/^ *(Collecting|Building wheels? for|Installing collected|Successfully|ERROR)/ { print substr($$0, 1, 100); fflush() } \
    match($$0, /\[ *[0-9]+(\/[0-9]+|%)\]/) && !/^ *Collecting/ { step = substr($$0, RSTART, RLENGTH); \
    if (tty) printf "\r  compiling llama.cpp %s ", step; else if (++n % 25 == 0) print "  compiling llama.cpp " step; fflush() }'

chat: $(VENV)/installed
	@$(BIN)/edge pull $(MODEL) > /dev/null
	@if [ -n "$$PROMPT" ]; then $(BIN)/edge chat $(MODEL) -- "$$PROMPT"; else $(BIN)/edge chat $(MODEL); fi

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n logical --dist loadfile

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/installed $(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	@for tool in cc c++; do command -v $$tool > /dev/null || { \
	    echo "edge compiles llama.cpp for this machine and finds no compiler ($$tool)." >&2; \
	    echo "Install one: sudo apt install build-essential · sudo dnf install gcc-c++ · xcode-select --install" >&2; \
	    exit 1; }; done
	@echo "Installing into $(VENV). The first time llama.cpp is compiled for this CPU: 4 to 6 minutes on two cores."
	@$(BIN)/python -m pip install -v -e '.$(if $(findstring dev,$@),[dev])' 2>&1 | tee $(VENV)/install.log \
	    | $(PROGRESS) tty=$$([ -t 2 ] && echo 1 || echo 0) - \
	    || { echo "The installation failed; the whole log is $(VENV)/install.log and ends:" >&2; tail -n 15 $(VENV)/install.log >&2; exit 1; }
	@touch $@ $(if $(findstring dev,$@),$(VENV)/installed)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "edge needs Python 3.10 or newer; name one with make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: sudo apt install python3-venv" >&2; exit 1; }
