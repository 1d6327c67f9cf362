"""The rollout engine with a tiny policy: replayed by hand, and whatever may not change a thing."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sr1_jax.protocol.observations import render_observation
from sr1_jax.protocol.prompts import load_template
from sr1_jax.protocol.tags import correction
from sr1_jax.rewards import exact_match
from sr1_jax.rollout import programs
from sr1_jax.rollout.stats import as_metrics
from sr1_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def base_run(make_engine, questions):
    return make_engine().run(questions, seed=1, samples=3)


def runs_of_mask(trajectory):
    """[(mask value, ids)] after the prompt."""
    runs = []
    for token, mask in zip(trajectory.ids.tolist(), trajectory.mask.tolist()):
        if not runs or runs[-1][0] != mask:
            runs.append((mask, []))
        runs[-1][1].append(token)
    assert runs[0][0] == 0
    runs[0] = (0, runs[0][1][trajectory.prompt_length :])
    return runs if runs[0][1] else runs[1:]


def stop_of(ids, tokenizer):
    """What ends a segment, by naive search; nothing may have ended it before its last token."""
    for end in range(1, len(ids) + 1):
        text = b"".join(tokenizer.token_bytes[i] for i in ids[:end] if i < tokenizer.vocab_size)
        at = {tag: text.find(tag) for tag in (b"</search>", b"</answer>") if tag in text}
        found = "end" if ids[end - 1] in tokenizer.eos_ids else min(at, key=at.get, default=None)
        if found is not None:
            assert end == len(ids)
            return found
    return None


def replay(trajectory, question, tokenizer, config, passages_of):
    """Plays an episode again with the policy's own tokens; returns what must have come of it."""

    def inside(name, text):
        blocks = re.findall(rf"(?s)<{name}>((?:(?!<{name}>).)*?)</{name}>", text)
        return blocks[-1].strip() if blocks else None

    prompt = load_template("compact_search").render(tokenizer, question["question"])
    ids, mask, searches = list(prompt), [0] * len(prompt), []
    segments = [run for value, run in runs_of_mask(trajectory) if value]
    for number, segment in enumerate(segments):
        ids, mask = ids + segment, mask + [1] * len(segment)
        assert len(segment) <= config.max_segment_tokens and len(ids) <= config.max_context_tokens
        stop, text = stop_of(segment, tokenizer), tokenizer.decode(segment)
        observation = None
        if stop is None:
            full = len(segment) == config.max_segment_tokens
            assert full or len(ids) == config.max_context_tokens
            status = "truncated"
            if len(ids) < config.max_context_tokens and number < config.max_searches:
                observation = tokenizer.encode(correction())
        elif stop == b"</answer>" and inside("answer", text) is not None:
            status = "answered"
        elif number == config.max_searches:
            status = "no_answer"
        elif stop == b"</search>" and inside("search", text):
            lines = map(str.strip, inside("search", text).splitlines())
            searches.append(" ".join(filter(None, lines)))
            observation = render_observation(
                passages_of(searches[-1]), tokenizer, config.max_observation_tokens
            )
        else:
            observation = tokenizer.encode(correction())
        if observation is not None:
            status = "truncated"
            if len(ids) + len(observation) < config.max_context_tokens:
                ids, mask = ids + observation, mask + [0] * len(observation)
                continue
        assert number == len(segments) - 1
    answer = inside("answer", text) if status == "answered" else None
    return ids, mask, searches, status, answer


def test_every_episode_follows_the_protocol(
    base_run, questions, small_tokenizer, make_config, fake_retriever
):
    config, by_id = make_config(), {q["id"]: q for q in questions}
    retriever = fake_retriever()

    def passages_of(query):
        return retriever.search([query], config.passages)[0]

    for t in base_run:
        ids, mask, searches, status, answer = replay(
            t, by_id[t.question_id], small_tokenizer, config, passages_of
        )
        assert t.ids.tolist() == ids
        assert t.mask.tolist() == mask
        assert (t.searches, t.status, t.answer) == (searches, status, answer)
        assert t.passages == [passages_of(query) for query in searches]
        assert t.golden_answers == tuple(by_id[t.question_id]["golden_answers"])
        assert t.reward == exact_match(answer, t.golden_answers)
    # The tiny policy does it all, or this test shows nothing.
    assert {t.status for t in base_run} == {"answered", "truncated", "no_answer"}
    assert {len(t.searches) for t in base_run} == {0, 1, 2}
    assert {t.reward for t in base_run} == {0.0, 1.0}
    assert any("neither a search nor an answer" in t.response_text for t in base_run)
    assert any(small_tokenizer.eos_ids[0] in t.ids for t in base_run)
    # Ids that only the model knows come up, too.
    assert any(t.ids.max() >= small_tokenizer.vocab_size for t in base_run)


