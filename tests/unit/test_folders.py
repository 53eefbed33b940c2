"""VITON-HD folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from folder_datasets import load_viton_hd
from tryon.sample import UnreadablePicture, fit_picture


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
