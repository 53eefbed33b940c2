"""Label maps of people: by a tiny SegFormer of the real class, by the toy's, and from files; masks that follow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from tryon.data.category import CATEGORIES, MaskRule
from tryon.data.human_parser import ATR, UNSURE, Parser, find_worn, load_parser, mask_of_labels, parse, read_label_map
from tryon.data.masks import PARTS, agnostic_mask
from tryon.data.sample import to_picture
from tryon.toy.examples import DrawnData

CPU = torch.device("cpu")


def write_parser(folder: Path, labels: tuple[str, ...]) -> str:
    """A random SegFormer with these labels, as the hub has them."""
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8,
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def test_a_segformer_labels_every_pixel(tmp_path: Path) -> None:
    parser = load_parser(write_parser(tmp_path, ATR), None, CPU)
    person = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8))
    labels = parse(parser, person)
    assert labels.shape == (80, 60) and labels.max() < len(PARTS)
    assert torch.equal(labels, parse(parser, person))
    worn = torch.zeros(1, 80, 60, dtype=torch.bool)
    worn[:, 20:50, 15:45] = True
    hidden = agnostic_mask(worn, "upper", MaskRule("hull"), labels)
    assert hidden[worn].all()


def test_labels_are_matched_by_their_names(tmp_path: Path) -> None:
    turned = load_parser(write_parser(tmp_path, ATR[::-1]), None, CPU)
    assert turned.parts.tolist() == load_parser(write_parser(tmp_path / "atr", ATR), None, CPU).parts.tolist()[::-1]
    assert PARTS[turned.parts[ATR[::-1].index("Left-arm")]] == "arms"


def test_a_parser_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    file = Path(write_parser(tmp_path / "parser", ATR)) / "model.safetensors"
    first = load_parser(str(file.parent), None, CPU)
    state = load_file(file)
    save_file({name: value + 1 for name, value in state.items()}, file, {"format": "pt"})
    assert load_parser(str(file.parent), None, CPU).fingerprint != first.fingerprint
    save_file({name: value for name, value in state.items() if "classifier" not in name}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 2 of its weights"):
        load_parser(str(file.parent), None, CPU)


def test_other_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has the labels car, road: name a SegFormer with ATR labels"):
        load_parser(write_parser(tmp_path, ("road", "car", "Hat")), None, CPU)
    with pytest.raises(ValueError, match="cannot be loaded"):
        (tmp_path / "empty").mkdir()
        load_parser(str(tmp_path / "empty"), None, CPU)


def test_label_maps_are_read_at_the_size_of_their_person(tmp_path: Path) -> None:
    pixels = np.zeros((40, 30), np.uint8)
    pixels[20:, :15], pixels[20:, 15:] = ATR.index("Pants"), ATR.index("Right-leg")
    Image.fromarray(pixels).save(tmp_path / "map.png")
    labels = read_label_map(tmp_path / "map.png", (60, 80))
    assert labels.shape == (80, 60)
    assert [PARTS[labels[row, column]] for row, column in ((0, 0), (79, 0), (79, 59))] == [
        "background",
        "lower",
        "legs",
    ]
    coloured = Image.fromarray(pixels).convert("P")
    coloured.save(tmp_path / "palette.png")
    assert torch.equal(read_label_map(tmp_path / "palette.png", (60, 80)), labels)
    Image.fromarray(pixels + 200).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"other.png is no label map: its pixels must be 0 to 17"):
        read_label_map(tmp_path / "other.png", (60, 80))


def test_masks_of_drawn_people_need_no_mask(drawn_parser: Parser) -> None:
    people = DrawnData(12, 9, CATEGORIES, 192, 144)
    for exact in map(people.__getitem__, range(len(people))):
        labels = parse(drawn_parser, to_picture(exact.person))
        found = np.array(mask_of_labels(labels, exact.category, MaskRule())) > 0
        truth = exact.mask[0].numpy() > 0
        assert (found & truth).sum() / (found | truth).sum() >= 0.9, exact.category
        assert found.any(1).argmax() <= truth.any(1).argmax(), "no strip of the old garment above it"


def test_people_are_found_in_landscapes(drawn_parser: Parser) -> None:
    """Which a parser would squeeze into the shape of a portrait."""
    people = DrawnData(9, 5, CATEGORIES, 192, 144)
    for index, exact in enumerate(map(people.__getitem__, range(len(people)))):
        portrait, left = to_picture(exact.person), 20 * index
        landscape = Image.new("RGB", (330, 192), portrait.getpixel((1, 1)))
        landscape.paste(portrait, (left, 0))
        truth = np.zeros((192, 330), bool)
        truth[:, left : left + 144] = exact.mask[0].numpy() > 0
        found = np.array(mask_of_labels(parse(drawn_parser, landscape), exact.category, MaskRule())) > 0
        assert (found & truth).sum() / (found | truth).sum() >= 0.85, index


def test_a_mask_follows_the_body_by_the_labels_that_found_the_garment(drawn_parser: Parser) -> None:
    person = to_picture(DrawnData(3, 9, CATEGORIES, 192, 144)[1].person)
    labels = parse(drawn_parser, person)
    expected = agnostic_mask(find_worn(labels, "lower"), "lower", MaskRule("parsing"), labels, UNSURE)
    mask = mask_of_labels(labels, "lower", MaskRule("parsing"))
    assert mask.mode == "L" and set(np.unique(mask)) == {0, 255}
    assert np.array_equal(np.array(mask) > 0, expected[0].numpy())


def test_what_is_not_worn_is_not_found() -> None:
    labels = torch.zeros(100, 80, dtype=torch.long)
    with pytest.raises(
        ValueError, match="sees no garment on this person: give the person's picture if this is the garment's"
    ):
        find_worn(labels, "upper")
    labels[20:60, 20:60] = PARTS.index("full")
    labels[80:82, 10:13] = PARTS.index("lower")  # a speck
    with pytest.raises(
        ValueError,
        match="no lower-body garment on this person: give the person's picture if .* or choose the category full if",
    ):
        find_worn(labels, "lower")
    labels[90, 5:9] = PARTS.index("full")
    worn = torch.zeros(1, 100, 80, dtype=torch.bool)
    worn[:, 20:60, 20:60] = True
    assert torch.equal(find_worn(labels, "full"), worn)
    labels[60:90, 20:60] = PARTS.index("lower")
    labels[20:60, 20:60] = PARTS.index("upper")
    worn[:, 60:90, 20:60] = True
    assert torch.equal(find_worn(labels, "full"), worn), "a dress takes the place of both"
    labels[20:60, 20:60] = 0
    with pytest.raises(ValueError, match="no full-body garment on this person: .* choose the category lower"):
        find_worn(labels, "full")
