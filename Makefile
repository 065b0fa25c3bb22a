# `make` lists the targets. All of them work in the active environment; `make setup` fills it.
.DEFAULT_GOAL := help
.PHONY: help setup format check test smoke ci

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-8s %s\n", $$1, $$2}'

setup:  ## install the package in place with what developers need
	pip install -e ".[dev]"

format:  ## rewrite the code in the project's format
	ruff check --fix .
	ruff format .

check:  ## lint, format, floors between the rooms, recipes (a few seconds)
	ruff check .
	ruff format --check .
	pytest -q tests/test_floors.py tests/test_recipes.py

test:  ## the whole test suite
	pytest

smoke:  ## train the smallest recipe from end to end
	mmpredict fit --config recipes/smoke.yaml

ci:  ## what the integration run does, in a fresh environment
	bash .ci/run
