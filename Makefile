# Everything happens inside the project's own virtual environment, .venv.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: rehearse setup repro test coverage test-fast lint format show compare drill repeat

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement requirements.txt --requirement requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

repro: $(READY)
	dvc repro

# Three at a time on two cores, because tests that start processes wait for much of their time
test: $(READY)
	pytest -n 3 --dist loadfile --no-loadscope-reorder

# The same, and which lines they never reach; takes longer
coverage: $(READY)
	pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

# Without the tests that train, start processes or encode many videos: less than a minute
test-fast: $(READY)
	pytest -n 2 --dist loadfile -m "not slow"

show: $(READY)
	@python -m structalign show

# make compare DATA=msrvtt K=20 STUDY=methods JOBS=2
STUDY ?= methods
JOBS ?= 1
compare: $(READY)
	python -m structalign compare --study $(STUDY) $(if $(DATA),--data $(DATA)) --jobs $(JOBS) $(if $(K),--K $(K))

# Break a small chain in 33 ways and see it recover; no drill starts after 20 minutes
drill: $(READY)
	nice python -m tests.faults.drill --output docs/drill.md

# The same chain three times by force: the same bytes?
repeat: $(READY)
	nice python -m tests.faults.repeat --output docs/repeat.md

# The real benchmarks at full size against a server on this machine; needs the published files in ../shared/ctvr
rehearse: $(READY)
	nice python -m benchmarks.rehearsal msrvtt --folder .cache/rehearsal --output docs/rehearsal.md

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

format: $(READY)
	ruff check --fix .
	ruff format .
