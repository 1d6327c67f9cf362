"""Plays plans in an environment, with the episode that rollouts use: ids and mask are theirs."""

from __future__ import annotations

import functools

import ml_collections

from sr1_jax.data.questions import Question
from sr1_jax.environment import Environment, Trajectory
from sr1_jax.environment.episode import Episode, Next, Rules
from sr1_jax.imitation.plans import LeftOut, Plan
from sr1_jax.imitation.shown import Searches
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.automaton import TagAutomaton, build_automaton
from sr1_jax.protocol.tags import ANSWER, SEARCH, THINK, close_tag, open_tag
from sr1_jax.rewards import exact_match


def segments_of(plan: Plan) -> list[str]:
    """What the policy writes, turn by turn."""
    searches = [
        _block(THINK, step.thought) + "\n" + _block(SEARCH, step.query) for step in plan.steps
    ]
    return [*searches, _block(THINK, plan.thought) + "\n" + _block(ANSWER, plan.answer)]


def _block(tag: str, text: str) -> str:
    return f"{open_tag(tag)}{text}{close_tag(tag)}"


class Stage:
    """Where plans are played.

    Args:
        environment: with the search tool, and the prompt.
        rollout: settings of rollouts.
        tokenizer: of the policy.
        searches: what the search tool shows.
    """

    def __init__(
        self,
        environment: Environment,
        rollout: ml_collections.ConfigDict,
        tokenizer: Tokenizer,
        searches: Searches,
    ):
        self._environment, self._tokenizer, self._searches = environment, tokenizer, searches
        self._rules = Rules(
            tokenizer,
            rollout.max_searches,
            rollout.max_segment_tokens,
            rollout.max_context_tokens,
            environment.tags,
        )

    @functools.cached_property
    def _automaton(self) -> TagAutomaton:
        tokenizer, tags = self._tokenizer, self._environment.tags
        return build_automaton(tokenizer.token_bytes, tokenizer.eos_ids, tags.stop_tags)

    def play(self, question: Question, plan: Plan) -> Trajectory | LeftOut:
        """The trajectory of a policy that writes what is planned.

        Returns:
            The trajectory, with log-probabilities of 0; or why it cannot be: a budget of tokens is
            too small, or what was quoted breaks the format.
        """
        prompt = self._environment.template.render(self._tokenizer, question.question)
        if len(prompt) >= self._rules.max_context_tokens:
            return LeftOut("longer than rollout.max_context_tokens")
        episode = Episode(question, 0, prompt, self._rules)
        for segment in segments_of(plan):
            ids = self._tokenizer.encode(segment)
            if len(ids) > episode.tokens_left:
                which = "segment" if len(ids) > self._rules.max_segment_tokens else "context"
                return LeftOut(f"longer than rollout.max_{which}_tokens")
            # A tag in a query or a quote would stop the policy before its segment ends.
            if self._automaton.stop(self._automaton.run(ids[:-1])) is not None:
                return LeftOut("not well-formed")
            episode.add_sampled(ids, [0.0] * len(ids))
            follows = episode.advance(self._automaton.stop(self._automaton.run(ids)))
            if follows is Next.CALL:
                shown = self._searches[episode.request]
                follows = episode.answered(shown.observation, shown.ids)
            if follows is Next.NOTHING:
                break
        if episode.status == "truncated":
            return LeftOut("longer than rollout.max_context_tokens")
        trajectory = episode.trajectory() if follows is Next.NOTHING else None
        return self._checked(trajectory, plan)

    def _checked(self, trajectory: Trajectory | None, plan: Plan) -> Trajectory | LeftOut:
        """The trajectory, if it is what was planned."""
        if trajectory is None or not trajectory.well_formed:
            return LeftOut("not well-formed")
        if trajectory.searches != [" ".join(step.query.split()) for step in plan.steps]:
            return LeftOut("not well-formed")
        if not exact_match(trajectory.answer, trajectory.golden_answers):
            return LeftOut("not well-formed")
        return trajectory
