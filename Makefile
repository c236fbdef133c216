# make quickstart, make test: each sets up .venv first, when pyproject.toml or constraints.txt is newer than it.
PYTHON ?= python3
STAMP := .venv/.installed

.PHONY: .venv quickstart test test-peers test-export test-recipes peers lint clean

.venv: $(STAMP)

# torch goes first and pinned, so that nothing else chooses a release of it
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "cuvee: $(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.11 or newer is needed;" \
			"install it, then: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "setting up .venv: some minutes the first time"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

quickstart: .venv
	.venv/bin/cuvee run configs/quickstart.yaml

# tensors in tests are small: a second thread costs more than it gives
test test-peers test-export: export OMP_NUM_THREADS ?= 1
test test-peers test-export: export TOKENIZERS_PARALLELISM = false
test test-peers test-export: export HF_HUB_OFFLINE = 1

test: .venv
	.venv/bin/python -m pytest

# an environment of its own, with our torch and what the first file that it is made from lists
define environment
	@echo "setting up $(@D): some minutes the first time"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
endef

# lm-eval and minicons, whose requirements contradict ours and each other's
PEERS := .venv-peers/lm-eval/.installed .venv-peers/minicons/.installed

peers: $(PEERS)

$(PEERS): .venv-peers/%/.installed: tests/peers/%.txt constraints.txt
	$(environment)

# their scores and verdicts are ours, on every pair
test-peers: .venv peers
	.venv/bin/python -m pytest tests/peers/with_lm_eval.py tests/peers/with_minicons.py

# torch and transformers alone, of the version that the challenge pins and of ours
EXPORTS := .venv-export/transformers-4.51.3/.installed .venv-export/transformers-current/.installed

$(EXPORTS): .venv-export/%/.installed: tests/export/%.txt constraints.txt
	$(environment)

# folders of every architecture answer in both as they do here
test-export: .venv $(EXPORTS)
	.venv/bin/python -m pytest tests/export/with_transformers.py

# the tiny twin of every published recipe; `make test` has one of each architecture
test-recipes: .venv
	.venv/bin/python -m pytest tests/recipes/all_twins.py

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

# the environment and what tools leave behind; runs are yours
clean:
	rm -rf .venv .venv-peers .venv-export build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
