# Every target makes the virtual environment it needs; `make demo` is the first thing to run.
#
#   make demo     the main job on the embedded data set
#   make test     the tests                    make fast    those that take seconds
#   make trials   nodes and disks that die, for minutes each, and cases beyond those of the tests
#   make check    format, lint, types, architecture, packaging
#   make coverage all tests, and the lines of ns_ray that they run
#   make audit    known vulnerabilities of what is installed
#   make oldest   the tests without Ray on the oldest packages that pyproject.toml allows
#   make bench    the short benchmarks      make schema  write the documents that follow from the source
#   make site     the documents as pages, in build/site
#
# Another interpreter: make PYTHON=python3.12 demo
# Another build of torch: make TORCH='torch torchvision' demo, with pip's own settings or variables.

PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
VENV ?= .venv
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Two files at a time, those of Ray too: one works while the other waits for its cluster. After a
# crash pytest-xdist 3.8 with loadfile would start another worker and wait for it for ever.
PARALLEL := -n 2 --dist loadfile --max-worker-restart=0
NONE_CHOSEN := 5
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test trials coverage fast check audit oldest bench schema site clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(INSTALLED)

# Torch goes first and alone: it is the one package whose build depends on the machine.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ns-ray needs Python 3.11 or newer, $(PYTHON) is not; try: make PYTHON=python3.12" >&2; \
	  exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m ns_ray.run

test: $(INSTALLED)
	$(PYTEST) $(PARALLEL) -m 'not ray and not trial' $(PYTEST_ARGS) || [ $$? -eq $(NONE_CHOSEN) ]
	$(PYTEST) $(PARALLEL) --durations=15 -m 'ray and not trial' $(PYTEST_ARGS) || [ $$? -eq $(NONE_CHOSEN) ]

trials: $(INSTALLED)
	$(PYTEST) -m trial $(PYTEST_ARGS)

coverage: export PYTHONPATH := $(CURDIR)/tests
coverage: $(INSTALLED)
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --sort=cover

fast: $(INSTALLED)
	$(PYTEST) $(PARALLEL) -m 'not slow and not ray and not gpu' $(PYTEST_ARGS)

check: $(INSTALLED)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_packaging.py \
	  tests/test_schema_published.py tests/test_documents.py
	$(MAKE) --no-print-directory site

# In an environment of its own, so that it does not judge itself. Exit code 1: something was found.
AUDIT := build/audit
audit: $(INSTALLED)
	@mkdir -p $(AUDIT)
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
	  $(AUDIT)/bin/pip install --disable-pip-version-check --quiet 'pip-audit>=2.7'; } || true
	@$(BIN)/python -m pip freeze --exclude-editable > $(AUDIT)/installed.txt
	@if $(BIN)/python -c 'import urllib.request as r; r.urlopen("https://pypi.org/pypi/pip/json", timeout=10)' \
	  2>/dev/null && test -x $(AUDIT)/bin/pip-audit; then \
	  $(AUDIT)/bin/pip-audit --no-deps --disable-pip -r $(AUDIT)/installed.txt; \
	else echo 'pypi.org or pip-audit cannot be reached; what is installed:' && cat $(AUDIT)/installed.txt; fi

# In an environment of its own. Left out: what looks at the source, which new packages judge; words
# of Typer and of huggingface_hub and a rounding of Pillow's that are of newer ones.
OLDEST := build/oldest
NOT_OF_THE_OLDEST := $(addprefix --ignore=tests/test_,architecture.py packaging.py documents.py schema_published.py)
oldest:
	@mkdir -p $(OLDEST)
	test -x $(OLDEST)/bin/uv || { $(PYTHON) -m venv $(OLDEST) && \
	  $(OLDEST)/bin/pip install --disable-pip-version-check --quiet 'uv>=0.5' 'setuptools>=77'; }
	$(OLDEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra dev \
	  --python $(OLDEST)/bin/python pyproject.toml --output-file $(OLDEST)/requirements.txt
	$(OLDEST)/bin/pip install --disable-pip-version-check --quiet --no-deps -r $(OLDEST)/requirements.txt
	$(OLDEST)/bin/pip install --disable-pip-version-check --quiet --no-deps --editable .
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -W default::DeprecationWarning $(NOT_OF_THE_OLDEST) \
	  -m 'not ray and not trial' -k 'not Input and not crop_alone and not hub_that_is_not_there' $(PYTEST_ARGS)

bench: $(INSTALLED)
	@printf '%s\n' "$$SHORT_BENCHMARKS" | awk '{ all += $$1; lines = lines "  " $$0 "\n" } \
	  END { printf "short benchmarks, about %d minutes on two cores with bf16; minutes of each:\n%s", all, lines }'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[bench]'
	@printf '%s\n' "$$SHORT_BENCHMARKS" | while read -r minutes name options; do \
	  echo "== $$name $$options, about $$minutes minutes"; \
	  $(BIN)/python -W ignore benchmarks/$$name.py $$options </dev/null || exit 1; done

# Minutes on two cores, script, options. Smaller than what docs/ shows, which each script does
# without options.
define SHORT_BENCHMARKS
5 label_speed --images 1024 --plain-images 192 --rounds 1
2 train_speed --epochs 1 --rounds 1
2 train_speed --size 224 --images 256 --rounds 1
3 startup --rounds 1
3 label_scale --rows 4096
2 selection_scale --rows 1,2
3 serve --seconds 2
endef
export SHORT_BENCHMARKS

schema: $(INSTALLED)
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python docs/make_commands.py
	$(BIN)/python docs/make_messages.py

# Not --quiet: that keeps warnings from counting.
site: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