def test_arrays_and_texts_agree(base_run, small_tokenizer):
    for t in base_run:
        assert t.ids.shape == t.mask.shape == t.logp.shape
        assert t.ids.dtype == t.mask.dtype == np.int32 and t.logp.dtype == np.float32
        runs = runs_of_mask(t)
        policy = [small_tokenizer.decode(run) for value, run in runs if value]
        assert t.policy_text == "".join(policy)
        assert t.segments == len(policy)
        assert t.response_text == small_tokenizer.decode(t.ids[t.prompt_length :])
        assert (t.logp[t.mask == 1] < 0).all() and not t.logp[t.mask == 0].any()


def test_order_of_the_result(base_run, questions):
    want = [(q["id"], sample) for q in questions for sample in range(3)]
    assert [(t.question_id, t.sample) for t in base_run] == want


def test_running_again_gives_the_same(base_run, make_engine, questions, assert_same):
    engine = make_engine()
    first = engine.run(questions, seed=1, samples=3)
    assert_same(first, base_run, logp_atol=0)
    assert_same(engine.run(questions, seed=1, samples=3), base_run, logp_atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 2, "decode_steps": 3, "extend_buckets": (64,)},
        {"slots": 16, "decode_steps": 50, "extend_buckets": (16,)},
    ],
    ids=["2 slots", "16 slots"],
)
def test_slots_and_order_do_not_matter(base_run, make_engine, questions, assert_same, changes):
    shuffled = [questions[i] for i in np.random.default_rng(0).permutation(len(questions))]
    engine = make_engine(**changes)
    assert_same(engine.run(shuffled, seed=1, samples=3), base_run)
    # Nor does who else is there.
    alone = engine.run(questions[5:6], seed=1)
    assert_same(alone, [t for t in base_run if (t.question_id, t.sample) == ("q5", 0)])


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_few_rows_decode_what_all_would(
    base_run, make_engine, questions, assert_same, monkeypatch, mesh
):
    rows = []
    decode = programs.decode

    def spy(params, cache, rows_R, *arguments, **settings):
        rows.append(None if rows_R is None else len(rows_R))
        return decode(params, cache, rows_R, *arguments, **settings)

    monkeypatch.setattr(programs, "decode", spy)
    mesh = make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
    engine = make_engine(slots=16, decode_sizes=2, mesh=mesh)
    assert_same(engine.run(questions, seed=1, samples=3), base_run)
    assert set(rows) == {None, 4}


def test_number_of_devices_does_not_matter(base_run, make_engine, questions, assert_same):
    engine = make_engine(slots=8, mesh=make_mesh())
    assert jax.device_count() == 8
    assert_same(engine.run(questions, seed=1, samples=3), base_run)


def test_fewer_samples_are_a_part_of_more(base_run, make_engine, questions, assert_same):
    one = make_engine().run(questions, seed=1)
    assert_same(one, [t for t in base_run if t.sample == 0])


def test_a_question_that_comes_again_gets_further_samples(
    base_run, make_engine, questions, assert_same
):
    got = make_engine().run([questions[2], questions[0], questions[2], questions[2]], seed=1)
    assert [(t.question_id, t.sample) for t in got] == [("q2", 0), ("q0", 0), ("q2", 1), ("q2", 2)]
    wanted = [
        t for t in base_run if t.question_id == "q2" or (t.question_id, t.sample) == ("q0", 0)
    ]
    assert_same(got, wanted)


