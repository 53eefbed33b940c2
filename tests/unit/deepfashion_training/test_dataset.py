"""DeepFashion's layouts, categories, references and split, on small data sets written as the hub's are."""

import io
import logging
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow.parquet import read_table, write_table
from safetensors.torch import load_file, save_file

from conftest import PROJECT
from deepfashion_training.deepfashion_dataset import DeepFashionData, load_deepfashion, load_table
from deepfashion_training.pairing import Pair, category_of, is_flat
from deepfashion_training.preflight import DataConfig, checked_data_path
from test_human_parser import write_parser
from train_flux_inpaint import lora_facts
from tryon.config import MaskConfig, TrainConfig
from tryon.data.human_parser import ATR
from tryon.data.sample import UnreadablePicture, fit_picture
from tryon.data.split import split_by_item, used_parts
from tryon.profiles import on_toy

COLOURS = {"front": "red", "side": "green", "flat": "blue"}


def png(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(item: int, pose: str, cloth_type: str = "Pants", size: tuple[int, int] = (48, 64)) -> dict:
    mask = Image.new("L", size)
    mask.paste(255, (12, 30, 36, 60))
    return {
        "images": png(Image.new("RGB", size, COLOURS[pose.split("_")[-1]])),
        "gender": "WOMEN",
        "pose": pose,
        "cloth_type": cloth_type,
        "pid": f"id_{item:08d}",
        "caption": "a woman in trousers",
        "mask": png(mask),
        "mask_overlay": png(mask.convert("RGB")),
    }


def write(folder: Path, rows: Iterable[dict], pictures: tuple[str, ...] = ("images", "mask", "mask_overlay")) -> str:
    table = datasets.Dataset.from_list(list(rows))
    for name in pictures:
        table = table.cast_column(name, datasets.Image(decode=False))
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def write_pictures(folder: Path, rows: Iterable[dict], kind: str = "jsonl") -> str:
    """The rows as pictures with a table of the hub's `imagefolder`."""
    (folder / "files").mkdir(parents=True)
    lines = []
    for number, each in enumerate(rows):
        texts = {name: value for name, value in each.items() if not isinstance(value, dict)}
        for column, name in (("file_name", "images"), ("mask_file_name", "mask"), ("cloth_file_name", "cloth")):
            if name in each:
                texts[column] = f"files/{number:03d}-{name}.png"
                (folder / texts[column]).write_bytes(each[name]["bytes"])
        lines.append(texts)
    table = datasets.Dataset.from_list(lines)
    write_table = {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[kind]
    write_table(folder / f"metadata.{kind}")
    return str(folder)


def config(**changes: object) -> TrainConfig:
    return on_toy(TrainConfig(height=64, width=48, **changes))


def load(name: str, settings: TrainConfig, **changes: object) -> tuple[DeepFashionData, DeepFashionData]:
    of_data = ("min_reference", "worn_reference_share", "parser")
    data = {"dataset_name": name} | {key: changes.pop(key) for key in of_data if key in changes}
    masks = MaskConfig(**{"variants": 1, **changes})
    return load_deepfashion(DataConfig(**data), masks, settings, torch.device("cpu"))


def items(count: int) -> list[dict]:
    """Every item has a front and a side view; the even ones a flat one too."""
    poses = ("01_1_front", "01_2_side", "01_4_flat")
    return [row(item, pose) for item in range(count) for pose in poses[: 3 - item % 2]]


def test_flat_views_are_references_and_never_persons(tmp_path: Path) -> None:
    train, validation = load(write(tmp_path, items(6)), config())
    pairs = [*train.pairs, *validation.pairs]
    assert len(pairs) == 12
    for pair in pairs:
        assert not is_flat(train.table[pair.row]["pose"])
        assert pair.reference == ("flat" if int(pair.pid[-1]) % 2 == 0 else "same_picture")
        assert train.table[pair.reference_row]["pid"] == pair.pid
    assert all(train.shows_garment_alone(place) == (pair.reference == "flat") for place, pair in enumerate(train.pairs))
    with_flat = next(index for index, pair in enumerate(train.pairs) if pair.reference == "flat")
    sample = train[with_flat]
    blue = fit_picture(Image.new("RGB", (48, 64), "blue"), *sample.garment.shape[-2:])
    assert np.array_equal(sample.garment, blue)
    assert sample.category == "lower"


def test_another_view_is_a_reference_where_its_colours_agree(tmp_path: Path) -> None:
    """Item 0: two views alike and one of another colourway. Item 1: two colourways."""
    rows = [row(0, pose) for pose in ("front", "side", "front")] + [row(1, pose) for pose in ("front", "side")]
    for each, colour in zip(rows, ("red", (250, 8, 8), "blue", "red", "blue"), strict=True):
        each["images"] = png(Image.new("RGB", (48, 64), colour))
    name = write(tmp_path, rows)
    pairs = sorted((pair for data in load(name, config()) for pair in data.pairs), key=lambda pair: pair.row)
    assert [(pair.reference, pair.reference_row) for pair in pairs] == [
        ("other_view", 1), ("other_view", 0), ("same_picture", 2), ("same_picture", 3), ("same_picture", 4)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="single item"):
        load(name, config(), min_reference="other_view")
    with pytest.raises(ValueError, match="no pair is left"):
        load(name, config(), min_reference="flat")


def test_a_share_of_the_garments_is_shown_worn(tmp_path: Path) -> None:
    """The even items have two views of one colour, and a flat one too."""
    rows = items(40)
    for each in rows:
        if each["pose"] == "01_2_side" and int(each["pid"][-1]) % 2 == 0:
            each["images"] = png(Image.new("RGB", (48, 64), (250, 8, 8)))
    name = write(tmp_path / "data", rows)
    plain, validation = load(name, config())
    changed: dict[float, set[int]] = {}
    for share in (0.25, 0.5, 1.0):
        data, held_back = load(name, config(), worn_reference_share=share)
        keys = [held_back.key(index) for index in range(len(held_back))]
        assert keys == [validation.key(index) for index in range(len(validation))]
        changed[share] = {at for at, pair in enumerate(data.pairs) if pair.reference == "other_view_photo"}
        same = {at for at in range(len(plain)) if data.key(at) == plain.key(at)}
        assert same == set(range(len(plain))) - changed[share]
        assert lora_facts(config(), data).worn_reference_share == share
    assert changed[1.0] == {at for at, pair in enumerate(plain.pairs) if pair.reference == "flat"}, "all that have one"
    assert changed[0.25] < changed[0.5] < changed[1.0]
    assert 0.1 < len(changed[0.25]) / len(changed[1.0]) < 0.4
    front = next(at for at in changed[1.0] if data.table[data.pairs[at].row]["pose"] == "01_1_front")
    photo = fit_picture(Image.new("RGB", (48, 64), (250, 8, 8)), 192, 144)
    assert torch.equal(data[front].garment, photo) and torch.equal(data[front].mask, plain[front].mask)

    with pytest.raises(ValueError, match="no training pair has another view of its garment that could show it worn"):
        load(write(tmp_path / "single", [row(item, "front") for item in range(3)]), config(), worn_reference_share=0.1)


def test_what_is_random_comes_in_variants(tmp_path: Path) -> None:
    name = write(tmp_path / "items", items(6))
    data, validation = load(name, config(), variants=3)
    rows = len(data.pairs)
    assert (len(data), data.variants) == (3 * rows, 3) and validation.variants == 1
    for row_number, pair in enumerate(data.pairs):
        keys = {data.key(variant * rows + row_number) for variant in range(3)}
        assert len(keys) == (3 if pair.reference == "same_picture" else 1)
    cut = next(number for number, pair in enumerate(data.pairs) if pair.reference == "same_picture")
    garments = [data[variant * rows + cut].garment for variant in range(3)]
    assert not torch.equal(garments[0], garments[1]) and not torch.equal(garments[1], garments[2])
    assert torch.equal(garments[1], data[rows + cut].garment), "the same whenever it is built"
    assert {data.category(index) for index in range(len(data))} == {"lower"}

    tops = write(tmp_path / "tops", [row(item, "front", "Tees_Tanks") for item in range(3)])
    data, grown = load(tops, config())[0], load(tops, config(), variants=2, mask_growth=0.2)[0]
    plain, first, second = data[0].mask.bool(), grown[0].mask.bool(), grown[len(data)].mask.bool()
    assert not torch.equal(first, second)
    for mask in (first, second):
        assert mask[plain].all() and torch.equal(mask.any(2).nonzero()[0], plain.any(2).nonzero()[0])
    varied = load(tops, config(), variants=2, mask_variation=1.0)[0]
    assert len({each.key(0) for each in (data, grown, varied)} | {varied.key(len(data))}) == 4
    assert varied[0].mask.bool()[plain].all() and not torch.equal(varied[0].mask, varied[len(data)].mask)
    assert torch.equal(varied[0].mask, load(tops, config(), variants=2, mask_variation=1.0)[0][0].mask)


def test_masks_that_follow_the_body_know_it_from_a_parser(tmp_path: Path) -> None:
    name = write(tmp_path / "data", items(6))
    first, other = (write_parser(tmp_path / folder, ATR) for folder in ("first", "other"))
    file = Path(other) / "model.safetensors"
    save_file({key: value + 0.1 for key, value in load_file(file).items()}, file, {"format": "pt"})
    data, again, others = (load(name, config(), mask_rule="hull", parser=parser)[0] for parser in (first, first, other))
    assert data[0].mask.any() and data.key(0) == again.key(0) != others.key(0)
    assert data.key(0) != load(name, config())[0].key(0)


def test_no_item_is_in_training_and_validation(tmp_path: Path) -> None:
    name = write(tmp_path, items(40))
    train, validation = load(name, config())
    trained, held_back = {pair.pid for pair in train.pairs}, {pair.pid for pair in validation.pairs}
    assert not trained & held_back
    assert (len(trained), len(held_back)) == (36, 4)
    again = load(name, config())[1]
    assert again.pairs == validation.pairs
    other = load(name, config(seed=1))[1]
    assert {pair.pid for pair in other.pairs} != held_back


def test_categories_of_the_base_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kinds = ("Tees_Tanks", "Pants", "Dresses", "Tees_Tanks")
    folder = write(tmp_path, (row(item, "1_front", kinds[item % 4]) for item in range(12)))

    def categories(named: str) -> set[str]:
        config = on_toy(TrainConfig(base_categories=named))
        both = load_deepfashion(DataConfig(dataset_name=folder), MaskConfig(), config, torch.device("cpu"))
        return {data.category(index) for data in both for index in range(len(data))}

    assert categories("none") == {"upper", "lower", "full"}
    with caplog.at_level(logging.INFO):
        assert categories("upper") == {"lower", "full"}
    assert "6 of 12 pairs left out: --base_categories upper" in caplog.text
    assert categories("upper, full") == {"lower"}
    config = on_toy(TrainConfig(base_categories="upper"))
    tops = write(tmp_path / "tops", (row(item, "1_front", "Tees_Tanks") for item in range(4)))
    with pytest.raises(ValueError, match="all of 3 training pairs are of --base_categories upper: give others too"):
        load_deepfashion(DataConfig(dataset_name=tops), MaskConfig(), config, torch.device("cpu"))


def test_the_same_pairs_are_held_back_whatever_is_left_to_the_base() -> None:
    pairs = [Pair(row, row, "flat", ("upper", "lower", "full")[row % 3], f"item {row}") for row in range(60)]

    def held_back(named: str, count: int = 60) -> list[Pair]:
        parts = split_by_item(pairs[:count], lambda pair: pair.pid, config(base_categories=named))
        assert sorted(pair.row for part in parts for pair in part) == list(range(count))
        return parts[1]

    assert held_back("upper") == held_back("none") and len(held_back("none")) == 6
    assert used_parts(pairs, held_back("upper"), config(base_categories="upper"))[1] == [
        pair for pair in held_back("none") if pair.category != "upper"
    ]
    (first,) = held_back("none", 9)
    *left_out, last = held_back(first.category, 9)
    assert {pair.category for pair in left_out} == {first.category} != {last.category}, "one to validate on"


def test_limits_take_every_held_back_item_before_a_second_view(tmp_path: Path) -> None:
    name = write(tmp_path, items(40))
    train, validation = load(name, config(max_train_samples=10, max_validation_samples=4))
    assert (len(train), len(validation)) == (10, 4)
    assert len({pair.pid for pair in validation.pairs}) == 4
    assert len(load(name, config(max_validation_samples=2))[1]) == 2


def test_the_smallest_data_set_has_two_items(tmp_path: Path) -> None:
    train, validation = load(write(tmp_path / "two", items(2)), config())
    assert len(train) == len(validation) == 2
    with pytest.raises(ValueError, match="single item"):
        load(write(tmp_path / "one", items(1)), config())
    with pytest.raises(ValueError, match="no row that shows a person"):
        load(write(tmp_path / "flat", [row(0, "flat")]), config())


def test_a_garment_column_is_used_where_there_is_one(tmp_path: Path) -> None:
    rows = [
        {
            "image": png(Image.new("RGB", (48, 64), "red")),
            "cloth": png(Image.new("RGB", (48, 64), "yellow")),
            "mask": row(0, "front")["mask"],
            "caption": "a man in jeans",
        }
        for _ in range(3)
    ]
    train, validation = load(write(tmp_path, rows, ("image", "cloth", "mask")), config())
    assert {pair.reference for pair in train.pairs} == {"column"}
    sample = train[0]
    assert np.array_equal(sample.garment, fit_picture(Image.new("RGB", (48, 64), "yellow"), *sample.garment.shape[-2:]))
    assert sample.category == "lower"
    assert len(train) + len(validation) == 3


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    rows = [{"photo": png(Image.new("RGB", (4, 4))), "label": "x"}] * 2
    with pytest.raises(ValueError, match="photo, label.*needed are.*images or image.*mask"):
        load(write(tmp_path, rows, ("photo",)), config())


def test_an_empty_set_is_named(tmp_path: Path) -> None:
    write(tmp_path, [row(0, "front")])
    file = tmp_path / "train-00000-of-00001.parquet"
    write_table(read_table(file).slice(0, 0), file)
    with pytest.raises(ValueError, match=r"cannot be read \(it has no rows\)"):
        load(str(tmp_path), config())


def test_columns_of_another_kind_are_named(tmp_path: Path) -> None:
    rows = [{**row(item, "front"), "mask": "mask.png"} for item in range(2)]
    with pytest.raises(ValueError, match=r"the column mask of .* holds Value\('string'\), not pictures"):
        load(write(tmp_path, rows, ("images",)), config())


def test_the_three_ways_to_store_a_data_set_give_the_same_samples(tmp_path: Path) -> None:
    name = write(tmp_path / "parquet", items(6))
    table = load_table(name, None)
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "splits")
    expected = load(name, config())[0]
    for other in ("saved", "splits"):
        data = load(str(tmp_path / other), config())[0]
        assert [data.key(index) for index in range(len(data))] == [expected.key(i) for i in range(len(expected))]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_pictures_in_folders_give_the_same_samples(tmp_path: Path, kind: str) -> None:
    rows = [{**each, "cloth": png(Image.new("RGB", (48, 64), (9, 9, number)))} for number, each in enumerate(items(6))]
    expected = load(write(tmp_path / "parquet", rows, ("images", "mask", "mask_overlay", "cloth")), config())
    name = write_pictures(tmp_path / "my [set] *", rows, kind)
    assert checked_data_path(name) == name
    found = load(name, config(cache_dir=str(tmp_path / "hub files")))
    for data, same in zip(found, expected, strict=True):
        assert [data.key(index) for index in range(len(data))] == [same.key(index) for index in range(len(same))]
        assert torch.equal(data[0].garment, same[0].garment) and data.pair(0).reference == "column"
        assert data.shows_garment_alone(0)
    (Path(name) / f"files/{found[0].pair(0).row:03d}-images.png").write_bytes(png(Image.new("RGB", (48, 64)))["bytes"])
    assert load(name, config(cache_dir=str(tmp_path / "hub files")))[0].key(0) != expected[0].key(0)


def test_folders_of_pictures_bring_their_split(tmp_path: Path) -> None:
    for split, rows in (("train", items(4)), ("Test", [row(item, "front") for item in (7, 8, 9)])):
        write_pictures(tmp_path / split, rows)
    name, settings = str(tmp_path), config(cache_dir=str(tmp_path / "hub files"))
    train, validation = load(name, settings)
    assert {pair.pid[-1] for pair in train.pairs} == set("0123") and len(train.pairs) == 8
    assert {pair.pid[-1] for pair in validation.pairs} == set("789")
    assert all(data[0].mask.any() for data in (train, validation))
    assert len(load(name, replace(settings, max_validation_samples=2))[1]) == 2

    shutil.rmtree(tmp_path / "Test")
    write_pictures(tmp_path / "Test", [row(3, "front")])
    with pytest.raises(ValueError, match=r"1 item \(pid\) both in training and validation, id_00000003: move"):
        load(name, settings)


def test_what_a_folder_of_pictures_lacks_is_named_at_once(tmp_path: Path) -> None:
    file = Path(write_pictures(tmp_path / "set", items(2))) / "metadata.jsonl"
    whole = file.read_text()
    for name in ("../set/files/000-images.png", "files/../../private.png", str(tmp_path / "private.png")):
        file.write_text(whole.replace("files\\/000-images.png", name))
        assert file.read_text() != whole
        with pytest.raises(ValueError, match=r"metadata.jsonl names .*, which lies outside the folder"):
            checked_data_path(str(file.parent))
    file.write_text(whole.replace("000-images", "nowhere"))
    with pytest.raises(ValueError, match=r"names files/nowhere.png, which is not there: add what is missing, or"):
        checked_data_path(str(file.parent))
    file.write_text(whole.replace("000-images", "nowhere").replace("001-images", "gone"))
    with pytest.raises(ValueError, match=r"nowhere.png, which is not there, like 1 more of its 10 pictures: add what"):
        checked_data_path(str(file.parent))
    file.write_text(whole.replace("mask_file_name", "mask"))
    with pytest.raises(ValueError, match=r"has the columns .*: needed are the person as file_name and the garment's"):
        checked_data_path(str(file.parent))
    file.write_text('{"file_name": ')
    with pytest.raises(ValueError, match=r"metadata.jsonl cannot be read \(.*\): check the file"):
        checked_data_path(str(file.parent))
    file.unlink()
    table = file.with_suffix(".csv")
    for text, message in (
        ("file_name;mask_file_name\na.png;b.png\n", r"has the columns file_name;mask_file_name: needed are, between"),
        ("file_name,mask_file_name,file_name\na,b,c\n", r"has the column file_name twice: leave one of them out"),
        ("file_name,mask_file_name\n", r"has no row below its first"),
        (
            "file_name,mask_file_name\nJos\u00e9.png,b.png\n",
            r"names pictures in another encoding than UTF-8: save it in UTF-8",
        ),
    ):
        table.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=message):
            checked_data_path(str(file.parent))
    table.unlink()
    with pytest.raises(ValueError, match=r"neither parquet files nor .*: name another, or put persons into image/"):
        checked_data_path(str(file.parent))
    (file.parent / "train" / "cloth").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="is laid out as VITON-HD, DressCode or image/ and cloth/: give it as --dataroot"
    ):
        checked_data_path(str(file.parent))


