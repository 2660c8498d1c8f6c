# Each target first makes the virtual environment that it needs. PYTHON says of
# which Python: `make PYTHON=python3.12 test-oldest`.
PYTHON ?= python3
# Which JAX `test-jax` installs: `make JAX=jax==0.7.2 test-jax`.
JAX ?= jax
# On which Pythons `test-pythons` runs: those that setup.cfg names.
PYTHONS ?= $(shell sed -n 's/^ *Programming Language :: Python :: \(3\.[0-9]*\)$$/\1/p' setup.cfg)
# Of the tests of KerasHub's models, those to run: `make HUB=table test-hub`.
HUB ?= test

# Two processes, the idle one taking over what the other has yet to run.
PYTEST := -m pytest -q -n 2 --dist=worksteal

export TF_CPP_MIN_LOG_LEVEL ?= 3

# Two targets may share an environment.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo small-batch group-division head-norm vgg-distributions fpn \
  test test-jax test-oldest test-pythons test-nightly test-hub lint consumers \
  bench charts budgets tpu-check docs docs-serve dist clean

help: ## Say what the targets do
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 27

demo: .venv/.examples ## Show on digits where BatchNorm fails; two minutes
	.venv/bin/python examples/digits.py

small-batch: .venv/.examples ## Train with batches of 32 to 2 and four norms; about 27 minutes
	.venv/bin/python examples/small_batch.py

group-division: .venv/.examples ## Train with few and many groups; about 7 minutes
	.venv/bin/python examples/group_division.py

head-norm: .venv/.examples ## Train Transformers with and without head norms; about 11 minutes
	.venv/bin/python examples/head_norm.py

vgg-distributions: .venv/.examples ## Draw what norms do to the features of VGG-16
	.venv/bin/python examples/vgg_distributions.py

fpn: .venv/.examples ## Train a detector on two images of 800x1088, for 3 steps
	.venv/bin/python examples/models.py --model=fpn

test: lint ## Lint, then run all tests
	.venv/bin/python $(PYTEST)

test-jax: .venv-jax/.$(subst =,-,$(JAX)) .venv-bench/.bench ## Run on JAX the tests that are for both frameworks
	.venv-jax/bin/python $(PYTEST) --framework=jax
	.venv-bench/bin/python -m pytest -q tests/backends_check.py

test-oldest: .venv-oldest/.test ## Run all tests on the oldest versions that setup.cfg admits
	.venv-oldest/bin/python $(PYTEST)

test-pythons: $(PYTHONS:%=.venv-python%/.test) ## Run all tests on each Python that setup.cfg names
	for version in $(PYTHONS); do \
	  .venv-python$$version/bin/python $(PYTEST) || exit; \
	done

test-nightly: .venv-nightly/.nightly ## Run all tests on tomorrow's TensorFlow, Keras and tf-keras
	.venv-nightly/bin/python $(PYTEST)

test-hub: .venv-consumers/.consumers ## Check docs/models.md on models of KerasHub; takes minutes
	.venv-consumers/bin/python $(PYTEST) tests/hub_check.py -k '$(HUB)'

lint: .venv/.test ## Check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

consumers: .venv-consumers/.consumers ## Check that LiteRT, ONNX and OpenVINO run the models
	.venv-consumers/bin/python $(PYTEST) tests/consumers_check.py

bench: .venv-bench/.bench ## Measure speed and memory; takes a while, wants an idle machine
	.venv-bench/bin/python benchmarks/xla_cost.py --targets=a100,h100,v5e,v6e --write
	.venv-bench/bin/python benchmarks/jax_cost.py --targets=a100,h100,v5e,v6e --write
	.venv-bench/bin/python benchmarks/jax_cpu.py --write
	.venv-bench/bin/python benchmarks/memory.py --write
	.venv-bench/bin/python benchmarks/first_call.py --write
	.venv-bench/bin/python benchmarks/cpu.py --write
	.venv-bench/bin/python benchmarks/exactness.py --write

charts: .venv/.test ## Draw the charts of docs/ from the numbers that `bench` wrote
	.venv/bin/python benchmarks/charts.py

tpu-check: .venv-tpu/.tpu .venv-bench/.bench ## Check that TPUs can run the layers and the notebook; needs none
	.venv-tpu/bin/python -m pytest -q tests/tpu_check.py
	.venv-bench/bin/python -m pytest -q benchmarks/notebook_test.py

