# The two commands: `make demo` and `make test`; both make their environment when it is not there.
# Python compiles what it imports, once; to compile all that is installed takes a minute or two, and
# where nothing may be kept every process of the tests compiles torch again, which takes longer.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The oldest versions that pyproject.toml allows, and the quick tests that meet them.
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
OLDEST_FILES := cluster commit config decode encode fetch footer foreign_exceptions generate identity \
	import_originals import_single_file load oldest presets read readers rejected rejections session \
	storage storage_clouds storage_exclusive storage_options storage_s3 storage_web text_files worker \
	write
OLDEST_SLOW := tests/test_storage_s3.py::test_the_job_from_s3_to_s3_is_the_job_from_disk_to_disk
OLDEST_PIXELS := same_pixels_as_diffusers same_noise_as_diffusers_from_a_seed half_precision_end_to_end
# Files less covered than this are named; pyproject.toml has the floor of the whole.
NAMED_BELOW := 85
# Files of tests that run at once; most tests keep one core busy.
TEST_PROCESSES ?= 2
BY_FILE := --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-long oldest test-oldest crash lint format clean

demo: $(STAMP)
	$(BIN)/python -m ldm_batch demo

test: lint
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(BY_FILE) -m 'not long'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under 0 --sort cover | \
		awk 'NR == 1 || /^TOTAL/ || $$NF + 0 < $(NAMED_BELOW) && /%$$/'
	$(BIN)/coverage report --format total >/dev/null

# The environment of `test-oldest`, which CI makes beside the tests.
oldest: $(OLDEST_STAMP)

test-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python -m pytest $(BY_FILE) -m 'not long' --deselect $(OLDEST_SLOW) \
		$(OLDEST_FILES:%=tests/test_%.py) \
		$(OLDEST_PIXELS:%=tests/test_text_to_image.py::test_%)

# Longer proofs of what `make test` proves in part.
test-long: $(STAMP)
	$(BIN)/python -m pytest $(BY_FILE) -m long

crash: $(STAMP)
	cd tests && ../$(BIN)/python -m crash --kills 200 --on-ray 12
	cd tests && ../$(BIN)/python -m crash --kills 30 --store gs
	cd tests && ../$(BIN)/python -m crash --kills 30 --store az
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
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile \
		--constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

$(OLDEST_STAMP): pyproject.toml tests/oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet \
		--no-compile --requirement tests/oldest.txt --editable .
	touch $(OLDEST_STAMP)

clean:
	rm -rf $(VENV) $(OLDEST) .coverage* demo_output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
