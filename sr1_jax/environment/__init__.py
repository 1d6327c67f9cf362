"""What a policy acts on: episodes, trajectories, tools and the pool that calls them."""

from sr1_jax.environment.environment import Environment, make_environment
from sr1_jax.environment.search_tool import SearchRecord, SearchTool
from sr1_jax.environment.tool import Observation, Tool
from sr1_jax.environment.trajectory import Call, Trajectory
from sr1_jax.retrieval.base import EndsRunError

__all__ = [
    "Call",
    "EndsRunError",
    "Environment",
    "Observation",
    "SearchRecord",
    "SearchTool",
    "Tool",
    "Trajectory",
    "make_environment",
]
