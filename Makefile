# Everything a newcomer needs: `make demo` and `make test`. Both set up all they need by themselves.
SHELL := /bin/bash
VENV := .venv/bin

.PHONY: demo test lint types unit image test-vm soak bench bench-net docs lock setup clean

demo: setup
	@$(VENV)/python -m bot.devstack demo $(ARGS)

test: setup lint types unit

setup:
	@build/setup.sh

lint:
	@$(VENV)/ruff format --check --quiet .
	@$(VENV)/ruff check --quiet .
	@$(VENV)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	@$(VENV)/codespell
	@shellcheck *.sh build/*.sh build/image/enclaved build/image/init .ci/run
	@$(VENV)/python -m build.docs --check
	@echo "lint: clean"

types:
	@$(VENV)/mypy

# Tests that need root, Docker and namespaces run on one worker, all others on the other.
unit:
	@$(VENV)/pytest -n 2 --dist loadgroup $(ARGS)

# A part of `unit`: both data planes over real AF_VSOCK, in a guest under emulation.
test-vm: setup
	@$(VENV)/pytest tests/vm $(ARGS)

# The file that an enclave is started from, and what is measured of it: dist/enclaved.eif. ARGS="--layer FOLDER"
image: setup
	@$(VENV)/enclaved image build --out dist/enclaved.eif --root dist/root $(ARGS)

# Fifteen minutes of mixed load, attacks, kill -9 every minute; then the books. ARGS="--minutes 15 --seed 1"
soak: setup
	@$(VENV)/python -m bench.soak $(ARGS)

bench: setup
	@$(VENV)/python -m bench

# ARGS="rounds seconds"
bench-net: setup
	@$(VENV)/python -m bench.net $(ARGS)

# Parts of the documents that are generated from the code.
docs: setup
	@$(VENV)/python -m build.docs

# After changing dependencies in pyproject.toml.
lock: setup
	@build/lock.sh
	@$(VENV)/enclaved image lock

clean:
	rm -rf .venv .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .lint-imports.log
