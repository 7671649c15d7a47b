# Everything the project does, from a fresh machine on. `make help` lists it.
#
#   PYTHON=python3      the interpreter that the virtual environment is made from
#   VENV=.venv          where that environment lives; VENV= uses PYTHON itself as it is, and
#                       installs nothing but this package
#   TORCH="torch ..."   what to install when there is no PyTorch yet
#   DATA=folder         CIFAR-10, for `make demo`
#   GPU_RUNS=runs/gpu   where `make gpu` writes its results
#   PYTEST="-k name"    more arguments for pytest
#   FORCE_CUDA=1        compile the CUDA kernels although this machine has no GPU
#   CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS: see setup.py

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
DATA ?=
PYTEST ?=

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
STAMPS := $(if $(VENV),$(VENV),build)/.stamps
export PATH := $(if $(VENV),$(abspath $(VENV)/bin):)$(PATH)

# The folder of object files, which pip's build, the C++ tests and the next build share.
BUILD := build/$(if $(VENV),$(patsubst .%,%,$(notdir $(abspath $(VENV)))),system)
export SKETCHLAYERS_BUILD_DIR := $(abspath $(BUILD))

LIBRARY := python/sketchlayers/libsketchlayers.so
SOURCES := setup.py pyproject.toml CMakeLists.txt python/sketchlayers/_extension/toolkit.py \
	python/sketchlayers/_version.py $(shell find csrc cmake -type f 2>/dev/null)
CPP_FILES = $(shell find csrc tests/cpp examples -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.inl')

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Runs a command and says every ten seconds that it still runs: $(call alive,what it does,command).
define alive
	@echo "$(1) ..."; \
	(seconds=0; while sleep 10 > /dev/null 2>&1 && kill -0 $$$$ 2> /dev/null; do \
		seconds=$$((seconds + 10)); echo "  $(1): $$seconds s"; done) & \
	beat=$$!; trap 'kill $$beat 2> /dev/null' EXIT; $(2)
endef

# ----------------------------------------------------------------------- environment and build

# PyTorch comes first and is then held: an extra package must never replace it. BOUNDS=lowest takes
# the oldest of all others that pyproject.toml allows.
define REQUIREMENTS
import os, sys, tomllib, torch
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
needed = list(project["tool"]["sketchlayers"]["dependencies"])
for extra in sys.argv[1:]:
    needed += project["project"]["optional-dependencies"][extra]
if os.environ.get("BOUNDS") == "lowest":
    needed = [one.replace(">=", "==") + ".*" if ">=" in one else one for one in needed]
print("torch==" + torch.__version__.split("+")[0], *needed, sep="\n")
endef
export REQUIREMENTS

# The toolkit to get from the package index: none when PyTorch has no CUDA or nvcc is there.
define TOOLKIT
import os, sys, torch
sys.path.insert(0, "python/sketchlayers/_extension")
import toolkit
environment = {**os.environ, "FORCE_CUDA": "", "TORCH_CUDA_ARCH_LIST": ""}
choice = torch.version.cuda and toolkit.choose(torch.version.cuda, environment, gpus=[(9, 0)])
if choice and choice.toolkit is None:
    print(toolkit.toolkit_requirement(torch.version.cuda))
endef
export TOOLKIT

$(STAMPS)/environment: pyproject.toml
	@mkdir -p $(@D)
ifneq ($(VENV),)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"sketchlayers needs Python 3.11 or newer: make PYTHON=/path/to/it ...")'
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); exit 1; } # or the next attempt would take half of one for a whole
	$(call alive,installing PyTorch,$(PY) -m pip install $(TORCH))
	@$(PY) -c "$$REQUIREMENTS" dev experiments > $(STAMPS)/requirements.txt
	$(call alive,installing the other packages,$(PY) -m pip install -r $(STAMPS)/requirements.txt)
endif
	@touch $@

# First by itself, so that the compiler's progress is seen; pip hides it and finds all done.
define install
	$(call alive,compiling,$(PY) setup.py --quiet build_ext --inplace)
	$(call alive,installing sketchlayers,$(PY) -m pip install --quiet --no-build-isolation --no-deps \
		--editable .)
endef

# What was asked of the build; the file is touched only when the answer changes.
CONFIGURATION = $(FORCE_CUDA) $(CUDA_HOME) $(CUDA_PATH) $(TORCH_CUDA_ARCH_LIST) $(if $(filter environment,$(origin CXX)),$(CXX)) \
	$(CMAKE_ARGS) $(SKETCHLAYERS_NO_EXTENSION)
