# The README's two commands are `make demo` and `make test`. Each creates .venv if it is missing.
PYTHON ?= python3
VENV   ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
RUN := PATH="$(abspath $(BIN)):$$PATH"
NBS := $(wildcard nbs/*.ipynb nbs/tutorials/*.ipynb)
# Tutorials that take a minute or more run with the slow tests
LONG := ^[_.]|^(your_videos|honest_scores|image_to_video|speed_memory|ship_it|cookbook|image_sequences|timesformer|timelines)
# The inner loop: notebooks and tests of a few seconds each
QUICK_NBS := ^(00|1[0-2]|30|34|40|41|42)_
QUICK_TESTS := tests/test_house.py tests/test_samplers.py tests/test_seeds.py tests/test_tutorials.py
# One thread per process, one process per core
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile
METADATA := settings.ini setup.py pyproject.toml

.PHONY: demo quick test slow bench bench-gpu docs prep save dist hooks clean

demo: $(VENV)/installed ## generate videos, compare models on them, write vidseq-demo/index.html
	$(BIN)/vidseq demo

quick: $(VENV)/installed-dev ## the inner loop, about a minute: lint, and the fast notebooks and tests
	$(BIN)/ruff check .
	$(RUN) OMP_NUM_THREADS=1 nbdev-test --n-workers 2 --file-re '$(QUICK_NBS)'
	$(PYTEST) -m "not slow" $(QUICK_TESTS)

test: $(VENV)/installed-dev ## everything that must pass: lint, every notebook, tests/
	$(BIN)/ruff check .
	$(RUN) OMP_NUM_THREADS=1 nbdev-test --n-workers 2 --timing --skip-file-re '$(LONG)'
	$(PYTEST) -m "not slow"

slow: $(VENV)/installed-docs ## the tests that take minutes
	$(RUN) nbdev-test --n-workers 1 --flags slow --timing
	$(BIN)/python -m pytest -q -m slow

docs: $(VENV)/installed-docs ## the documentation site, _docs/index.html: runs every notebook; SAVED=1 shows the saved outputs
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python docs/build.py $(if $(SAVED),--saved)

bench: $(VENV)/installed-dev ## run benchmarks/ and write its tables: make bench DIR=videos BASELINE=tutorials.py
	$(BIN)/python benchmarks/imports.py --save
	$(BIN)/python benchmarks/seek.py --save
	$(BIN)/python benchmarks/extract.py $(DIR) $(if $(BASELINE),--baseline $(BASELINE)) --save
	$(BIN)/python benchmarks/load.py $(DIR) $(if $(BASELINE),--baseline $(BASELINE)) --save
	$(BIN)/python benchmarks/models.py $(if $(BASELINE),--baseline $(BASELINE)) --save
	$(BIN)/python benchmarks/timesformer.py --save
	$(if $(DIR),$(BIN)/python benchmarks/accuracy.py $(DIR) $(if $(BASELINE),--baseline $(BASELINE)) --save)

bench-gpu: $(VENV)/installed-dev ## check and time everything on one GPU, in 8 minutes: make bench-gpu BASELINE=tutorials.py
	$(BIN)/python benchmarks/gpu.py $(if $(BASELINE),--baseline $(BASELINE)) --save

prep: $(VENV)/installed-dev ## prepare a commit: modules from notebooks, clean notebooks, README
	$(RUN) nbdev-export
	$(RUN) nbdev-clean
	$(BIN)/python tests/make_readme.py
	$(BIN)/ruff check .

save: $(VENV)/installed-dev ## run the notebooks in a fresh kernel and save their outputs
	PYTHONWARNINGS=ignore $(RUN) jupyter nbconvert --to notebook --execute --inplace --log-level ERROR $(NBS)
	$(RUN) nbdev-clean

dist: $(VENV)/installed-dev ## wheel and sdist
	$(BIN)/python -m build

hooks: $(VENV)/installed-dev ## nbdev's git hooks: clean diffs and merges of notebooks
	$(RUN) nbdev-install-hooks

clean:
	rm -rf build dist *.egg-info _docs _proc vidseq-demo

$(VENV)/python-made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Each stamp records an installation; newer metadata repeats it.
$(VENV)/installed: $(VENV)/python-made $(METADATA)
	@echo "Installing vidseq into $(VENV): PyTorch is large, the first time takes minutes ..."
	$(BIN)/python -m pip install -q -e '.[offline]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/python-made $(METADATA)
	@echo "Installing vidseq and its development tools into $(VENV): PyTorch is large, the first time takes minutes ..."
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(BIN)/python -m pip install -q -e '.[docs]'
	@touch $@