def test_keys_follow_content_and_settings(tmp_path: Path) -> None:
    rows = items(4)
    data = load(write(tmp_path / "a", rows), config())[0]
    keys = [data.key(index) for index in range(len(data))]
    # Rows of one pose and reference hold the same pictures here, and so have the same key.
    assert len(set(keys)) == len({(data.table[pair.row]["pose"], pair.reference) for pair in data.pairs})
    assert data[0].key == keys[0]

    changed = data.pairs[0].row
    rows[changed] = {**rows[changed], "images": png(Image.new("RGB", (48, 64), (254, 0, 0)))}
    other = load(write(tmp_path / "b", rows), config())[0]
    differing = [index for index in range(len(data)) if other.key(index) != keys[index]]
    assert differing == [index for index, pair in enumerate(data.pairs) if pair.row == changed]

    larger = load(str(tmp_path / "a"), TrainConfig(height=128, width=48))[0]
    assert all(larger.key(index) != keys[index] for index in range(len(data)))


def test_paths_in_rows_are_not_followed(tmp_path: Path) -> None:
    """They might lead anywhere on the machine."""
    rows = items(4)
    Image.new("RGB", (48, 64), "red").save(tmp_path / "private.png")
    for each in rows:
        each["images"] = {"bytes": None, "path": str(tmp_path / "private.png")}
    data = load(write(tmp_path / "data", rows), config())[0]
    with pytest.raises(UnreadablePicture, match="it is no picture of a known format"):
        data[0]