.PHONY: always
$(STAMPS)/configuration: always
	@mkdir -p $(@D)
	@echo '$(CONFIGURATION)' | cmp -s - $@ || echo '$(CONFIGURATION)' > $@

# A library newer than the stamp was built by another environment, or by hand.
$(STAMPS)/installed: $(STAMPS)/environment $(STAMPS)/configuration $(SOURCES) $(LIBRARY)
	$(install)
	@touch $@

$(LIBRARY): ;

.PHONY: build toolkit
build: $(STAMPS)/environment ## set up the environment and compile what changed
	$(install)
	@touch $(STAMPS)/installed

toolkit: $(STAMPS)/environment ## get nvcc from the package index, if PyTorch needs one and there is none
	@requirement="$$($(PY) -c "$$TOOLKIT")" && if [ -n "$$requirement" ]; then \
		$(PY) -m pip install "$$requirement" && rm -f $(STAMPS)/installed; fi

# -------------------------------------------------------------------------------- main commands

.PHONY: demo test test-all docs gpu
demo: $(STAMPS)/installed ## train a network on real images, compress it, print a table, draw a plot
	$(PY) experiments/demo.py $(if $(DATA),--data $(DATA))

IN_PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

test: lint cpp-test $(STAMPS)/installed ## checks and tests, but those that are marked slow
	$(PY) -m pytest $(IN_PARALLEL) --durations 15 -m "not slow" $(PYTEST)

test-all: lint cpp-test $(STAMPS)/installed ## all checks and tests
	$(PY) -m pytest $(IN_PARALLEL) --durations 15 $(PYTEST)

$(STAMPS)/documentation: $(STAMPS)/environment
ifneq ($(VENV),)
	@$(PY) -c "$$REQUIREMENTS" docs > $(STAMPS)/requirements-docs.txt
	$(call alive,installing Sphinx,$(PY) -m pip install --quiet -r $(STAMPS)/requirements-docs.txt)
endif
	@touch $@

docs: $(STAMPS)/installed $(STAMPS)/documentation ## the documentation site, in build/docs
	rm -rf docs/api/generated # or pages of names that are gone would stay
	$(PY) -m sphinx -b html --fail-on-warning --keep-going --quiet docs build/docs
	@echo "Open build/docs/index.html"

gpu: toolkit ## on a machine with a GPU: builds for it, checks and times the kernels, in nine minutes
	PYTHON=$(PY) tests/gpu/run.sh

# ------------------------------------------------------------------------------- parts of `test`

.PHONY: lint format cpp-test
lint: $(STAMPS)/environment ## style, formatting, arrows between packages, and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@PYTHONPATH=python lint-imports --no-logo --no-cache
	@clang-format --dry-run --Werror $(CPP_FILES)
	$(call alive,checking types,$(PY) -m mypy)

format: $(STAMPS)/environment ## put the sources in shape
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	clang-format -i $(CPP_FILES)

# GoogleTest: the system's if it is there, else from the package index.
$(STAMPS)/googletest: $(STAMPS)/environment
	test -e /usr/include/gtest/gtest.h || $(PY) -m pip install --quiet ros-gtest-vendor || \
		echo "The C++ tests will be skipped."
	@touch $@

cpp-test: $(STAMPS)/installed $(STAMPS)/googletest ## the C++ tests, of the library that Python uses
	cmake -S . -B $(BUILD) -DSKETCHLAYERS_TESTS=ON
	$(call alive,compiling the C++ tests,cmake --build $(BUILD))
	$(call alive,testing the C++ library,ctest --test-dir $(BUILD) --parallel 2 --output-on-failure)

# -------------------------------------------------------------------- sanitizers, oldest PyTorch

# The sanitizers' libraries come with gcc. PyTorch's own leaks, and its refusals of absurd sizes,
# are not looked at. Python loads what CMake has built, for CPUs alone, in place of its own.
SANITIZE := build/sanitize
SANITIZE_CMAKE = -G Ninja -DPython_EXECUTABLE=$$(command -v $(PY)) -DSKETCHLAYERS_TESTS=ON
ADDRESS_ENV = PYTHONPATH=$(abspath $(SANITIZE)/python) OMP_NUM_THREADS=2 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:handle_segv=0:max_allocation_size_mb=1024:allocator_may_return_null=1 \
	UBSAN_OPTIONS=print_stacktrace=1
