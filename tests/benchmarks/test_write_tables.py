"""The documents' tables are those of the results."""

import shutil

import pytest

from benchmarks import write_tables


def test_committed_tables_are_up_to_date(capsys):
    assert write_tables.main(["--check"]) == 0, capsys.readouterr().out


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the documents with one figure changed by hand."""
    shutil.copytree(write_tables.ROOT / "docs", tmp_path / "docs")
    shutil.copy(write_tables.ROOT / "README.md", tmp_path)
    monkeypatch.setattr(write_tables, "ROOT", tmp_path)
    path = tmp_path / "docs" / "benchmarks.md"
    text = path.read_text()
    assert "| 100 queries |" not in text
    path.write_text(text.replace("<!-- table: targets_cpu -->\n", "<!-- table: targets_cpu -->\n| 100 queries |\n"))
    return path, text


def test_a_figure_typed_by_hand_is_found_and_replaced(copy, capsys):
    path, text = copy
    assert write_tables.main(["--check"]) == 1
    assert "docs/benchmarks.md" in capsys.readouterr().out
    assert path.read_text() != text
    assert write_tables.main([]) == 0
    assert path.read_text() == text


def test_text_outside_the_markers_stays():
    assert write_tables.filled("<!-- no table -->\n12\n") == "<!-- no table -->\n12\n"
