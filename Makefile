# Everything the project does, from a fresh machine on. `make help` lists it.
#
#   PYTHON=python3.12   the interpreter the virtual environment is made from
#   VENV=.venv          where that environment lives; VENV= uses PYTHON itself, without one
#   TORCH="torch==..."  which PyTorch to install, when there is none yet

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
STAMPS := $(if $(VENV),$(VENV),build)/.stamps
SOURCES := $(shell find csrc -type f 2>/dev/null) setup.py pyproject.toml \
	python/sketchlayers/_toolkit.py python/sketchlayers/_version.py

.PHONY: help
help:
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---------------------------------------------------------------------------------- environment

INSTALL = $(PY) -m pip install --quiet --no-build-isolation --editable ".[dev,experiments]"

$(STAMPS)/environment:
	$(if $(VENV),test -x $(PY) || $(PYTHON) -m venv $(VENV))
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet "setuptools>=77" "wheel>=0.43" "ninja>=1.11"
	@mkdir -p $(@D) && touch $@

# A library that is newer than the stamp was built by another environment, or by hand.
$(STAMPS)/installed: $(STAMPS)/environment $(SOURCES) python/sketchlayers/libsketchlayers.so
	$(INSTALL)
	@touch $@

python/sketchlayers/libsketchlayers.so: ;

.PHONY: build
build: $(STAMPS)/environment ## install into the environment and compile what changed
	$(INSTALL)
	@touch $(STAMPS)/installed
