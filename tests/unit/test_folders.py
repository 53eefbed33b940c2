"""VITON-HD folders."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from folder_datasets import load_dresscode, load_viton_hd
from folder_lists import read_settings
from train_flux_inpaint import folder_data
from tryon.config import MaskConfig
from tryon.data.human_parser import ATR, PART_OF_LABEL
from tryon.data.masks import PARTS
from tryon.data.sample import UnreadablePicture, fit_picture
from tryon.toy.drawing import draw_garment
from tryon.toy.examples import DrawnData, label_map


def write_viton_hd(root: Path, count: int = 3, size: tuple[int, int] = (48, 64)) -> Path:
    """`count` pairs for train and test each: red persons, yellow garments, a white rectangle as mask."""
    for split in ("train", "test"):
        names = [f"{index:05d}_00.jpg" for index in range(count)]
        for part in ("image", "cloth", "agnostic-mask"):
            (root / split / part).mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(names):
            Image.new("RGB", size, (200, 10 * index, 0)).save(root / split / "image" / name)
            Image.new("RGB", size, (220, 220, 10 * index)).save(root / split / "cloth" / name)
            mask = Image.new("L", size)
            mask.paste(255, (10, 16, 40, 50))
            mask.save(root / split / "agnostic-mask" / f"{Path(name).stem}_mask.png")
        # The second name is the garment of the unpaired test, and must not be used for training.
        lines = [f"{name} {other}" for name, other in zip(names, names[1:] + names[:1], strict=True)]
        (root / f"{split}_pairs.txt").write_text("\n".join(lines) + "\n")
    return root


def test_a_person_is_paired_with_the_garment_of_its_own_name(tmp_path: Path) -> None:
    data = load_viton_hd(str(write_viton_hd(tmp_path)), "train", "train_pairs.txt", 64, 48, None)
    assert len(data) == 3
    sample = data[1]
    garment = Image.open(tmp_path / "train" / "cloth" / "00001_00.jpg")
    assert np.array_equal(sample.garment, fit_picture(garment, 64, 48))
    assert sample.mask[0, 16:50, 10:40].all() and sample.mask.sum() == 34 * 30
    assert sample.category == "upper"
    assert sample.key == data.key(1) != data.key(2)


def test_limit_and_missing_parts(tmp_path: Path) -> None:
    root = write_viton_hd(tmp_path)
    assert len(load_viton_hd(str(root), "train", "train_pairs.txt", 64, 48, 2)) == 2
    with pytest.raises(ValueError, match="nowhere.txt is not there: name the list"):
        load_viton_hd(str(root), "train", "nowhere.txt", 64, 48, None)
    (root / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no pair"):
        load_viton_hd(str(root), "train", "empty.txt", 64, 48, None)
    (root / "train" / "cloth" / "00000_00.jpg").unlink()
    data = load_viton_hd(str(root), "train", "train_pairs.txt", 64, 48, None)
    with pytest.raises(UnreadablePicture, match="00000_00.jpg"):
        data[0]


def write_dresscode(root: Path, count: int = 3) -> Path:
    """Toys in DressCode's layout: of each part of the body `count` pairs to train on, and one more."""
    label_of = {part: ATR.index(name) for name, part in reversed(PART_OF_LABEL.items())} | {
        "hands": ATR.index("Left-arm")
    }
    for folder, category in (("upper_body", "upper"), ("lower_body", "lower"), ("dresses", "full")):
        for part in ("images", "label_maps"):
            (root / folder / part).mkdir(parents=True, exist_ok=True)
        data = DrawnData(count, 3, (category,), 192, 144)
        names = []
        for index in range(count):
            person, name = data.truth(index), f"{index:06d}"
            person.image.save(root / folder / "images" / f"{name}_0.jpg")
            draw_garment(data.tried_on(index)[0], 192, 144).image.save(root / folder / "images" / f"{name}_1.jpg")
            labels = np.array([label_of[part] for part in PARTS], np.uint8)
            Image.fromarray(labels[label_map(person).numpy()]).save(root / folder / "label_maps" / f"{name}_4.png")
            names.append(f"{name}_0.jpg\t{name}_1.jpg")
        (root / folder / "train_pairs.txt").write_text("\n".join(names) + "\n")
        (root / folder / "test_pairs_paired.txt").write_text(names[-1].replace(names[-1][:6], "000009") + "\n")
        for kind in ("images", "label_maps"):
            for file in (root / folder / kind).glob(f"{count - 1:06d}_*"):
                shutil.copy(file, file.with_name(file.name.replace(file.name[:6], "000009")))
    return root


