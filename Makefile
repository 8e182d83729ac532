# `make` sets up and trains routers on the embedded demo; `make test` sets up, checks and tests.
PYTHON ?= python3
BIN = .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

.PHONY: run check test real clean
run: .venv/ready
	$(BIN)/python train.py

check: .venv/ready
	$(BIN)/ruff check --no-cache

test: check
	$(BIN)/python tests/side_by_side.py

# a really pretrained model: fetched and converted; then the main job, on arithmetic made for it
real: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check gguf
	$(BIN)/python -m tools.real
	$(BIN)/python train.py --model runs/real/SmolLM2-135M --dtype bfloat16 --out runs/real/arithmetic

# PyTorch's CPU build where it can be had, else the one of the registry, with CUDA on Linux
.venv/ready: requirements.lock requirements-cuda.lock
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.lock || { \
		echo "no CPU build of PyTorch to be had; taking the registry's own"; \
		$(INSTALL) -r requirements-cuda.lock; }
	touch $@

clean:
	rm -rf .venv runs .pytest_cache .hypothesis .ruff_cache
