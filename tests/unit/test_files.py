"""Whether a file may be written is known before the work that makes it."""

import pytest

from dsrl.errors import DsrlError
from dsrl.files import check_out


def test_a_new_file_in_a_new_folder_may_be_written_and_nothing_is_made(tmp_path):
    check_out(tmp_path / "new" / "deeper" / "out.pt", overwrite=False)
    assert not list(tmp_path.iterdir())


def test_what_exists_is_replaced_only_on_request(tmp_path):
    out = tmp_path / "out.pt"
    out.write_text("precious")
    with pytest.raises(DsrlError, match=r"out.pt exists; choose another name, or replace it with --overwrite"):
        check_out(out, overwrite=False)
    check_out(out, overwrite=True)
    assert out.read_text() == "precious"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DsrlError, match="is a folder; give the name of a file"):
        check_out(tmp_path, overwrite=True)


def test_where_nothing_can_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DsrlError, match=r"out.pt cannot be written: .*file: Not a directory; choose another place"):
        check_out(tmp_path / "file" / "deeper" / "out.pt", overwrite=False)
