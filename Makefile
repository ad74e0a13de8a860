# Runs in the virtual environment that is active; `make check` builds a separate one.
.PHONY: help check test lint demo

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 8

check:  ## All checks required for a change, in a clean virtual environment
	.ci/run

test:  ## The tests
	pytest

lint:  ## Lint, format and check types, with safe fixes
	ruff check --fix .
	ruff format .
	mypy

demo:  ## Train the digits suite (minutes on two cores) and print the path of its report
	kdbench run suites/digits.toml
