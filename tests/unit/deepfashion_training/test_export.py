"""A data set written as VITON-HD folders gives the samples that it gives itself."""

import io
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image

from deepfashion_training.deepfashion_dataset import DeepFashionData
from deepfashion_training.export_viton_hd import main
from folder_datasets import FolderData
from folder_lists import pairs_of
from test_dataset import items, load, png, write
from tryon.config import TrainConfig
from tryon.toy.dataset import write_dataset

SIZE = (96, 64)


def jpeg(image: Image.Image, orientation: int = 1) -> dict:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(buffer, "JPEG", exif=exif)
    return {"bytes": buffer.getvalue(), "path": None}


def both(name: str, folder: Path, *flags: str) -> list[tuple[DeepFashionData, FolderData]]:
    """The data set's training and validation data, each beside what is read from the export."""
    main([name, str(folder), *flags])
    train, validation = load(name, TrainConfig(height=SIZE[0], width=SIZE[1], max_validation_samples=3))
    return [
        (train, FolderData(pairs_of(str(folder), "train", "train_pairs.txt"), *SIZE)),
        (validation, FolderData(pairs_of(str(folder), "test", "test_pairs.txt"), *SIZE)),
    ]


def assert_same_samples(data: DeepFashionData, exported: FolderData) -> None:
    assert len(data) == len(exported) > 0
    for index in range(len(data)):
        expected, found = data[index], exported[index]
        assert expected.category == found.category
        for part in ("garment", "person", "mask"):
            assert torch.equal(getattr(expected, part), getattr(found, part)), (index, part)


def test_the_toys_data(tmp_path: Path) -> None:
    """PNG pictures of three categories, garments from flat views and cut out."""
    write_dataset(tmp_path / "toy", items=12, seed=3)
    pairs = both(str(tmp_path / "toy"), tmp_path / "my viton", "--max_validation_samples", "3")
    for data, exported in pairs:
        assert_same_samples(data, exported)
    assert {pair.category for _, exported in pairs for pair in exported.pairs} == {"upper", "lower", "full"}
    assert {pair.reference for data, _ in pairs for pair in data.pairs} == {"flat", "other_view"}

    names = [pair.name for pair in pairs[0][1].pairs]
    assert names[0] == "000000_00.jpg", "VITON trainers make the mask's name from one that ends in .jpg"
    assert (tmp_path / "my viton/train/agnostic-mask/000000_00_mask.png").is_file()
    assert (tmp_path / "my viton/train_pairs.txt").read_text().splitlines()[0] == f"{names[0]} {names[0]}"
    with pytest.raises(ValueError, match="my viton exists: remove it or name another folder"):
        main([str(tmp_path / "toy"), str(tmp_path / "my viton")])


def test_jpegs_are_copied_and_turned_ones_are_not(tmp_path: Path) -> None:
    rows = items(6)
    for number, each in enumerate(rows):
        photo = Image.effect_noise((48, 64), 90).convert("RGB")
        lying = number == 0
        each["images"] = jpeg(photo.rotate(90, expand=True) if lying else photo, orientation=6 if lying else 1)
    name = write(tmp_path / "data", rows)
    for data, exported in both(name, tmp_path / "out", "--max_validation_samples", "3"):
        assert_same_samples(data, exported)
        for index in range(len(data)):
            person, garment = exported.pairs[index].person, exported.pairs[index].garment
            source, _, *reference = data.files(index)
            assert (person.read_bytes() == source) == (data.pairs[index].row != 0)
            assert data.pair(index).reference != "flat" or garment.read_bytes() == reference[0]
            assert Image.open(person).getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_the_unpaired_garment_is_another_ones_of_the_same_category(tmp_path: Path) -> None:
    write_dataset(tmp_path / "toy", items=40, seed=3)
    main([str(tmp_path / "toy"), str(tmp_path / "out"), "--max_train_samples", "4"])
    categories = dict(line.split() for line in (tmp_path / "out/test/categories.txt").read_text().splitlines())
    pairs = [line.split() for line in (tmp_path / "out/test_pairs.txt").read_text().splitlines()]
    assert len(pairs) == len(categories) > 3
    for person, garment in pairs:
        alone = list(categories.values()).count(categories[person]) == 1
        assert (person == garment) == alone and categories[person] == categories[garment]
    assert len((tmp_path / "out/train_pairs.txt").read_text().splitlines()) == 4


def test_what_cannot_be_read_is_left_out_or_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = items(6)
    rows[0]["mask"] = png(Image.new("L", (48, 64)))
    main([write(tmp_path / "one", rows), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "skipped: row 0 (id_00000000): the garment's mask is empty" in said
    assert "1 of " in said and "cannot be read and was left out" in said
    for each in rows:
        each["mask"] = rows[0]["mask"]
    with pytest.raises(ValueError, match="cannot be read, more than 1 %"):
        main([write(tmp_path / "all", rows), str(tmp_path / "none")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "one", "out"], "nothing half-written is left"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="required: dataset_name, folder"):
        main([])
    with pytest.raises(ValueError, match="neither a folder nor a hub name"):
        main(["no/such/data", str(tmp_path / "out")])