def test_a_mask_of_another_size_is_resized_and_told(tmp_path: Path) -> None:
    rows = items(4)
    for each in rows[::2]:
        each["mask"] = png(Image.open(io.BytesIO(each["mask"]["bytes"])).reduce(2))
    data = load(write(tmp_path, rows), config())[0]
    told = [data[index].mask_was_resized for index in range(len(data))]
    assert told == [pair.row % 2 == 0 for pair in data.pairs] and len(set(told)) == 2
    assert all(data[index].mask.any() for index in range(len(data)))


def test_colours_that_cannot_be_kept_are_said(tmp_path: Path) -> None:
    """A file where a folder should be stands for a disk on which nothing can be written."""
    name = write(tmp_path / "data", items(4))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "colours").write_text("")
    with pytest.raises(ValueError, match="cannot be written .* make room, or put the cache elsewhere"):
        load(name, config(data_cache_dir=str(tmp_path / "cache")))


@pytest.mark.parametrize("fault", ["truncated", "missing", "black mask", "huge", "mask of another shape"])
def test_an_unreadable_row_is_named(tmp_path: Path, fault: str) -> None:
    rows = [row(item, "front") for item in range(2)]
    for each in rows:
        if fault == "truncated":
            noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
            each["images"] = {"bytes": png(Image.fromarray(noise))["bytes"][:2000], "path": None}
        elif fault == "huge":  # 200 megapixels, which would take 600 MB
            each["images"] = png(Image.new("1", (20_000, 10_000)))
        elif fault == "mask of another shape":
            each["mask"] = png(Image.new("L", (64, 48), 255))
        elif fault == "missing":
            each["images"] = {"bytes": b"", "path": None}
        else:
            each["mask"] = png(Image.new("L", (48, 64)))
    train, _ = load(write(tmp_path, rows), config())
    with pytest.raises(UnreadablePicture, match=r"row \d \(id_0000000\d\)"):
        train[0]


