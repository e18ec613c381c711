# Needs Python 3.11 or newer and nothing else. `make help` lists what there is.

PORT ?= 8000
DATA ?=
DEVICE ?=
SOAK_S ?= 600

VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install run lock audit sbom oldest contract test test-faults kernels lint

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv with everything that the other targets use

run: install ## Get MovieLens-100K, train, serve (PORT=8000 DATA=log-or-folder DEVICE=cpu)
	@$(BIN)/python -m cli.run --port "$(PORT)" $(if $(DATA),--data "$(DATA)") $(if $(DEVICE),--device "$(DEVICE)")

test: install ## Run the whole test suite, real servers included
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-faults: install ## Break the store and the workers under load, overload, a soak (SOAK_S=600); 20 minutes
	@SOAK_S="$(SOAK_S)" $(BIN)/python -m pytest -m faults tests/faults

# The Triton kernels of mamba-ssm without its CUDA extension, of which nothing is used: its Python
# files alone, so nothing is compiled and no GPU is needed.
kernels: ## Install the kernels for a GPU, which `install` has tried, too
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt \
		setuptools wheel packaging einops triton
	@MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(BIN)/python -m pip install \
		--disable-pip-version-check -q -c constraints.txt --no-deps --no-build-isolation mamba-ssm

contract: install ## Send thousands of made-up requests to a real service, by its OpenAPI document
	@CONTRACT_CASES=60 $(BIN)/python -m pytest tests/service/test_contract.py -s --timeout 1200

TOOLS := .tools
$(TOOLS)/.installed: constraints.txt
	python3 -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --disable-pip-version-check -q pip-tools==7.6.2 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

lock: $(TOOLS)/.installed ## Pin what the CPU image installs, with hashes: deploy/cpu.lock
	@grep -v '^#\|^torch==\|^mamba' constraints.txt > $(TOOLS)/constraints.txt
	@python3 deploy/lock.py > $(TOOLS)/requirements.in
	$(TOOLS)/bin/pip-compile -q --allow-unsafe --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
		--no-header --strip-extras -c $(TOOLS)/constraints.txt -o deploy/cpu.lock $(TOOLS)/requirements.in

audit: $(TOOLS)/.installed ## Look the locked packages up among known vulnerabilities
	$(TOOLS)/bin/pip-audit --disable-pip --require-hashes -r deploy/cpu.lock

sbom: $(TOOLS)/.installed ## Write sbom.json: what the CPU image installs beside torch (CycloneDX)
	$(TOOLS)/bin/cyclonedx-py requirements deploy/cpu.lock --pyproject pyproject.toml -o sbom.json

oldest: ## Run tests with the oldest versions that pyproject.toml allows
	python3 -m venv .venv-oldest
	python3 deploy/oldest.py otel index > .venv-oldest/requirements.txt
	.venv-oldest/bin/pip install --disable-pip-version-check -q -r .venv-oldest/requirements.txt \
		pytest pytest-timeout pytest-xdist hypothesis
	.venv-oldest/bin/pip install --disable-pip-version-check -q --no-deps -e .
	.venv-oldest/bin/python -m pytest -o filterwarnings=default tests/model/test_state.py \
		tests/service/test_direct.py tests/service/test_keys.py tests/service/test_page.py \
		tests/service/test_pool.py tests/service/test_settings.py tests/service/test_wave.py

lint: install ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch by itself first, pinned, so that nothing after it can ask for another one.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || { \
	for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
		if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "making $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "error: no Python 3.11 or newer with its venv module found: install one, or name it: make install PYTHON=/path/to/python3" >&2; \
	exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@if [ "$$(uname -s)" = Linux ]; then $(MAKE) -s kernels || \
		echo "note: the kernels for a GPU are not installed, and their tests will be skipped"; fi
	@touch $@
