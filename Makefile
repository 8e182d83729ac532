# `make` sets up and trains routers on the embedded demo; `make test` sets up and runs all tests.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: run test clean
run: .venv/ready
	$(BIN)/python train.py

test: .venv/ready
	$(BIN)/python -m pytest -q tests

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf .venv runs .pytest_cache .hypothesis
