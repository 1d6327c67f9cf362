"""When and where searches may start device programs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import Mesh

from sr1_jax.sharding import make_mesh

T = TypeVar("T")
# Runs a function that starts device programs, when and where such may be started.
Dispatch = Callable[[Callable[[], T]], T]


def one_at_a_time() -> Dispatch:
    """In the thread that asks, when no other function runs."""
    lock = threading.Lock()

    def dispatch(function: Callable[[], T]) -> T:
        with lock:
            return function()

    return dispatch


def own_devices() -> Mesh:
    """All devices of this process."""
    return make_mesh(devices=jax.local_devices())
