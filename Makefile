# Needs Python 3.11 or newer and nothing else. `make help` lists what there is.

PORT ?= 8000
DATA ?=
DEVICE ?=
# Not from the environment: there it is the width of a terminal.
COLUMNS :=
ITEM_COLUMNS ?=
KINDS ?=
ENCODING ?=
TIME_FORMAT ?=
SKIP_BAD_ROWS ?=
RECIPE ?=
SOAK_S ?= 600
AUDIT ?= pypi
OVERLAY ?=
OLDEST_TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
OLDEST_TESTS ?= tests/model/test_state.py tests/model/test_artefact.py tests/client/test_client.py \
	$(addprefix tests/training/test_,batches.py dataset.py interactions.py) \
	$(addprefix tests/service/test_,load_shedder.py api.py direct.py event_log.py keys.py items.py logs.py \
	metrics.py page.py plain_request.py pool.py retrieval.py settings.py tracing.py wave.py wire.py) \
	$(addprefix tests/cli/test_,console.py data.py main.py replay.py steps.py)

VENV := .venv
BIN := $(VENV)/bin

# An option of a command, where its variable is set.
upper = $(shell echo $(1) | tr a-z- A-Z_)
given = $(if $($(call upper,$(1))),--$(1) "$($(call upper,$(1)))")

.DEFAULT_GOAL := help
.PHONY: help install run lock audit sbom digests manifests oldest recbole contract test quick test-faults kernels lint

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv with everything that the other targets use

run: install ## Get MovieLens-100K, train, serve (PORT=8000 DATA=log-or-folder COLUMNS= KINDS= DEVICE=cpu)
	@exec $(BIN)/python -m cli.run --port "$(PORT)" $(if $(DATA),--data "$(DATA)") \
		$(if $(SKIP_BAD_ROWS),--skip-bad-rows) $(foreach option,columns item-columns kinds encoding time-format recipe device,$(call given,$(option)))

# Processes that tests start read our modules compiled.
test quick: export PYTHONDONTWRITEBYTECODE =
test: install ## Run the whole test suite, real servers included
	@$(BIN)/python -m pytest -n 4 --dist worksteal

# The contract's tests take seconds to collect, of each process.
quick: install ## Run what of it takes less than two seconds apiece; two and a half minutes
	@$(BIN)/python -m pytest -n 4 --dist worksteal -m 'not slow and not faults' --ignore tests/service/test_contract.py

test-faults: install ## Break the store and the workers under load, overload, a soak (SOAK_S=600); 20 minutes
	@SOAK_S="$(SOAK_S)" $(BIN)/python -m pytest -m faults tests/faults

# The Triton kernels of mamba-ssm without its CUDA extension, of which nothing is used: its Python
# files alone, so nothing is compiled and no GPU is needed.
kernels: ## Install the kernels for a GPU, which `install` has tried, too
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt \
		setuptools wheel packaging einops triton
	@MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(BIN)/python -m pip install \
		--disable-pip-version-check -q -c constraints.txt --no-deps --no-build-isolation mamba-ssm

# Its packages are older than ours; torch is that of .venv.
RECBOLE := .recbole
recbole: $(RECBOLE)/.installed ## Make .recbole, the environment of RecBole for benchmarks and their tests
$(RECBOLE)/.installed: $(VENV)/.installed benchmarks/recbole.txt
	$(BIN)/python -m venv --clear $(RECBOLE)
	$(RECBOLE)/bin/pip install --disable-pip-version-check -q --no-deps -r benchmarks/recbole.txt
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		$(BIN)/python -c "$$site" > "$$($(RECBOLE)/bin/python -c "$$site")/torch.pth"
	@touch $@

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

# Strict: what could not be looked up is a failure, and not "no known vulnerabilities".
audit: $(TOOLS)/.installed ## Look the locked packages up among known vulnerabilities (AUDIT=pypi or osv)
	@found=$$($(TOOLS)/bin/pip-audit --strict -s "$(AUDIT)" --disable-pip --require-hashes \
		-r deploy/cpu.lock 2>&1); status=$$?; \
	case "$$found" in *"could not be audited"*|*"ConnectionError"*|*"ServiceError"*) \
		echo "$$found" | tail -n 1 | cut -c 1-300; \
		echo "error: nothing was looked up: $(AUDIT) can't be asked from here, or does not know a" \
			"package. Try make audit AUDIT=osv, or where the network lets pip-audit through" >&2;; \
	*) echo "$$found";; esac; exit $$status

sbom: $(TOOLS)/.installed ## Write sbom.json: what the CPU image installs beside torch (CycloneDX)
	$(TOOLS)/bin/cyclonedx-py requirements deploy/cpu.lock --pyproject pyproject.toml -o sbom.json

digests: ## Ask registries what the images' tags stand for, and write it down (OVERLAY=production: of its own, too)
	@python3 deploy/digests.py pin deploy/images.env \
		$(if $(OVERLAY),deploy/kubernetes/overlays/$(OVERLAY)/kustomization.yaml)

manifests: ## Print the Kubernetes manifests, or say which image has no digest (OVERLAY=production or gpu)
	@python3 deploy/digests.py render $(or $(OVERLAY),production)

# torch itself is the pinned one by default: the CPU builds of older ones come from an index of their
# own, and PyPI's bring CUDA's libraries.
oldest: ## Run tests with the oldest versions that pyproject.toml allows (torch: OLDEST_TORCH=2.6.0)
	python3 -m venv --clear .venv-oldest
	.venv-oldest/bin/pip install --disable-pip-version-check -q "torch==$(OLDEST_TORCH)"
	python3 deploy/oldest.py otel index | sed 's/^torch==.*/torch==$(OLDEST_TORCH)/' > .venv-oldest/requirements.txt
	.venv-oldest/bin/pip install --disable-pip-version-check -q -r .venv-oldest/requirements.txt \
		pytest pytest-timeout pytest-xdist hypothesis
	.venv-oldest/bin/pip install --disable-pip-version-check -q --no-deps -e .
	.venv-oldest/bin/python -m pytest -o filterwarnings=default $(OLDEST_TESTS)

lint: install ## Check style, formatting, layers and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
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
