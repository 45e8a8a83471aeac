import pytest

from sap_detr_hf.files import whole_file


def test_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("earlier")
    with whole_file(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path):
    with whole_file(path) as aside:
        aside.write_text("ne")
        raise OSError("No space left on device")


def test_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("earlier")
    with pytest.raises(OSError, match="No space left"):
        write_half(path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
