"""Files that are written whole or not at all."""

import pytest

from sr1_jax.paths import replacing, write_whole


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_whole(path, "one")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("two")
        second.write_text("three")
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]
