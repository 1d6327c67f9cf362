import collections
import time


def test_probe(small_tokenizer, tiny_decoder, fake_retriever, added_ids):
    from sr1_jax.rollout import Engine, default_config

    tk = small_tokenizer
    print(
        tk.vocab_size,
        [
            tk.token_bytes[i]
            for i in tk.encode("<search>mayor of P</search> <answer>Bob</answer></think>")
        ],
    )
    print([t for t in tk.token_bytes if len(t) > 1])
    c = default_config()
    c.slots = 16
    c.max_segment_tokens = 24
    c.max_observation_tokens = 40
    c.max_context_tokens = 160
    c.decode_steps = 8
    c.extend_buckets = (16, 64)
    c.template = "compact_search"
    c.max_searches = 3
    e = Engine(tiny_decoder, tk, fake_retriever(), c)
    t = time.time()
    qs = [
        {"id": f"q{i}", "question": f"Who is number {i}?", "golden_answers": ["Bob"]}
        for i in range(20)
    ]
    r = e.run(qs, samples=2)
    print(time.time() - t, dict(e.stats))
    t = time.time()
    e.run(qs, samples=2)
    print(time.time() - t, dict(e.stats))
    print(
        collections.Counter(x.status for x in r),
        collections.Counter(len(x.searches) for x in r),
        collections.Counter(x.segments for x in r),
        collections.Counter(x.reward for x in r),
    )
    for x in r[:12]:
        print(repr(x.response_text), x.status, x.searches, x.answer, x.logp[x.mask > 0].mean())
    assert 0
