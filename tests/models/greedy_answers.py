"""Greedy answers by the rollout engine's own programs, to hold other packages' to."""

from sr1_jax.environment import Environment
from sr1_jax.rollout import Engine, default_config


def greedy_answers(model, tokenizer, questions, *, template, slots, tokens, context, bucket):
    """Trajectories without searches, segments of at most so many tokens."""
    config = default_config()
    config.update(
        slots=slots, max_searches=0, max_segment_tokens=tokens, max_context_tokens=context,
        temperature=0.0, extend_buckets=(bucket,),
    )  # fmt: skip
    environment = Environment.of_search(None, config, template=template)
    engine = Engine(model, tokenizer, None, config, environment=environment)
    asked = [
        {"id": str(i), "question": question, "golden_answers": ["x"]}
        for i, question in enumerate(questions)
    ]
    return engine.run(asked)
