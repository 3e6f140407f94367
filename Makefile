# Two commands, each enough on a machine with Python (3.11 or newer) and make.
#   make quickstart   installs into .venv and trains a small network on embedded images
#   make test         installs into .venv and runs the tests
# The same, and the share of lines that the tests run (not counting processes that they start):
#   make coverage
# The documents as a site that opens from disk, in site/:
#   make docs
# And the whole report, rows, figures, landscapes and page, in OUT; OPTIONS changes every run:
#   make report [OUT=results] [SEEDS=0-2] [OPTIONS=--config.train.epochs=2] [WORKERS=auto]
# For an NVIDIA GPU, add GPU=cuda13 (or cuda12) to quickstart or report.
PYTHON ?= python3
GPU =
WORKERS =
BIN = .venv/bin
OUT = results
SEEDS = 0-2

.PHONY: quickstart test coverage report docs lint clean

ifneq ($(filter-out cuda12 cuda13,$(GPU)),)
$(error GPU is $(GPU); give cuda12 or cuda13)
endif
FOR_GPU = $(if $(GPU),.venv/installed-$(GPU))

quickstart: .venv/installed $(FOR_GPU)
	$(BIN)/python -m jaxcifar.main --config=configs/quickstart.py

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist=worksteal

coverage: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist=worksteal --cov

report: .venv/installed $(FOR_GPU)
	-$(BIN)/jaxcifar sweep --rows=1-12 --seeds=$(SEEDS) --out=$(OUT)/table3 $(if $(WORKERS),--workers=$(WORKERS)) $(OPTIONS)
	-$(BIN)/jaxcifar sweep --rows=vgg1-vgg8 --seeds=$(SEEDS) --out=$(OUT)/table4 $(if $(WORKERS),--workers=$(WORKERS)) $(OPTIONS)
	$(BIN)/jaxcifar report tables $(OUT)
	$(BIN)/jaxcifar report claims $(OUT)
	$(BIN)/jaxcifar report figures $(OUT)
	-$(BIN)/jaxcifar landscape smoothness --out=$(OUT)/landscape $(OPTIONS)
	-for row in vgg2 vgg6; do $(BIN)/jaxcifar landscape slice \
		$$(ls -d $(OUT)/table4/$$row/seed* | head -1) --out=$(OUT)/landscape; done
	$(BIN)/jaxcifar report $(OUT)

docs: .venv/installed-docs
	$(BIN)/python docs/build.py
	$(BIN)/mkdocs build --quiet --strict

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d; \
	jaxcifar needs 3.11 or newer: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }  # half of one would be taken for whole

# Again for the GPU that it is installed for, as JAX's plugin must be of JAX's own version.
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing jaxcifar and what it needs into .venv"
	@extra=$$($(BIN)/pip list 2>/dev/null | sed -n 's/^jax-\(cuda1[23]\)-plugin .*/[\1]/p' | head -1); \
	$(BIN)/pip install --quiet -c constraints.txt -e ".$$extra"
	touch $@

.venv/installed-%: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf .venv .venv-onnx .venv-tpu
