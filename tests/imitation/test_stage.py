"""Traces are what rollouts would leave: the engine itself, fed the same words, says the same."""

import zlib

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.imitation.plans import LeftOut, Plan, Step
from sr1_jax.imitation.stage import segments_of
from sr1_jax.protocol import extract_answer, is_well_formed
from sr1_jax.protocol.automaton import build_automaton
from sr1_jax.rollout import Engine
from sr1_jax.rollout.programs import Decoded


class ScriptedSlots:
    """Stands for the device: each episode writes given tokens, a few a call, up to the first stop
    that the tag automaton finds."""

    def __init__(self, layout, automaton, scripts, steps=5):
        self._automaton, self._scripts, self._steps = automaton, scripts, steps
        self._rest = [None] * layout.slots
        self._state_S = np.zeros(layout.slots, np.int32)
        self._parts = layout.parts

    def restart(self, slot, stream, prompt, kept):
        self._rest[slot] = list(self._scripts[stream])
        self._state_S[slot] = 0

    def observe(self, slot, observation):
        self._state_S[slot] = 0
        return observation

    def fork(self, copies):
        assert not list(copies)

    def extend(self, ids_of):
        pass

    def decode(self, left_S, least_running):
        slots = len(left_S)
        tokens_SN = np.zeros((slots, self._steps), np.int32)
        count_S = np.zeros(slots, np.int32)
        for slot in np.flatnonzero(left_S):
            for _ in range(min(self._steps, left_S[slot])):
                token = self._rest[slot].pop(0)
                tokens_SN[slot, count_S[slot]] = token
                count_S[slot] += 1
                self._state_S[slot] = self._automaton.next_state[self._state_S[slot], token]
                if self._state_S[slot] >= self._automaton.first_final:
                    break
        logp_SN = np.zeros(tokens_SN.shape, np.float32)
        steps_P = np.full(self._parts, self._steps, np.int32)
        return Decoded(tokens_SN, logp_SN, count_S, self._state_S.copy(), steps_P)

    def read(self, decoded):
        return decoded


class ScriptedEngine(Engine):
    """An engine whose policy writes the segments of traces."""

    def script(self, traces, tokenizer, tags):
        automaton = build_automaton(tokenizer.token_bytes, tokenizer.eos_ids, tags.stop_tags)
        scripts = {}
        for trace in traces:
            ids = np.array(trace.trajectory.ids)[np.array(trace.trajectory.mask) == 1]
            stream = zlib.crc32(trace.question.id.encode()), 0
            scripts[stream] = ids.tolist()
        self._made = lambda: ScriptedSlots(self._layout, automaton, scripts)
        return self

    def _slots(self, params, seed, step):
        return self._made()


@pytest.mark.parametrize("passages", [1, 2])
def test_the_engine_leaves_the_same_ids(
    make_stage, qa_questions, qa_retriever, tiny_decoder, small_tokenizer, passages
):
    stage = make_stage(passages=passages)
    traces, _ = stage.write(qa_questions, chain=1.0, again=1.0)
    assert len(traces) >= 6
    config = stage.config.rollout.copy_and_resolve_references()
    config.update(dict(slots=3, share_prefixes=False))
    engine = ScriptedEngine(
        tiny_decoder, small_tokenizer, qa_retriever, config, environment=stage.environment
    ).script(traces, small_tokenizer, stage.environment.tags)
    ran = engine.run([trace.question for trace in traces])
    for trace, got in zip(traces, ran, strict=True):
        want = trace.trajectory
        assert got.ids.tolist() == want.ids.tolist()
        assert got.mask.tolist() == want.mask.tolist()
        assert (got.searches, got.answer, got.status) == (want.searches, want.answer, "answered")
        assert got.passages == want.passages
        assert got.reward == 1.0 and got.well_formed


def test_masks_cover_the_policy_and_nothing_else(qa_traces, small_tokenizer, make_stage):
    template = make_stage().environment.template
    for question, plan, t in qa_traces[0]:
        assert t.ids[: t.prompt_length].tolist() == template.render(
            small_tokenizer, question.question
        )
        edges = np.flatnonzero(np.diff(t.mask)) + 1
        runs = np.split(np.arange(len(t.ids)), edges)
        written = [small_tokenizer.decode(t.ids[run]) for run in runs if t.mask[run[0]]]
        assert written == segments_of(plan)
        seen = [small_tokenizer.decode(t.ids[run]) for run in runs if not t.mask[run[0]]][1:]
        assert len(seen) == len(plan.steps)
        for text in seen:
            assert text.startswith("\n<information>\n") and text.endswith("</information>\n")
        assert t.mask[-1] == 1 and is_well_formed(t.response_text)
        assert extract_answer(t.response_text) == plan.answer.strip()


def plan_of(query="salt", answer="two"):
    return Plan("one_search", (Step("I look.", query),), "So it is.", answer, True)


@pytest.mark.parametrize(
    ("changes", "plan", "reason"),
    [
        ({"max_segment_tokens": 5}, plan_of(), "longer than rollout.max_segment_tokens"),
        ({"max_context_tokens": 0}, plan_of(), "longer than rollout.max_context_tokens"),
        ({"max_context_tokens": 20}, plan_of(), "longer than rollout.max_context_tokens"),
        ({"max_context_tokens": 80}, plan_of(), "longer than rollout.max_context_tokens"),
        ({}, plan_of("a </search> b"), "not well-formed"),
        ({}, plan_of("a <think> b"), "not well-formed"),
        ({}, plan_of(answer="  "), "not well-formed"),
        ({}, plan_of(answer="three"), "not well-formed"),
    ],
)
def test_what_cannot_be_played_is_left_out(make_stage, changes, plan, reason):
    question = Question("q:1", "Over how many bridges was salt traded?", ("two",))
    whole = make_stage().stage.play(question, plan_of())
    if "max_context_tokens" in changes:
        # Too short for the prompt, for a segment, for an observation.
        changes = {"max_context_tokens": whole.prompt_length + changes["max_context_tokens"]}
        assert changes["max_context_tokens"] < len(whole.ids)
    assert make_stage(**changes).stage.play(question, plan) == LeftOut(reason)
    assert whole.answer == "two"