@pytest.mark.parametrize(
    ("cloth_type", "caption", "category"),
    [
        ("Blouses_Shirts", "", "upper"),
        ("Leggings", "", "lower"),
        ("Rompers_Jumpsuits", "", "full"),
        ("Dresses", "a woman in a skirt", "full"),
        ("Denim", "a man in a black t-shirt and grey jeans", "lower"),
        ("Denim", "a woman in a denim jacket and white trousers", "upper"),
        ("Denim", "a woman in a denim dress", "full"),
        ("Denim", "", "lower"),
        ("Suiting", "a man in a blue blazer", "upper"),
        ("Suiting", "a man in grey pants", "lower"),
        (1, "", "upper"),
        (2, "", "lower"),
        ("3", "", "full"),
        ("tees / tanks", "", "upper"),
        ("UPPER-BODY", "", "upper"),
        ("denim", "a man in jeans", "lower"),
        (" ", "a woman in a gown", "full"),
        (None, "a woman in a long gown", "full"),
        (None, None, "upper"),
    ],
)
def test_categories(cloth_type: object, caption: str, category: str) -> None:
    assert category_of(cloth_type, caption) == category


def test_an_unknown_cloth_type_is_refused() -> None:
    with pytest.raises(ValueError, match="cloth_type Hats is not known: rename it to one of .*Denim"):
        category_of("Hats", "")


