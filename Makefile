# The two commands: `make demo` and `make test`; both make their environment when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Files of tests that run at once; most tests keep one core busy.
TEST_PROCESSES ?= 2

.PHONY: demo test crash lint format clean

demo: $(STAMP)
	$(BIN)/python -m ldm_batch demo

test: lint
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

crash: $(STAMP)
	cd tests && ../$(BIN)/python -m crash --kills 200 --on-ray 12
	COMMIT_MODEL_EXAMPLES=1000 $(BIN)/python -m pytest tests/test_commit_model.py

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo_output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