def test_seed_step_question_and_sample_each_matter(base_run, make_engine, questions):
    engine = make_engine()

    def texts(**arguments):
        return [t.policy_text for t in engine.run(questions, **arguments)]

    base = [t.policy_text for t in base_run if t.sample == 0]
    other_sample = [t.policy_text for t in base_run if t.sample == 1]
    different = [texts(seed=2), texts(seed=1, step=1), other_sample]
    for others in different:
        assert sum(a != b for a, b in zip(base, others)) > 8
    renamed = engine.run([q | {"id": "x" + q["id"]} for q in questions], seed=1)
    assert sum(a != b.policy_text for a, b in zip(base, renamed)) > 8


@functools.cache
def _forward(graph):
    return jax.jit(lambda params, ids_BT: nnx.merge(graph, params)(ids_BT))


def logits_of(model, trajectories):
    """Logits of every position by one plain forward pass, float64."""
    longest = max(len(t.ids) for t in trajectories)
    ids_BT = np.zeros((len(trajectories), longest), np.int32)
    for row, t in enumerate(trajectories):
        ids_BT[row, : len(t.ids)] = t.ids
    graph, params = nnx.split(model)
    return np.asarray(_forward(graph)(params, jnp.asarray(ids_BT)), np.float64)


def behaviour(logits_V, temperature, top_k, top_p):
    """Log-probabilities sampled from, and the least distance of a logit from being in or out."""
    logits_V = logits_V / (temperature or 1.0)
    order = np.argsort(-logits_V)
    keep = order[: top_k or None]
    probability = np.exp(logits_V[keep] - logits_V[order[0]])
    before = np.cumsum(probability) / probability.sum() - probability / probability.sum()
    size = int((before < top_p).sum())
    logp_V = np.full(len(logits_V), -np.inf)
    chosen = logits_V[keep[:size]]
    logp_V[keep[:size]] = chosen - chosen[0] - np.log(np.exp(chosen - chosen[0]).sum())
    margin = np.abs(before - top_p).min() if top_p < 1 else 1.0
    if top_k:
        margin = min(margin, logits_V[order[top_k - 1]] - logits_V[order[top_k]])
    return logp_V, margin


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 12, 0.9), (0.0, 0, 1.0)],
    ids=["plain", "truncated", "greedy"],
)
def test_stored_logp_equals_a_fresh_forward_pass(
    make_engine, tiny_decoder, questions, temperature, top_k, top_p
):
    engine = make_engine(temperature=temperature, top_k=top_k, top_p=top_p)
    run = engine.run(questions, seed=1, samples=2)
    checked = left_out = 0
    for t, logits_TV in zip(run, logits_of(tiny_decoder, run)):
        for at in np.flatnonzero(t.mask):
            logp_V, margin = behaviour(logits_TV[at - 1], temperature, top_k, top_p)
            if temperature == 0:
                assert logits_TV[at - 1].max() - logits_TV[at - 1][t.ids[at]] < 1e-4
            if margin < 1e-4:  # rounding decides who is in: no telling from outside
                left_out += 1
                continue
            assert t.logp[at] == pytest.approx(logp_V[t.ids[at]], abs=1e-4)
            checked += 1
    assert checked > 300 and left_out < checked / 50


def test_greedy_does_not_depend_on_seed_or_sample(make_engine, questions):
    first, second = (
        make_engine(temperature=0.0).run(questions[:3], seed=seed, samples=2) for seed in (1, 2)
    )
    texts = [t.policy_text for t in first]
    assert texts == [t.policy_text for t in second]
    assert texts[::2] == texts[1::2]


def test_nothing_compiles_after_the_first_run(make_engine, questions, tiny_decoder, caplog):
    engine = make_engine()
    assert engine.warm_up() > 3
    other = [{"id": "n", "question": "Bob of " * 20, "golden_answers": ["x"]}] + [
        {"id": str(i), "question": "P" * (i + 1), "golden_answers": ["x"]} for i in range(9)
    ]
    params = nnx.state(tiny_decoder)
    engine.run(questions[:1])  # what is not the engine's: the seed's key
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        engine.run(other, seed=5, step=3, params=params)
        assert engine.stats["compilations"] == 0
        assert not [r for r in caplog.records if "ompil" in r.getMessage()]
        jax.jit(lambda x: x * 17 + 4)(3.0)  # would be seen
    assert [r for r in caplog.records if "ompil" in r.getMessage()]


