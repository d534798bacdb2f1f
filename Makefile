# Everything needs only Python 3.11 and make; each target makes what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# uv takes packages from the same extra folders as pip does, where pip is told of any.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
DATA ?= stillhouse-data
HOST ?= 127.0.0.1
PORT ?= 8000
TEST_PROCESSES ?= 2
BENCHMARKS := upload_memory responsiveness pt2_reader dependency_groups architectures ablation linearised pruning_sign pruning_quality

.PHONY: setup demo serve test lint format types imports tests bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is needed (set PYTHON=… to name another)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## the main job on real data, end to end through HTTP
	$(BIN)/python scripts/demo.py

serve: setup ## the same stack, left running
	$(BIN)/stillhouse serve --data $(DATA) --host $(HOST) --port $(PORT)

test: lint types imports tests ## everything

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

tests: setup # one thread each, so that processes do not get in each other's way
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

bench: setup ## every benchmark, one after the other
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf $(VENV) demo-output
