"""Steps are traced into files that xprof reads."""

import jax
import jax.numpy as jnp
import pytest

from sr1_jax.training.profiling import ProfiledSteps, Profiler


def test_steps_by_flag():
    assert ProfiledSteps.parse("10-12") == (10, 12)
    assert ProfiledSteps.parse("7") == (7, 7)
    assert ProfiledSteps.parse("") is None


@pytest.mark.parametrize("text", ["0", "5-3", "0-2", "a", "1-", "-3", "1-2-3", "1.5", "1,2"])
def test_bad_steps(text):
    with pytest.raises(ValueError, match=f"--profile_steps={text}: name a step"):
        ProfiledSteps.parse(text)


@pytest.mark.parametrize("end", [4, 2])  # the run goes on, or ends within
def test_the_steps_asked_for_are_traced(tmp_path, end, capsys):
    with Profiler(tmp_path / "profile", ProfiledSteps(2, 3)) as profiler:
        for step in range(1, end + 1):
            profiler.at(step)
            with jax.profiler.TraceAnnotation(f"made up step {step}"):
                jnp.ones(3).block_until_ready()
    (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
    names = {
        event.name for plane in profile.planes for line in plane.lines for event in line.events
    }
    traced = [step for step in range(1, 6) if f"made up step {step}" in names]
    assert traced == [step for step in (2, 3) if step <= end]
    assert f"The trace is in {tmp_path}/profile" in capsys.readouterr().out


def test_without_steps_nothing_is_written(tmp_path):
    with Profiler(tmp_path / "profile", None) as profiler:
        profiler.at(1)
    assert list(tmp_path.iterdir()) == []
