# Each target first makes the virtual environment that it needs. PYTHON says of
# which Python: `make PYTHON=python3.12 test-oldest`.
PYTHON ?= python3

export TF_CPP_MIN_LOG_LEVEL ?= 3

# Two targets may share an environment.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo small-batch group-division head-norm test test-oldest lint bench budgets clean

help: ## Say what the targets do
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

demo: .venv/.examples ## Train on handwritten digits
	.venv/bin/python examples/digits.py

small-batch: .venv/.examples ## Train with batches of 32 to 2 and four norms; about 10 minutes
	.venv/bin/python examples/small_batch.py

group-division: .venv/.examples ## Train with few and many groups; about 5 minutes
	.venv/bin/python examples/group_division.py

head-norm: .venv/.examples ## Train Transformers with and without head norms; about 5 minutes
	.venv/bin/python examples/head_norm.py

test: lint ## Lint, then run all tests
	.venv/bin/python -m pytest -q -n 2

test-oldest: .venv-oldest/.test ## Run all tests on the oldest versions that setup.cfg admits
	.venv-oldest/bin/python -m pytest -q -n 2

lint: .venv/.test ## Check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

bench: .venv-bench/.bench ## Measure speed and memory; about 20 minutes
	.venv-bench/bin/python benchmarks/xla_cost.py --write
	.venv-bench/bin/python benchmarks/memory.py --write
	.venv-bench/bin/python benchmarks/first_call.py --write
	.venv-bench/bin/python benchmarks/cpu.py --write

budgets: .venv-bench/.bench ## Check what XLA makes of the kernel for GPU and TPU
	.venv-bench/bin/python -m pytest -q benchmarks

clean: ## Remove all that was made, environments too
	rm -rf .venv .venv-bench .venv-oldest .build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# pip comes into a new environment last: who has it is complete.
.venv/bin/pip .venv-bench/bin/pip .venv-oldest/bin/pip:
	$(PYTHON) -m venv $(@:/bin/pip=)

# ENVIRONMENT/.EXTRA says that the package is installed there with that extra.
.venv/.%: setup.cfg pyproject.toml | .venv/bin/pip
	.venv/bin/python -m pip install -q -e '.[$*]'
	@touch $@

.venv-bench/.%: setup.cfg pyproject.toml | .venv-bench/bin/pip
	.venv-bench/bin/python -m pip install -q -e '.[$*]'
	@touch $@

.venv-oldest/.%: .venv-oldest/constraints.txt pyproject.toml
	.venv-oldest/bin/python -m pip install -q -c $< -e '.[$*]'
	@touch $@

# Each lower bound in setup.cfg becomes the version to install.
.venv-oldest/constraints.txt: setup.cfg | .venv-oldest/bin/pip
	sed -n 's/^ *\([a-z-]*\) *>= *\([0-9.]*\)$$/\1==\2/p' setup.cfg > $@
	@cat $@
