# Runs in the virtual environment that is active; `make check` builds one of its own.
.PHONY: help check test lint demo

help:  ## Say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 8

check:  ## Everything that a change must pass, in a clean virtual environment
	.ci/run

test:  ## The tests
	pytest

lint:  ## Lint, format and types, mended where that is safe
	ruff check --fix .
	ruff format .
	mypy

demo:  ## Train the digits suite (minutes on two cores) and say where its report is
	kdbench run suites/digits.toml
