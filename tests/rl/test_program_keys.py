"""Keys of the learner's programs: their names, and that equal keys are one."""

import pytest

from sr1_jax.rl import program_keys as keys


@pytest.mark.parametrize(
    "key, name",
    [
        (keys.Score(2048, 512), "score 2048/512"),
        (keys.Prepare(), "prepare"),
        (keys.Kept(), "kept"),
        (keys.Totals(), "totals"),
        (keys.Zeros("policy"), "policy zeros"),
        (keys.Accumulate("critic", 2048, 512), "critic accumulate 2048/512"),
        (keys.Apply("policy"), "policy apply"),
        (keys.Merge(), "merge"),
    ],
)
def test_a_key_reads_as_its_name(key, name):
    assert str(key) == name


def test_keys_are_told_apart_by_their_fields():
    found = {keys.Score(64, 16), keys.Score(64, 16), keys.Score(64, 32), keys.Prepare()}
    assert found == {keys.Score(64, 16), keys.Score(64, 32), keys.Prepare()}
