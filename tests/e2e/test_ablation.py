"""The bench for recipes: a step of a variant, and nothing done twice."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.ablation_run import LENGTHS, VariantData
from benchmarks.ablation_variants import KINDS, VARIANTS
from benchmarks.toy_ablation import main, read_settings
from tryon.data.category import CATEGORIES
from tryon.data.sample import fit_picture
from tryon.toy.drawing import draw_person
from tryon.toy.examples import DrawnData

pytestmark = pytest.mark.e2e


@pytest.mark.slow
def test_a_variant_is_scored_once(tmp_path: Path, data_cache: Path) -> None:
    flags = ["--variants", "try_off_fifth", "--seeds", "1", "--steps", "1", "--pairs", "3", "--cases", "1",
             "--output_dir", str(tmp_path), "--data_cache_dir", str(data_cache)]  # fmt: skip
    main(flags)
    file = tmp_path / "try_off_fifth-0.json"
    results = json.loads(file.read_text())["results"]
    scores = {f"{category} {kind}" for category in CATEGORIES for kind in KINDS} | {"lower try-off", "full try-off"}
    assert results.keys() == scores | {f"{score} change" for score in scores} | {LENGTHS, "try-off"}
    written = file.stat().st_mtime_ns
    main(flags)
    assert file.stat().st_mtime_ns == written


def test_a_quarter_of_the_garments_is_worn() -> None:
    drawings = DrawnData(200, 0, CATEGORIES, 96, 72)
    data, recipe = (VariantData(drawings, VARIANTS[name]) for name in ("worn_reference_quarter", "recipe"))
    worn = [index for index in range(len(data)) if data.key(index) != recipe.key(index)]
    assert 30 < len(worn) < 70
    example = drawings.example(worn[0])
    photo = draw_person(example.person, example.outfit, "additional", 96, 72).image
    assert torch.equal(data[worn[0]].garment, fit_picture(photo, 96, 72))
    assert torch.equal(data[worn[0]].person, recipe[worn[0]].person)


def test_masks_vary_and_hide_no_less() -> None:
    drawings = DrawnData(20, 0, CATEGORIES, 96, 72)
    data, recipe = (VariantData(drawings, VARIANTS[name]) for name in ("mask_varied", "recipe"))
    masks = [(data[index].mask, recipe[index].mask) for index in range(len(data))]
    assert all((varied >= plain).all() for varied, plain in masks)
    assert sum(torch.equal(varied, plain) for varied, plain in masks) < 5


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="--variants rank_5 is not known: name some of recipe"):
        read_settings(["--variants", "rank_5"])
