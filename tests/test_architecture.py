"""Imports point one way: every room knows those below it and none above (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

import sr1_jax

PACKAGE = Path(sr1_jax.__file__).parent
# From the ground up; rooms of one floor do not know each other.
FLOORS = (
    ("exit_codes",),
    ("storage",),
    tuple(
        "abstract chips hosts http_exchange import_path paths settings sharding terminal".split()
    ),
    ("cluster", "agreement", "config_files", "lock", "remembered"),
    ("cli", "programs", "workdirs"),
    ("data", "models"),
    ("retrieval", "rewards"),
    ("protocol",),
    ("environment",),
    ("rollout",),
    ("rl", "evaluation"),
    ("imitation", "reranking", "training"),
    ("asking", "corpus_program", "experiments", "planning", "world"),
    tuple(
        "__main__ ask compare complete_corpus evaluate export index logged plan serve sweep table "
        "traces train train_reranker withhold".split()
    ),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """Rooms of the package that a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        parts = (name.split(".") for name in names)
        found |= {part[1] for part in parts if part[0] == "sr1_jax" and len(part) > 1}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor yet"
    for other in imported_rooms(path.read_text(encoding="utf-8")) - {room}:
        assert FLOOR_OF[other] < FLOOR_OF[room], f"{room} must not import {other}"


def test_the_check_can_fail():
    assert imported_rooms("from sr1_jax.training.loop import x\nimport sr1_jax.rl.losses") == {
        "training",
        "rl",
    }
    assert imported_rooms("from sr1_jax import cluster") == {"cluster"}
    assert FLOOR_OF["rl"] > FLOOR_OF["rollout"] > FLOOR_OF["environment"]
