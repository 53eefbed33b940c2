"""What is said of a data set before anybody trains on it."""

import re
from pathlib import Path

import pytest
from PIL import Image

from deepfashion_training.inspect_dataset import main, read_settings
from deepfashion_training.inspection import Findings, Look, judge_pictures
from test_dataset import png, row, write
from test_folders import write_dresscode, write_own, write_viton_hd
from tryon.toy.dataset import write_dataset
from tryon.toy.model import toy_parser


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_dataset(tmp_path_factory.mktemp("toys") / "data", items=24, seed=5).parent.parent)


def test_the_toys_are_ready(toys: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    main([toys, "--page", str(page)])
    said = capsys.readouterr().out
    assert "rows: 90, columns: images as person, mask as mask" in said
    assert "items: 24 (24 with 3 views)" in said
    assert "flat views, used as garments only: 18" in said
    assert re.search(r"garment shown by flat: 18 upper, 18 lower, 18 full", said)
    assert re.search(r"garment shown by other_view: 6 upper, 6 lower, 6 full", said)
    assert "picture sizes: 144 x 192 (72)" in said and "masks: 72 binary, 0 noisy" in said
    assert "warning: only 66 pairs to train on" in said
    assert "look larger" not in said and "no such garment" not in said and "more than once" not in said
    assert said.splitlines()[-1].endswith("ready, but see the warning: all rows that are kept can be used")

    text = page.read_text()
    assert "ready, but see the warning: all rows that are kept can be used" in text and 'class="verdict ready"' in text
    assert text.count("<figure>") == 24 and text.count("<img") == 4 * 24
    assert not re.search(r'(src|href)="(?!data:)', text), "the page needs no network"

    main([toys, "--worn_reference_share", "0.5", "--page", str(page)])
    said = capsys.readouterr().out
    assert re.search(r"garment shown by other_view_photo: \d+ upper, \d+ lower, \d+ full", said)
    assert said.splitlines()[-1].endswith("ready, but see the warning: all rows that are kept can be used")
    assert "garment by other_view_photo" in page.read_text()

    main([toys, "--base_categories", "upper,lower", "--page", str(page)])
    said = capsys.readouterr().out
    assert "48 of 72 pairs left out: --base_categories upper,lower" in said
    assert re.search(r"training: \d+ pairs \(\d+ full\)", said) and "training pairs are" not in said
    with pytest.raises(ValueError, match="--base_categories shoes is no category: give some of upper, lower, full"):
        read_settings([toys, "--base_categories", "shoes"])


def test_what_is_wrong_with_masks_and_pictures_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [row(item, "front") for item in range(110)]
    for number, each in enumerate(rows):
        picture = Image.new("RGB", (48, 64), (240, 240, 240))
        picture.paste((number, 20, 30), (12, 30, 36, 60))
        each["images"] = png(picture)
    wide, small, grey = Image.new("L", (48, 64)), Image.new("L", (24, 32)), Image.new("L", (48, 64), 90)
    wide.paste(255, (2, 26, 46, 63))  # far into the even background
    small.paste(255, (6, 15, 18, 30))
    grey.paste(255, (12, 30, 36, 60))
    rows[3]["mask"], rows[4]["mask"], rows[5]["mask"] = png(wide), png(small), png(grey)
    rows[6]["mask"] = png(Image.new("L", (48, 64)))
    high = Image.new("L", (48, 64))
    high.paste(255, (12, 2, 36, 12))
    rows[7]["mask"] = png(high)
    rows[8]["images"] = rows[9]["images"]
    main([write(tmp_path, rows), "--page", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    too_large = (
        "masks of lower garments look larger than the garment: more than 25% of their outline runs through even "
    )
    assert f"{too_large}colour: 2 rows (3, 7); they can be trained on, but hide more of the person" in said
    assert "masks of lower garments are where on a picture no such garment is: 1 row (7)" in said
    assert "masks that do not have their picture's size, and are resized: 1 row (4)" in said
    assert "108 binary, 1 noisy or soft" in said
    assert "cannot be used and are left out: 1 row (6)" in said
    assert "1 row cannot be used: the garment's mask is empty" in said
    assert "pictures that are there more than once: 1 row (9)" in said
    assert "0 of " in said and "training pairs are upper" in said, "skewed"
    warnings = said.count("warning: ")
    assert warnings > 6 and f"ready, but see the {warnings} warnings: all rows that are kept can be used" in said


def test_a_set_that_cannot_be_trained_on_is_not_ready(tmp_path: Path) -> None:
    rows = [row(item, "front") for item in range(20)]
    for each in rows[:5]:
        each["images"] = {"bytes": b"no picture", "path": None}
    with pytest.raises(ValueError, match=r"not ready: \d of 18 training pairs cannot be read, more than 1 %"):
        main([write(tmp_path, rows), "--page", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert 'class="verdict not"' in page and "5 rows cannot be used: it is no picture of a known format" in page


def test_only_what_a_pair_needs_is_asked_of_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A flat view needs no mask; a garment column has to be readable."""
    rows = [row(item, pose) for item in range(300) for pose in ("01_1_front", "01_4_flat")]
    for each in rows[1::2]:
        each["mask"] = png(Image.new("L", (48, 64)))
    main([write(tmp_path / "flat", rows), "--page", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    assert "garment shown by flat: 300 lower" in said and "cannot be used" not in said

    with_garments = [{**row(item, "front"), "cloth": {"bytes": b"no picture", "path": None}} for item in range(30)]
    name = write(tmp_path / "column", with_garments, ("images", "mask", "cloth"))
    with pytest.raises(ValueError, match="not ready: 27 of 27 training pairs cannot be read"):
        main([name, "--page", str(tmp_path / "page.html")])
    with pytest.raises(ValueError, match=r"the page .*words.txt/page.html cannot be written"):
        (tmp_path / "words.txt").touch()
        main([name, "--page", str(tmp_path / "words.txt" / "page.html")])


def test_folders_are_inspected_too(tmp_path: Path, data_cache: Path, capsys: pytest.CaptureFixture) -> None:
    """A person's own without and with masks that a parser makes, VITON-HD and DressCode."""
    own, page = tmp_path / "own", tmp_path / "page.html"
    write_own(own)
    main([str(own), "--page", str(page)])
    said = capsys.readouterr().out
    assert re.search(r"training pairs: [45]  \([45] upper; all upper, because there is no categories.txt\)", said)
    assert "picture sizes: 144 x 192 (6)" in said and "the folder has no masks, and none were looked at" in said
    assert said.splitlines()[-1].endswith("ready, but see the 4 warnings: all pairs that are kept can be used")
    text = page.read_text()
    assert "garment | person<" in text and text.count("<figure>") == 6 and text.count("<img") == 2 * 6

    parser = ["--parser", str(toy_parser(data_cache)), "--data_cache_dir", str(tmp_path), "--page", str(page)]
    main([str(own), *parser, "--mask_rule", "hull"])
    said = capsys.readouterr().out
    assert "masks of upper garments: " in said and "has no masks" not in said and "too short" not in said
    assert "garment | person | mask | hidden from the model<" in page.read_text()

    main([str(write_viton_hd(tmp_path / "viton")), "--page", str(page)])
    assert "masks: 6 binary, 0 noisy" in capsys.readouterr().out
    assert "garment | person | hidden from the model<" in page.read_text()
    dresscode = write_dresscode(tmp_path / "dresscode", 2)
    (dresscode / "dresses" / "images" / "000000_1.jpg").write_bytes(b"no picture")
    main([str(dresscode), "--page", str(page)])
    assert "cannot be used and are left out: 1 pair (dresses/000000_0.jpg)" in capsys.readouterr().out


def test_masks_that_are_too_small_for_their_garment_are_named() -> None:
    findings = Findings([], [], [])
    picture = {"size": (48, 64), "middle": 0.5, "still": 0.0}
    heights = {"dress": ("full", 0.5, 0.2), "skirt": ("lower", 0.3, 0.1), "speck": ("lower", 0.3, 0.001),
               "shorts for a dress": ("full", 0.2, 0.1)}  # fmt: skip
    looks = [
        Look(name, category, "", {**picture, "digest": name, "height": height, "area": area})
        for name, (category, height, area) in heights.items()
    ]
    judge_pictures(findings, "pair", looks, [])
    assert [line.partition(";")[0] for line in findings.warnings if "too small" in line] == [
        "masks of lower garments are too short or too small to show one: 1 pair (speck)",
        "masks of full garments are too short or too small to show one: 1 pair (shorts for a dress)",
    ]


def test_wrong_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_own(tmp_path / "own", 3)
    for flags, message in (
        (["--mask_rule", "hull"], "--mask_rule was given, but there are no masks without a --parser"),
        (["--min_reference", "flat"], "--min_reference was given, but a folder has a picture of each garment"),
        (["--worn_reference_share", "0.1"], "--worn_reference_share was given, but a folder has a picture of each"),
        (["--parser", "no/parser"], "none can be made without a human parser"),
    ):
        with pytest.raises(ValueError, match=message):
            read_settings([str(tmp_path / "own"), *flags])
    with pytest.raises(ValueError, match="required: data_set"):
        read_settings([])
    with pytest.raises(ValueError, match="--dataset_name x/y was given: name the data set without a flag"):
        read_settings(["a/b", "--dataset_name", "x/y"])
    with pytest.raises(ValueError, match="neither a folder nor a hub name"):
        read_settings(["no/such/data"])
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    assert "--page" in (shown := capsys.readouterr().out) and "--dataset_name" not in shown
