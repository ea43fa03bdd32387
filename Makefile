# Each target sets up .venv from nothing: Python 3.11 or newer with pip; uv is used when it is there (faster).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test format

demo: $(INSTALLED)
	$(BIN)/harmonize demo --run=runs/demo

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed. Received: $$($(PYTHON) --version). Remedy: make PYTHON=python3.11"; exit 2; }
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV) && uv pip install --python $(BIN)/python -e '.[test,addons]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet -e '.[test,addons]'; \
	fi
	@touch $@