def test_dresscode_has_garments_of_all_parts_of_the_body(tmp_path: Path) -> None:
    root = write_dresscode(tmp_path)
    data = load_dresscode(str(root), "train_pairs.txt", MaskConfig(), 192, 144, 7)
    assert [data.category(index) for index in range(7)] == ["upper", "lower", "full"] * 2 + ["upper"]
    drawn = DrawnData(3, 3, ("lower",), 192, 144)
    sample = data[1]
    assert (sample.person - drawn[0].person).abs().mean() < 0.05, "a JPEG of it"
    assert (sample.garment - drawn[0].garment).abs().mean() < 0.05
    assert (sample.mask != drawn[0].mask).float().mean() < 0.02, "the labels' garment is the drawing's"
    assert sample.key == data.key(1) and len({data.key(index) for index in range(len(data))}) == len(data)

    by_body = load_dresscode(str(root), "train_pairs.txt", MaskConfig(mask_rule="hull"), 192, 144, 7)
    assert by_body[1].mask.sum() < sample.mask.sum()
    grown = load_dresscode(str(root), "train_pairs.txt", MaskConfig(mask_growth=0.1, variants=2), 192, 144, None)
    assert len(grown) == 18 and grown.key(0) != grown.key(9)


def test_lists_name_files_of_their_folder_only(tmp_path: Path) -> None:
    roots = write_viton_hd(tmp_path / "viton"), write_dresscode(tmp_path / "dresscode")
    for name in ("../../private.jpg", "/private.jpg"):
        (roots[0] / "odd.txt").write_text(f"{name} garment.jpg")
        for part in ("upper_body", "lower_body", "dresses"):
            (roots[1] / part / "odd.txt").write_text(f"person.jpg {name}")
        with pytest.raises(ValueError, match=f"odd.txt names {name}, which lies outside the folder"):
            load_viton_hd(str(roots[0]), "train", "odd.txt", 64, 48, None)
        with pytest.raises(ValueError, match=f"odd.txt names {name}, which lies outside the folder"):
            load_dresscode(str(roots[1]), "odd.txt", MaskConfig(), 64, 48, None)


def test_what_dresscode_lacks_is_named(tmp_path: Path) -> None:
    root = write_dresscode(tmp_path)
    (root / "dresses" / "label_maps" / "000001_4.png").unlink()
    with pytest.raises(UnreadablePicture, match="dresses/000001_0.jpg: .*000001_4.png"):
        load_dresscode(str(root), "train_pairs.txt", MaskConfig(), 192, 144, None)[5]
    with pytest.raises(ValueError, match="upper_body/other.txt is not there: name the list"):
        load_dresscode(str(root), "other.txt", MaskConfig(), 192, 144, None)
    (root / "lower_body" / "empty.txt").write_text("")
    (root / "upper_body" / "empty.txt").write_text("a.jpg b.jpg")
    with pytest.raises(ValueError, match="lower_body/empty.txt must have lines of `person.jpg garment.jpg`"):
        load_dresscode(str(root), "empty.txt", MaskConfig(), 192, 144, None)


def test_nobody_is_trained_and_validated_on(tmp_path: Path) -> None:
    root = str(write_dresscode(tmp_path))
    with pytest.raises(ValueError, match="train_pairs.txt and train_pairs.txt share 9 persons"):
        read_settings(["--toy", "--dataroot", root, "--validation_data_list", "train_pairs.txt"])
    settings = read_settings(["--toy", "--dataroot", root])
    train, validation = folder_data(*settings[1:], settings[0])
    assert len(train) == 9 and len(validation) == 3
    with pytest.raises(ValueError, match="has none of upper_body, lower_body, dresses"):
        load_dresscode(str(tmp_path / "images"), "train_pairs.txt", MaskConfig(), 192, 144, None)


def test_the_layout_is_seen_by_its_folders(tmp_path: Path) -> None:
    dresscode = write_dresscode(tmp_path / "dresscode", 1)
    _, folders, masks = read_settings(["--toy", "--dataroot", str(dresscode), "--mask_rule", "parsing"])
    assert folders.validation_data_list == "test_pairs_paired.txt" and masks.mask_rule == "parsing"
    viton = write_viton_hd(tmp_path / "viton")
    assert read_settings(["--toy", "--dataroot", str(viton)])[1].validation_data_list == "test_pairs.txt"
    with pytest.raises(ValueError, match="--mask_left was given, but VITON-HD folders have their own masks"):
        read_settings(["--toy", "--dataroot", str(viton), "--mask_left", "0.1"])
    with pytest.raises(ValueError, match="--mask_growth 2.0 is too large: give 0 to 1"):
        read_settings(["--toy", "--dataroot", str(dresscode), "--mask_growth", "2"])
