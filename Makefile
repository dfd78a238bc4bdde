# make demo | test | check | soak, on a machine with Python 3.11 or newer and nothing else; all of it lives in .venv
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
READY := $(VENV)/.ready

.PHONY: demo test check soak bench-setup clean

demo: $(READY)
	$(BIN)/tokenshards demo demo_out

test: $(READY)
	$(BIN)/python -m pytest -m "not soak" -n 3 --dist loadfile --no-loadscope-reorder --durations=10

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p tokenshards

# The long forms of the crash and damage tests: by hand, once per issue. SOAK_SEED=7 repeats a run.
soak: $(READY)
	SOAK_RESULTS=infra/bench/results $(BIN)/python -m pytest -m soak --timeout 3600 -s

# An environment of its own, with pins for torch alone: the peers want older packages than ours.
bench-setup:
	python3 -m venv $(BENCH)
	grep '^torch' constraints.txt > $(BENCH)/constraints.txt
	$(BENCH)/bin/python -m pip install -q --disable-pip-version-check -c $(BENCH)/constraints.txt -e ".[bench]"

$(READY): pyproject.toml constraints.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokenshards needs Python 3.11 or newer, this is " + sys.version)'
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $(READY)

clean:
	rm -rf $(VENV) $(BENCH) demo_out build *.egg-info