budgets: .venv-bench/.bench ## Check the kernel's programs, and what XLA makes of them for GPU and TPU
	.venv-bench/bin/python $(PYTEST) --dist=loadscope benchmarks

docs: .venv-docs/.docs ## Make the site of docs/, with the API reference, in site/
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

docs-serve: .venv-docs/.docs ## Show the site while its pages are edited, on port 8000
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve

dist: .venv-dist/.dist ## Make what is published, in dist/, and check it
	rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*
	.venv-dist/bin/check-wheel-contents dist/*.whl

clean: ## Remove all that was made, environments too
	rm -rf .venv .venv-* .build dist site *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# pip comes into a new environment last: who has it is complete.
.venv/bin/pip .venv-bench/bin/pip .venv-consumers/bin/pip .venv-dist/bin/pip .venv-docs/bin/pip .venv-jax/bin/pip .venv-nightly/bin/pip .venv-oldest/bin/pip .venv-tpu/bin/pip:
	$(PYTHON) -m venv $(@:/bin/pip=)

# ENVIRONMENT/.EXTRA says that the package is installed there with that extra.
.venv/.%: setup.cfg pyproject.toml | .venv/bin/pip
	.venv/bin/python -m pip install -q -e '.[$*]'
	@touch $@

.venv-bench/.%: setup.cfg pyproject.toml | .venv-bench/bin/pip
	.venv-bench/bin/python -m pip install -q -e '.[$*]'
	@touch $@

.venv-consumers/.%: setup.cfg pyproject.toml | .venv-consumers/bin/pip
	.venv-consumers/bin/python -m pip install -q -e '.[consumers,hub]'
	@touch $@

# What the tests import, for environments where the package is installed without
# its dependencies.
TOOLS := absl-py hypothesis ipykernel matplotlib nbclient pytest pytest-xdist \
  scikit-learn scipy tqdm

# Without TensorFlow, which the package's own dependencies would bring.
.venv-jax/.$(subst =,-,$(JAX)): setup.cfg pyproject.toml | .venv-jax/bin/pip
	.venv-jax/bin/python -m pip install -q --no-deps -e .
	.venv-jax/bin/python -m pip install -q '$(JAX)' keras $(TOOLS)
	@rm -f .venv-jax/.jax*  # Of another JAX.
	@touch $@

.venv-python%/.test: setup.cfg pyproject.toml
	python$* -m venv .venv-python$*
	.venv-python$*/bin/python -m pip install -q -e '.[test]'
	@touch $@

# What the package names itself would bring today's TensorFlow.
.PHONY: .venv-nightly/.nightly  # Tomorrow's of each day.
.venv-nightly/.nightly: setup.cfg pyproject.toml | .venv-nightly/bin/pip
	.venv-nightly/bin/python -m pip install -q --no-deps -e . tensorflow-serving-api
	.venv-nightly/bin/python -m pip install -q --upgrade tf-nightly keras-nightly tf-keras-nightly $(TOOLS)
	@touch $@

.venv-dist/.dist: | .venv-dist/bin/pip
	.venv-dist/bin/python -m pip install -q build twine check-wheel-contents
	@touch $@

# What the extra names, and not the package: it is read, and not imported, and
# would bring TensorFlow.
.venv-docs/.docs: setup.cfg | .venv-docs/bin/pip
	sed -n '/^docs =$$/,/^[^ ]/s/^  //p' setup.cfg > .venv-docs/requirements.txt
	.venv-docs/bin/python -m pip install -q -r .venv-docs/requirements.txt
	@touch $@

# TensorFlow for TPUs goes by another name: whoever asks for `tensorflow` gets
# the other one too, and both write the same files.
.venv-tpu/.tpu: setup.cfg pyproject.toml | .venv-tpu/bin/pip
	.venv-tpu/bin/python -m pip install -q tensorflow-tpu==2.20.0 libtpu==0.0.21.1 pytest
	.venv-tpu/bin/python -m pip install -q --no-deps tf-keras==2.20.1 -e .
	@touch $@

.venv-oldest/.%: .venv-oldest/constraints.txt pyproject.toml
	.venv-oldest/bin/python -m pip install -q -c $< -e '.[$*]'
	@touch $@

# Each lower bound in setup.cfg becomes the version to install.
.venv-oldest/constraints.txt: setup.cfg | .venv-oldest/bin/pip
	sed -n 's/^ *\([a-z-]*\) *>= *\([0-9.]*\)$$/\1==\2/p' setup.cfg > $@
	@cat $@
