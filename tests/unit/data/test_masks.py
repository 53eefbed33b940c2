"""The agnostic mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tryon.data.category import CATEGORIES, Category, MaskRule, MaskVariation
from tryon.data.masks import PARTS, _dilated, agnostic_mask, needed_mask, varied_mask
from tryon.toy.drawing import draw_person
from tryon.toy.examples import label_map
from tryon.toy.world import Garment, Person, random_garment, random_outfit, random_person


def garment(top: int, bottom: int, left: int, right: int, height: int = 100, width: int = 60) -> torch.Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("category", ["upper", "lower", "full"])
def test_covers_the_garment_and_nothing_above_it(category: str) -> None:
    worn = garment(30, 60, 20, 40)
    hidden = agnostic_mask(worn, category)
    assert hidden[worn].all()
    assert not hidden[:, :30].any()
    assert hidden.dtype == torch.bool


@pytest.mark.parametrize("category", ["lower", "full"])
def test_does_not_tell_short_from_long(category: str) -> None:
    short, long = garment(40, 55, 20, 40), garment(40, 95, 20, 40)
    assert torch.equal(agnostic_mask(short, category), agnostic_mask(long, category))
    assert agnostic_mask(short, category)[0, -1].any()


def test_upper_leaves_the_legs() -> None:
    assert not agnostic_mask(garment(20, 50, 20, 40), "upper")[0, -30:].any()


def dressed(person: Person, outfit: tuple[Garment, ...], category: Category) -> tuple[torch.Tensor, torch.Tensor]:
    """What of the person, standing frontally, is garment, and what head."""
    masks = draw_person(person, outfit, "front", 192, 144).masks
    return tuple(torch.from_numpy(np.asarray(masks[name]) > 0)[None] for name in (category, "head"))


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one & other).sum() / (one | other).sum()).item()


def test_shorts_trousers_and_skirts_are_hidden_alike() -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        person, (worn, top) = random_person(rng, "WOMEN"), random_outfit(rng, "lower")
        others = [random_garment(rng, "lower") for _ in range(5)]
        first, *rest = (agnostic_mask(dressed(person, (lower, top), "lower")[0], "lower") for lower in (worn, *others))
        overlaps = [overlap(first, mask) for mask in rest]
        assert min(overlaps) >= 0.95
        seen |= {garment.kind for garment in (worn, *others)}
    assert seen == {"shorts", "trousers", "skirt"}


@pytest.mark.parametrize("category", ["upper", "full"])
def test_short_and_long_sleeves_are_hidden_alike(category: Category) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        person, (worn, *others) = random_person(rng), random_outfit(rng, category)
        short, long = (dressed(person, (replace(worn, sleeve=sleeve), *others), category)[0] for sleeve in (0.25, 1.0))
        assert overlap(agnostic_mask(short, category), agnostic_mask(long, category)) >= 0.95


@pytest.mark.parametrize("category", ["upper", "lower", "full"])
def test_on_people_the_garment_is_hidden_and_the_face_is_not(category: Category) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        person = replace(random_person(rng), hair_style="short")
        worn, head = dressed(person, random_outfit(rng, category), category)
        hidden = agnostic_mask(worn, category)
        assert hidden[worn].all()
        assert (head & hidden).sum() <= 0.05 * head.sum(), "the chin above a high collar at most"


@pytest.mark.parametrize("category", ["upper", "lower", "full"])
def test_commutes_with_resizing_and_mirroring(category: Category) -> None:
    rng = np.random.default_rng(3)
    worn, _ = dressed(random_person(rng), random_outfit(rng, category), category)
    hidden = agnostic_mask(worn, category)
    assert overlap(agnostic_mask(worn.flip(2), category), hidden.flip(2)) >= 0.97
    double = [np.asarray(Image.fromarray(mask[0].numpy()).resize((288, 384))) for mask in (worn, hidden)]
    larger, expected = (torch.from_numpy(mask.copy())[None] for mask in double)
    assert overlap(agnostic_mask(larger, category), expected) >= 0.97


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        agnostic_mask(torch.zeros(1, 8, 8, dtype=torch.bool), "upper")


def labelled(person: Person, outfit: tuple[Garment, ...], category: Category) -> tuple[torch.Tensor, torch.Tensor]:
    """What of the person, standing frontally, is garment, and the map of its parts."""
    drawing = draw_person(person, outfit, "front", 192, 144)
    return torch.from_numpy(np.asarray(drawing.masks[category]) > 0)[None], label_map(drawing)


def is_part(labels: torch.Tensor, *parts: str) -> torch.Tensor:
    return torch.isin(labels, torch.tensor([PARTS.index(part) for part in parts]))[None]


BY_BODY = [MaskRule("hull"), MaskRule("parsing")]


@pytest.mark.parametrize("rule", BY_BODY, ids=lambda rule: rule.name)
@pytest.mark.parametrize("category", ["upper", "lower", "full"])
def test_rules_that_follow_the_body_hide_the_garment_and_leave_what_is_protected(
    rule: MaskRule, category: Category
) -> None:
    rng = np.random.default_rng(5)
    for _ in range(8):
        worn, labels = labelled(random_person(rng, "WOMEN"), random_outfit(rng, category), category)
        hidden = agnostic_mask(worn, category, rule, labels)
        assert hidden[worn].all()
        limbs = {"upper": ["arms"], "lower": ["legs"], "full": ["arms", "legs"]}[category]
        assert hidden[is_part(labels, *limbs)].float().mean() >= 0.97
        left_alone = ["head", "hands", "shoes", *{"upper": ["lower"], "lower": ["upper"], "full": []}[category]]
        assert not hidden[is_part(labels, *left_alone) & ~worn].any()
        assert hidden.float().mean() < agnostic_mask(worn, category).float().mean(), "tighter than the rectangle"


@pytest.mark.parametrize("rule", BY_BODY, ids=lambda rule: rule.name)
def test_rules_that_follow_the_body_do_not_tell_short_from_long(rule: MaskRule) -> None:
    rng = np.random.default_rng(6)
    for _ in range(8):
        person, (worn, top) = random_person(rng), random_outfit(rng, "lower")
        masks = []
        for length in (0.4, 1.0):
            straight = replace(worn, kind="trousers", length=length, fit=0.0, flare=0.0)
            masks.append(agnostic_mask(*args(labelled(person, (straight, top), "lower"), "lower", rule)))
        assert overlap(*masks) >= 0.95
        worn, *others = random_outfit(rng, "upper")
        masks = []
        for sleeve in (0.25, 0.95):
            straight = replace(worn, sleeve=sleeve, fit=0.0, flare=0.0)
            masks.append(agnostic_mask(*args(labelled(person, (straight, *others), "upper"), "upper", rule)))
        assert overlap(*masks) >= 0.95


def args(seen: tuple[torch.Tensor, torch.Tensor], category: Category, rule: MaskRule) -> tuple:
    return seen[0], category, rule, seen[1]


def test_a_hull_fills_what_parsing_leaves_open() -> None:
    worn, labels = torch.zeros(1, 100, 60, dtype=torch.bool), torch.zeros(100, 60, dtype=torch.long)
    worn[:, 30:40, 15:45] = True
    labels[40:90, 15:22] = labels[40:90, 38:45] = PARTS.index("legs")
    labels[5:7, 5:7] = PARTS.index("legs")  # a speck
    hull, parsing = (agnostic_mask(worn, "lower", MaskRule(name), labels) for name in ("hull", "parsing"))
    assert hull[0, 60, 30] and not parsing[0, 60, 30]
    assert hull[0, 60, 18] and parsing[0, 60, 18] and not hull[0, 95, 30]
    assert not hull[0, 5, 5]


@pytest.mark.parametrize("name", ["rectangle", "hull", "parsing"])
def test_offsets_reach_further(name: str) -> None:
    rng = np.random.default_rng(7)
    worn, labels = labelled(random_person(rng), random_outfit(rng, "upper"), "upper")
    plain = agnostic_mask(worn, "upper", MaskRule(name), labels)
    height, width = plain.shape[1:]
    for side, (axis, size, sign) in {"top": (1, height, -1), "bottom": (1, height, 1), "left": (2, width, -1),
                                     "right": (2, width, 1)}.items():  # fmt: skip
        larger = agnostic_mask(worn, "upper", MaskRule(name, **{side: 0.05}), labels)
        assert larger[plain].all() and larger.sum() > plain.sum()
        edges = [mask.any(3 - axis).nonzero()[:, 1] for mask in (plain, larger)]
        moved = [int(edge.max() if sign > 0 else edge.min()) for edge in edges]
        if name == "rectangle":
            assert moved[1] - moved[0] == sign * round(0.05 * size)
    if name != "rectangle":  # however far they reach, what is protected stays
        far = agnostic_mask(worn, "upper", MaskRule(name, top=0.3, bottom=0.3), labels)
        assert not far[is_part(labels, "head", "lower", "hands") & ~worn].any()


@pytest.mark.parametrize("name", ["rectangle", "hull", "parsing"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_where_the_garment_is_unsure_the_mask_begins_higher(name: str, category: Category) -> None:
    """By so much, whatever lies there but the head: a strip of the old garment would tell of it."""
    rng = np.random.default_rng(8)
    worn, labels = labelled(random_person(rng), random_outfit(rng, category), category)
    rows = worn.any(2).flatten().nonzero().flatten()
    cut = worn.clone()
    cut[:, : rows[0] + 3] = False  # what a parser missed
    sure, unsure = (agnostic_mask(cut, category, MaskRule(name), labels, height) for height in (0.0, 4 / worn.shape[1]))
    assert (unsure & sure == sure).all() and unsure.sum() < 1.2 * sure.sum()
    missed = worn & ~cut & ~is_part(labels, "head")
    assert unsure[missed].all()
    if name == "rectangle":
        assert not sure[missed].any()
        assert torch.equal(unsure[:, 4:], sure[:, 4:] | sure.roll(-4, 1)[:, 4:])
    else:
        assert not (unsure & ~sure & is_part(labels, "head")).any()


def test_dilation_reaches_each_pixel_within_its_distances() -> None:
    """A pixel is in the dilated mask where the mask has one that lies at most so far below, above, right and left."""
    rng = np.random.default_rng(9)
    for _ in range(100):
        height, width = rng.integers(1, 40, 2)
        mask = torch.from_numpy(rng.random((1, height, width)) < rng.choice([0, 0.01, 0.3, 0.95, 1]))
        up, down, left, right = (int(reach) for reach in rng.integers(0, 50, 4))
        expected = torch.zeros_like(mask)
        for row, column in mask[0].nonzero().tolist():
            rows = slice(max(0, row - up), row + down + 1)
            expected[:, rows, max(0, column - left) : column + right + 1] = True
        assert torch.equal(_dilated(mask, up, down, left, right), expected)


def test_rules_that_follow_the_body_need_to_know_it() -> None:
    with pytest.raises(ValueError, match="the mask rule hull needs to know the person's parts: name a parser"):
        agnostic_mask(torch.ones(1, 8, 8, dtype=torch.bool), "upper", MaskRule("hull"))


def edges(mask: torch.Tensor) -> list[int]:
    """The first and the last row, and the first and the last column, of a mask."""
    return [int(mask.any(axis).nonzero()[end, 1]) for axis in (2, 1) for end in (0, -1)]


def test_masks_grow_on_each_side_by_itself_and_stay_below_the_face() -> None:
    rng = np.random.default_rng(10)
    person = replace(random_person(rng), hair_style="short")
    for category in CATEGORIES:
        worn, labels = labelled(person, random_outfit(rng, category), category)
        head = is_part(labels, "head")
        for name, known in (("rectangle", None), ("rectangle", labels), ("parsing", labels)):
            rule = MaskRule(name)
            own = agnostic_mask(worn, category, rule, labels)
            assert torch.equal(varied_mask(worn, category, rule, known, MaskVariation(), rng), own)
            grown = [varied_mask(worn, category, rule, known, MaskVariation(0.15), rng) for _ in range(8)]
            assert all(mask[own].all() and not (mask & ~own & head).any() for mask in grown)
            apart = [sorted({end[side] for end in map(edges, grown)}) for side in range(4)]
            upwards = known is not None or category == "lower"
            assert len(apart[0]) > 3 if upwards else apart[0] == [edges(own)[0]]
            assert all(len(apart[side]) > 3 for side in (2, 3))


@pytest.mark.parametrize("name", ["rectangle", "hull", "parsing"])
def test_masks_that_vary_are_larger_than_their_rule_and_never_over_the_face(name: str) -> None:
    rng, rule = np.random.default_rng(11), MaskRule(name)
    worn, labels = labelled(replace(random_person(rng), hair_style="short"), random_outfit(rng, "upper"), "upper")
    own, head = agnostic_mask(worn, "upper", rule, labels), is_part(labels, "head")
    draws = [np.random.default_rng(seed) for seed in range(12)]
    masks = [varied_mask(worn, "upper", rule, labels, MaskVariation(share=1.0), each) for each in draws]
    assert all(mask[own].all() and mask.sum() > own.sum() and not (mask & ~own & head).any() for mask in masks)
    again = varied_mask(worn, "upper", rule, labels, MaskVariation(share=1.0), np.random.default_rng(0))
    assert torch.equal(again, masks[0])
    rectangle = agnostic_mask(worn, "upper")
    if name == "rectangle":  # by hand: its corners are round
        top, bottom, left, right = edges(masks[0])
        corners = [masks[0][0, row, column] for row in (top, bottom) for column in (left, right)]
        assert not any(corners) and not any(torch.equal(mask, masks[0]) for mask in masks[1:])
    else:
        assert 1 < sum(torch.equal(mask, own | (rectangle & ~head)) for mask in masks) < 11
    some = [varied_mask(worn, "upper", rule, labels, MaskVariation(share=0.5), rng) for _ in range(20)]
    assert 3 < sum(torch.equal(mask, own) for mask in some) < 17


def test_of_a_mask_only_old_and_new_garment_and_what_moved_is_needed() -> None:
    mask, before = torch.zeros(1, 200, 100, dtype=torch.bool), torch.zeros(200, 100, dtype=torch.long)
    mask[:, 20:180, 10:90] = True
    before[40:160, 30:34] = before[40:160, 66:70] = PARTS.index("arms")
    after = before.clone()
    before[50:90, 35:65], after[50:120, 40:60] = PARTS.index("upper"), PARTS.index("upper")
    before[120:180, 40:60] = after[120:180, 40:60] = PARTS.index("lower")
    after[:, 66:70], after[40:160, 72:78] = 0, PARTS.index("arms")  # this arm is elsewhere
    after[40:160, 34] = PARTS.index("arms")  # this one's edge is not
    after[10:15, 50:60] = PARTS.index("upper")  # outside of the mask
    needed = needed_mask(mask, "upper", before, after, 0.0)[0]
    expected = (before == PARTS.index("upper")) | (after == PARTS.index("upper"))
    expected[40:160, 66:70] = expected[40:160, 72:78] = True
    assert torch.equal(needed, expected & mask[0])
    wider = needed_mask(mask, "upper", before, after, 0.02)
    assert torch.equal(wider, _dilated(needed[None], 4, 4, 4, 4) & mask)
