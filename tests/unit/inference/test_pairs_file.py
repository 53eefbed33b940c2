"""Try-ons that a CSV file asks for: what of the file is understood, and what is said of one that is not."""

from pathlib import Path

import pytest

from tryon.inference.pairs_file import read_pairs


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_file_is_read_as_spreadsheets_write_it(tmp_path: Path, separator: str) -> None:
    lines = [separator.join(cells) for cells in (["person", "garment", "output"], ["a", '"b,c.png"', "one.png"])]
    (file := tmp_path / "pairs.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert read_pairs(file, range(1), None) == [(2, {"person": "a", "garment": "b,c.png", "output": "one.png"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no column person, garment, output: its first line names the columns, between commas, semicolons or"),
        ("  \n \n", "has no column person, garment, output: "),
        ("person,garment,output\n", "has no line below its first"),
        ("person|garment|output\na|b|c.png\n", "has no column person, garment, output: "),
        ("\x89PNG", "cannot be read \\('utf-8' codec"),
        (
            "person;garment;output\na;b;c.png\n\na;b;./c.png\n",
            "line 4 of .*pairs.csv writes .*/c.png, which line 2 reads or writes too: give each line an output of its",
        ),
        ("person,garment,output\na,b,c.png\nc.png,b,d.png\n", "line 2 of .* writes .*/c.png, which line 3 reads or"),
        ("person,garment,output\na,b,grid.png\n", "line 2 of .* writes .*, which --output_grid reads or writes too"),
    ],
)
def test_what_is_wrong_with_the_whole_file_is_said(tmp_path: Path, content: str, message: str) -> None:
    (file := tmp_path / "pairs.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_pairs(file, range(1), tmp_path / "grid.png")