def test_flat_is_matched_as_a_word() -> None:
    assert is_flat("flat") and is_flat("04_1_flat") and is_flat("Flat")
    assert not is_flat("flats_front") and not is_flat("") and not is_flat(None)


def test_split_is_a_tenth_and_at_least_one() -> None:
    pairs = [Pair(row, row, "same_picture", "upper", f"item {row}") for row in range(50)]
    assert pairs[5].name == "row 5 (item 5)" and replace(pairs[5], pid="row 5").name == "row 5"
    train, validation = split_by_item(pairs, lambda pair: pair.pid, config(max_validation_samples=64))
    assert (len(train), len(validation)) == (45, 5)
    assert len(split_by_item(pairs[:9], lambda pair: pair.pid, config(max_validation_samples=64))[1]) == 1


def test_real_photographs(tmp_path: Path) -> None:
    """With TRYON_REAL_PHOTOS naming a folder of photographs in the hub's layout: every pair builds."""
    import os

    folder = os.environ.get("TRYON_REAL_PHOTOS")
    if not folder:
        pytest.skip("TRYON_REAL_PHOTOS names no folder of photographs")
    train, validation = load(folder, config())
    for data in (train, validation):
        for index in range(len(data)):
            sample = data[index]
            assert 0.02 < sample.mask.mean() < 0.9
    assert PROJECT not in Path(folder).resolve().parents, "photographs stay out of the project"
