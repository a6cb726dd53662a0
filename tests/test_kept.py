"""Files that are replaced whole: all of the new one, or the old one and nothing beside it."""

import os
import stat

import pytest

from edge.kept import PRIVATE, whole


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with whole(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def failed(error):
        with whole(path) as file:
            file.write(b"half")
            raise error

    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            failed(error)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"), whole(tmp_path / "folder"):
        pass
    assert path.read_text() == "old"
    assert {*tmp_path.iterdir()} == {path, tmp_path / "folder"}


@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_others_read_what_the_umask_allows_and_nothing_private(tmp_path):
    before = os.umask(0o022)
    try:
        for name, mode in (("picture", 0o666), ("talk", PRIVATE)):
            with whole(tmp_path / name, mode):
                pass
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("picture", "talk")]
    assert modes == [0o644, 0o600]
