"""Folders like VITON-HD's and DressCode's, and a person's own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepfashion_training.held_out import HeldOutConfig, check_persons, scored_pairs
from folder_datasets import FolderData, load_folder
from folder_lists import FolderConfig, pairs_of, read_settings, with_lists
from tryon.config import MaskConfig, TrainConfig
from tryon.data.category import MaskRule
from tryon.data.human_parser import ATR, PART_OF_LABEL, Parser, mask_by_rule, parse
from tryon.data.masks import PARTS
from tryon.data.sample import UnreadablePicture, fit_mask, fit_picture
from tryon.data.split import few_pairs
from tryon.profiles import on_toy
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


def load(root: Path, masks: MaskConfig | None = None, **changes: object) -> tuple[FolderData, FolderData]:
    """Training and validation data of the folder, for the toy."""
    config = on_toy(TrainConfig(**{"height": 192, "width": 144, **changes}))
    return load_folder(with_lists(FolderConfig(dataroot=str(root))), masks or MaskConfig(), config, torch.device("cpu"))


def viton_hd(root: Path, list_name: str = "train_pairs.txt", split: str = "train") -> FolderData:
    return FolderData(pairs_of(str(root), split, list_name), 64, 48)


def test_a_person_is_paired_with_the_garment_of_its_own_name(tmp_path: Path) -> None:
    data = viton_hd(write_viton_hd(tmp_path))
    assert len(data) == 3
    sample = data[1]
    garment = Image.open(tmp_path / "train" / "cloth" / "00001_00.jpg")
    assert np.array_equal(sample.garment, fit_picture(garment, 64, 48))
    assert sample.mask[0, 16:50, 10:40].all() and sample.mask.sum() == 34 * 30
    assert sample.category == "upper"
    assert sample.key == data.key(1) != data.key(2)


def test_few_pairs_are_warned_of() -> None:
    assert few_pairs(100, 2) == []
    assert few_pairs(1, 1) == [
        "only 1 pair to train on", "only 1 pair to validate on, whose loss and scores say little"
    ]  # fmt: skip


def test_limit_and_missing_parts(tmp_path: Path) -> None:
    root = write_viton_hd(tmp_path)
    assert len(load(root, max_train_samples=2)[0]) == 2
    with pytest.raises(ValueError, match="nowhere.txt is not there: name the list"):
        viton_hd(root, "nowhere.txt")
    (root / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty.txt must have lines of `person.jpg garment.jpg`"):
        viton_hd(root, "empty.txt")
    (root / "latin.txt").write_text("Jos\u00e9.jpg Jos\u00e9.jpg\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"latin.txt cannot be read \(.*\): give a list in UTF-8"):
        viton_hd(root, "latin.txt")
    (root / "train" / "cloth" / "00000_00.jpg").unlink()
    with pytest.raises(UnreadablePicture, match="00000_00.jpg"):
        viton_hd(root)[0]
    shutil.rmtree(root / "train" / "cloth")
    with pytest.raises(ValueError, match=r"lacks \S*/train/cloth: give a folder with image/ and cloth/, or one"):
        viton_hd(root)
    with pytest.raises(ValueError, match="--dataroot .*nowhere is no folder: check the path"):
        viton_hd(root / "nowhere")
    (root / "train" / "cloth").mkdir()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"rows holds pictures with a table \(metadata.jsonl\): give it as --data"):
        read_settings(["--toy", "--dataroot", str(tmp_path / "rows")])
    with pytest.raises(ValueError, match="none of 3 pairs is complete, .*/cloth/00000_00.jpg is not there"):
        viton_hd(root)


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
    data = load(root, max_train_samples=7)[0]
    assert [data.category(index) for index in range(7)] == ["upper", "lower", "full"] * 2 + ["upper"]
    drawn = DrawnData(3, 3, ("lower",), 192, 144)
    sample = data[1]
    assert (sample.person - drawn[0].person).abs().mean() < 0.05, "a JPEG of it"
    assert (sample.garment - drawn[0].garment).abs().mean() < 0.05
    assert (sample.mask != drawn[0].mask).float().mean() < 0.02, "the labels' garment is the drawing's"
    assert sample.key == data.key(1) and len({data.key(index) for index in range(len(data))}) == len(data)

    by_body = load(root, MaskConfig(mask_rule="hull"))[0]
    assert by_body[1].mask.sum() < sample.mask.sum()
    grown, validation = load(root, MaskConfig(mask_growth=0.1, variants=2))
    assert len(grown) == 18 and grown.key(0) != grown.key(9)
    assert len(validation) == 3 and validation.variants == 1
    varied = load(root, MaskConfig(mask_variation=1.0, variants=2))[0]
    assert len(varied) == 18 and len({varied.key(0), varied.key(9), grown.key(0), data.key(0)}) == 4
    assert varied[1].mask[sample.mask > 0].all() and varied[1].mask.sum() > sample.mask.sum()


def test_lists_name_files_of_their_folder_only(tmp_path: Path) -> None:
    roots = write_viton_hd(tmp_path / "viton"), write_dresscode(tmp_path / "dresscode")
    for name in ("../../private.jpg", "/private.jpg"):
        (roots[0] / "odd.txt").write_text(f"{name} garment.jpg")
        for part in ("upper_body", "lower_body", "dresses"):
            (roots[1] / part / "odd.txt").write_text(f"person.jpg {name}")
        with pytest.raises(ValueError, match=f"odd.txt names {name}, which lies outside the folder"):
            viton_hd(roots[0], "odd.txt")
        with pytest.raises(ValueError, match=f"odd.txt names {name}, which lies outside the folder"):
            pairs_of(str(roots[1]), "train", "odd.txt")


def test_what_dresscode_lacks_is_named(tmp_path: Path) -> None:
    root = write_dresscode(tmp_path)
    (root / "dresses" / "label_maps" / "000001_4.png").unlink()
    with pytest.raises(UnreadablePicture, match="dresses/000001_0.jpg: .*000001_4.png"):
        load(root)[0][5]
    with pytest.raises(ValueError, match="upper_body/other.txt is not there: name the list"):
        pairs_of(str(root), "train", "other.txt")
    (root / "lower_body" / "empty.txt").write_text("")
    (root / "upper_body" / "empty.txt").write_text("a.jpg b.jpg")
    with pytest.raises(ValueError, match="lower_body/empty.txt must have lines of `person.jpg garment.jpg`"):
        pairs_of(str(root), "train", "empty.txt")


def test_nobody_is_trained_and_validated_on(tmp_path: Path) -> None:
    root = str(write_dresscode(tmp_path))
    with pytest.raises(ValueError, match="train_pairs.txt and train_pairs.txt share 9 persons"):
        read_settings(["--toy", "--dataroot", root, "--validation_data_list", "train_pairs.txt"])
    assert [len(pairs) for pairs in load(tmp_path)] == [9, 3]


def test_the_layout_is_seen_by_its_folders(tmp_path: Path) -> None:
    dresscode = write_dresscode(tmp_path / "dresscode", 1)
    _, folders, masks, _ = read_settings(["--toy", "--dataroot", str(dresscode), "--mask_rule", "parsing"])
    assert folders.validation_data_list == "test_pairs_paired.txt" and masks.mask_rule == "parsing"
    viton = write_viton_hd(tmp_path / "viton")
    assert read_settings(["--toy", "--dataroot", str(viton)])[1].validation_data_list == "test_pairs.txt"
    with pytest.raises(ValueError, match="--mask_left was given, but VITON-HD folders have their own masks"):
        read_settings(["--toy", "--dataroot", str(viton), "--mask_left", "0.1"])
    with pytest.raises(ValueError, match="--mask_growth 2.0 is too large: give 0 to 1"):
        read_settings(["--toy", "--dataroot", str(dresscode), "--mask_growth", "2"])


def write_own(root: Path, count: int = 6) -> DrawnData:
    """A person's own folder: drawn people and their garments, of other kinds of files, without lists and masks. The
    first two people wear one garment."""
    data = DrawnData(count, 3, ("upper",), 192, 144)
    for part in ("image", "cloth"):
        (root / part).mkdir(parents=True)
    for index in range(count):
        data.truth(index).image.save(root / "image" / f"me {index}.png")
        draw_garment(data.tried_on(max(1, index))[0], 192, 144).image.save(root / "cloth" / f"me {index}.JPG")
    (root / "image" / ".hidden").write_text("no picture")
    return data


def test_a_folder_without_lists_and_masks(
    tmp_path: Path, drawn_parser: Parser, caplog: pytest.LogCaptureFixture
) -> None:
    """A garment is held back with all who wear it, and masks are those of inference, made once."""
    root = tmp_path / "own"
    cache = tmp_path / "cache"  # its own: other tests label the same drawn people
    drawn = write_own(root)
    caplog.set_level("INFO")
    train, validation = load(root, data_cache_dir=str(cache))
    assert "no list of training pairs: every picture is taken" in caplog.text
    assert "1 garment held back from the training" in caplog.text and "labelling the people in" in caplog.text
    for seed in range(20):
        splits = [load(root, data_cache_dir=str(cache), seed=seed) for _ in range(2)]
        assert splits[0] == splits[1], "the same whenever it is made"
        trained, held_back = ({pair.name for pair in data.pairs} for data in splits[0])
        assert not trained & held_back and len(trained | held_back) == 6
        assert ("me 0.png" in held_back) == ("me 1.png" in held_back)
        assert len(held_back) == (2 if "me 0.png" in held_back else 1)
    files = {pair.mask for data in (train, validation) for pair in data.pairs}
    written = {file: file.stat().st_mtime_ns for file in files}
    assert len(files) == 6 and files <= set(cache.rglob("*.png"))

    for index, pair in enumerate(train.pairs):
        person = drawn.truth(int(pair.person.stem[-1])).image
        expected = mask_by_rule(None, "upper", MaskRule(), lambda person=person: parse(drawn_parser, person))
        assert torch.equal(train[index].mask, fit_mask(expected, 192, 144)), pair.name
    hull = load(root, MaskConfig(mask_rule="hull"), data_cache_dir=str(cache))[0]
    assert hull[0].mask.sum() < train[0].mask.sum() and hull.key(0) != train.key(0) and hull.mask_rule.name == "hull"
    assert written == {file: file.stat().st_mtime_ns for file in files}


def test_what_a_persons_own_folder_lacks_is_named(tmp_path: Path) -> None:
    root = tmp_path / "own"
    write_own(root, 2)
    flags = ["--toy", "--dataroot", str(root)]
    with pytest.raises(ValueError, match="has a single item"):  # both wear one garment
        read_settings(flags)
    with pytest.raises(ValueError, match="has no masks in agnostic-mask, and none can be made without a human parser: "
                                         "no/parser is not a folder here, not downloaded yet"):  # fmt: skip
        write_own(tmp_path / "more", 3)
        read_settings(["--toy", "--dataroot", str(tmp_path / "more"), "--parser", "no/parser"])
    (root / "cloth" / "me 1.JPG").unlink()
    with pytest.raises(ValueError, match="1 person of .* without a garment of that name, me 1.png: name"):
        read_settings(flags)
    shutil.rmtree(root / "image")
    (root / "image").mkdir()
    with pytest.raises(ValueError, match="own/image has no pictures of people, and no list names any"):
        read_settings(flags)
    with pytest.raises(ValueError, match="has masks or label maps of its own"):
        read_settings(["--toy", "--dataroot", str(write_viton_hd(tmp_path / "viton")), "--parser", "no/parser"])


def test_a_list_for_the_training_alone(tmp_path: Path) -> None:
    """Garments are held back from it; where there are pictures for tests all of these are taken."""
    root = write_viton_hd(tmp_path / "viton")
    (root / "test_pairs.txt").unlink()
    (root / "train" / "categories.txt").write_text("00000_00.jpg Upper Body\n00001_00.jpg DRESSES\n00002_00.jpg lower")
    settings = read_settings(["--toy", "--dataroot", str(root)])
    assert (settings[1].train_data_list, settings[1].validation_data_list) == ("train_pairs.txt", None)
    train, validation = load(root)
    assert [len(train), len(validation)] == [3, 3] and validation.pairs[0].person.parent == root / "test" / "image"
    assert [pair.category for pair in train.pairs] == ["upper", "full", "lower"]
    shutil.rmtree(root / "test")
    assert list(map(len, load(root))) == [2, 1]

    dresscode = write_dresscode(tmp_path / "dresscode")
    for file in dresscode.glob("*/*.txt"):
        file.unlink()
    assert list(map(len, load(dresscode))) == [11, 1]


def test_only_what_a_training_held_back_is_scored(tmp_path: Path) -> None:
    root, asked = str(tmp_path / "own"), HeldOutConfig(dataroot=str(tmp_path / "own"))
    write_own(Path(root))
    trained = {Path(f"{seed}"): {"dataroot": root, "seed": seed} for seed in range(3)}
    for file, settings in trained.items():
        _, held_back = load(Path(root), seed=settings["seed"])
        _, pairs = scored_pairs(asked, {file: settings})
        assert {pair.name for pair in pairs} == {pair.name for pair in held_back.pairs}
        check_persons({file: settings}, root, pairs)
    with pytest.raises(ValueError, match=r"1 was trained on .*/own, which has \d persons of those that are scored"):
        check_persons(trained, root, scored_pairs(asked, trained)[1])