FUZZ_SECONDS ?= 120
# Other cases every day.
FUZZ_SEED ?= $(shell date +%Y%m%d)

.PHONY: sanitize sanitize-address sanitize-thread oldest
sanitize: sanitize-address sanitize-thread ## C++ tests, kernel tests and fuzzing under sanitizers

sanitize-address: $(STAMPS)/installed $(STAMPS)/googletest
	cmake -S . -B $(SANITIZE)/address $(SANITIZE_CMAKE) -DSKETCHLAYERS_PYTHON=ON \
		"-DSKETCHLAYERS_SANITIZE=address;undefined"
	ASAN_OPTIONS=detect_leaks=0 cmake --build $(SANITIZE)/address
	ASAN_OPTIONS=detect_leaks=0 ctest --test-dir $(SANITIZE)/address --parallel 2 --output-on-failure -E "^(install|examples|other_pytorch)$$"
	rm -rf $(SANITIZE)/python && mkdir -p $(SANITIZE)/python && cp -r python/sketchlayers $(SANITIZE)/python
	cmake --install $(SANITIZE)/address --component python --prefix $(SANITIZE)/python/sketchlayers
	$(ADDRESS_ENV) $(PY) tests/ops/fuzz.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)
	$(ADDRESS_ENV) $(PY) tests/checkpoint/fuzz.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)
	$(ADDRESS_ENV) $(PY) -m pytest $(IN_PARALLEL) tests/ops/test_cpu_kernels.py \
		tests/ops/test_tucker_conv2d.py tests/ops/test_panels.py

# Threads of OpenMP, whose runtime the sanitizer does not know, are left out: one for each caller.
sanitize-thread: $(STAMPS)/environment $(STAMPS)/googletest
	cmake -S . -B $(SANITIZE)/thread $(SANITIZE_CMAKE) -DSKETCHLAYERS_SANITIZE=thread
	cmake --build $(SANITIZE)/thread --target threads_test
	OMP_NUM_THREADS=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1:suppressions=tests/cpp/thread_sanitizer.supp \
		$(SANITIZE)/thread/tests/cpp/threads_test

# The bounds that _version.py and pyproject.toml state, in an environment of its own.
OLDEST := torch==2.11.0 torchvision==0.26.0
oldest: ## builds with the oldest PyTorch and packages and runs the tests of what users build on
	BOUNDS=lowest $(MAKE) VENV=.venv-oldest TORCH="$(OLDEST)" build
	.venv-oldest/bin/python -m pytest $(IN_PARALLEL) tests/ops tests/nn tests/checkpoint tests/export \
		tests/processes tests/surgery tests/compression/test_forward_calls.py -m "not slow" $(PYTEST)

# ------------------------------------------------------------------------------------------ rest

.PHONY: dist dist-test clean
dist: export TORCH_CUDA_ARCH_LIST ?= all
dist: SKETCHLAYERS_BUILD_DIR = # the sources lie in a folder of pip's
dist: $(STAMPS)/environment ## the sources, and of them a wheel for this PyTorch and one without C++, in dist/
	rm -rf dist
	$(PY) -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' > /dev/null
	$(call alive,building the wheel,$(WHEEL))
	$(call alive,building the wheel without the compiled extension,SKETCHLAYERS_NO_EXTENSION=1 $(WHEEL))

WHEEL = $(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist dist/*.tar.gz

DIST_TEST := build/dist-test

dist-test: dist ## those wheels at work in an environment with nothing but what they ask for
	rm -rf $(DIST_TEST)
	$(PY) -m venv $(DIST_TEST)
	$(call alive,installing the wheel,$(DIST_TEST)/bin/pip install --quiet dist/*-linux_*.whl)
	cd $(DIST_TEST) && bin/sketchlayers doctor && bin/python -W error $(CURDIR)/tests/build/installed.py
	$(DIST_TEST)/bin/pip install --quiet --force-reinstall --no-deps dist/*-none-any.whl
	cd $(DIST_TEST) && bin/sketchlayers doctor && \
		bin/python -W error $(CURDIR)/tests/build/installed.py --without-extension
	rm -rf $(DIST_TEST) # several gigabytes of PyTorch

clean: ## delete what was built; the environment stays
	rm -rf build dist python/sketchlayers/*.so python/*.egg-info $(STAMPS)/installed
	rm -rf docs/api/generated docs/gallery
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