def test_parameters_can_be_replaced(base_run, make_engine, questions, tiny_decoder, assert_same):
    engine = make_engine()
    halved = jax.tree.map(lambda x: x / 2, nnx.state(tiny_decoder))
    other = engine.run(questions, seed=1, params=halved)
    assert [t.policy_text for t in other] != [t.policy_text for t in base_run if t.sample == 0]
    # For that call only.
    assert_same(engine.run(questions, seed=1, samples=3), base_run, logp_atol=0)


def test_a_tag_may_hold_ids_without_text(make_engine, questions, tiny_decoder, small_tokenizer):
    """Greedily `<answer>Bob</▯answer>`, ▯ being an id that only the model knows."""
    ids = {text: small_tokenizer.encode(text)[-1] for text in ("\n", "<", "answer", ">", "Bob")}
    ids |= {"</": small_tokenizer.encode("Bob</")[-1], "▯": tiny_decoder.config.vocab_size - 1}
    follower = {"\n": "<", "<": "answer", "answer": ">", ">": "Bob", "Bob": "</", "</": "▯"}
    model = nnx.clone(tiny_decoder)
    embedding_VD = np.zeros(model.trunk.embed.embedding.shape, np.float32)
    head_DV = np.zeros(model.head.kernel.shape, np.float32)
    for row, (token, after) in enumerate((follower | {"▯": "answer"}).items()):
        embedding_VD[ids[token], row] = head_DV[row, ids[after]] = 1.0
    model.trunk.embed.embedding[...] = jnp.asarray(embedding_VD)
    model.head.kernel[...] = jnp.asarray(head_DV)
    for branch in (model.trunk.layers.attention.o, model.trunk.layers.ff.down):
        branch.kernel[...] = jnp.zeros(branch.kernel.shape)

    (t,) = make_engine(temperature=0.0).run(questions[:1], params=nnx.state(model))
    assert t.policy_text == "<answer>Bob</answer>"
    assert (t.status, t.answer, t.reward) == ("answered", "Bob", 1.0)
    assert t.ids[t.mask == 1].tolist().count(ids["▯"]) == 1


def test_memory_does_not_grow_with_turns(make_engine, questions, fake_retriever):
    class Watching(fake_retriever):
        """Weighs everything on the devices whenever it is asked."""

        weights = ()

        def search(self, queries, k):
            self.weights += (sum(x.nbytes for x in jax.live_arrays()),)
            return super().search(queries, k)

    peaks, turns = [], []
    for searches in (1, 5):
        retriever = Watching()
        engine = make_engine(retriever, max_searches=searches, max_observation_tokens=30)
        run = engine.run(questions, seed=1, samples=3)
        turns.append(max(t.segments for t in run))
        peaks.append(max(retriever.weights))
        cache = 2 * 2 * 5 * 224 * 2 * 8 * 4  # keys and values, layers, slots, positions, …
        assert engine.cache_bytes == cache < peaks[-1]
    assert turns[0] == 2 < turns[1] - 1
    assert peaks[1] == pytest.approx(peaks[0], rel=0.02)


def test_stats_count_what_was_done(make_engine, questions):
    engine = make_engine()
    run = engine.run(questions, seed=1, samples=3)
    stats = engine.stats
    assert stats["episodes"] == len(run) == 36
    assert stats["decoded_tokens"] == sum(t.mask.sum() for t in run)
    assert stats["search_calls"] == sum(len(t.searches) for t in run)
    assert "search_failures" not in stats
    # Every token passes the model once but the last of each episode: the cache outlives turns.
    assert stats["prefilled_tokens"] < sum((t.mask == 0).sum() + t.segments for t in run)
    metrics = as_metrics(stats)
    assert metrics["rollout/trajectories_per_second"] == pytest.approx(36 / stats["seconds"])
    assert metrics["rollout/search_calls"] == stats["search_calls"]
