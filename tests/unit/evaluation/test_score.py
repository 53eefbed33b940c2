"""What is made of measured cases: means, intervals, differences, sets of pictures."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ListSource, make_sample
from tryon.data.sample import to_picture
from tryon.evaluation.compare import changed_outside, difference_of, interval, mean_of, summarise, tables, worst_grid
from tryon.evaluation.perceptual import Perception, frechet_distance, kernel_distance
from tryon.evaluation.score import BASE, LINES, HeldOut, as_tensor, held_out, measured, picture_path, read_lines

NOTHING = Perception(None, None, {})
MODELS = {BASE: "base", "abc": "LoRA"}


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(5).normal(3, 2, 400)
    low, high = interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert interval(values) == (low, high)
    assert interval(np.full(7, 2.5)) == (2.5, 2.5)


def test_means_and_differences_of_few_cases() -> None:
    assert mean_of([None, None]) is None
    assert mean_of([1.0, None]) == {"mean": 1.0, "low": None, "high": None, "cases": 1}
    better = [(2.0 + index, 1.0 + index) for index in range(6)]
    assert difference_of(better) == {"mean": 1.0, "low": 1.0, "high": 1.0, "cases": 6, "marked": True}
    assert not difference_of(better[:5])["marked"], "five of one sign say little"
    assert not difference_of([*better[:3], *((b, a) for a, b in better[:3])])["marked"]
    assert difference_of([(1.0, None), (None, 1.0)]) is None and not difference_of([(2.0, 1.0)])["marked"]


def test_what_is_measured_of_a_case() -> None:
    sample = make_sample(3)
    case = HeldOut(ListSource([sample]), [0], [0])[0]
    found = measured(case, to_picture(sample.person))
    assert found["changed_outside"] == 0 and found["psnr"] == found["psnr_whole"] == pytest.approx(100)
    assert found["ssim"] == pytest.approx(1) and found["ssim_whole"] == pytest.approx(1)
    assert "length_right" not in found and 0 <= found["on_edges"] <= 1
    changed = {}
    for where, (row, column) in {"inside": (50, 20), "outside": (2, 2)}.items():
        pixels = sample.person.clone()
        pixels[:, row, column] *= -1
        changed[where] = to_picture(pixels)
    inside, outside = (measured(case, picture) for picture in changed.values())
    assert inside["changed_outside"] == 0 and inside["psnr"] < inside["psnr_whole"] < 60
    assert outside["changed_outside"] == pytest.approx(1 / (sample.mask == 0).sum().item())
    assert outside["psnr"] == pytest.approx(100) and outside["psnr_whole"] < 60
    unknown = measured(replace(case, truth=None, ends_right=lambda picture: picture.shape[1] == 96), changed["inside"])
    assert set(unknown) == {"changed_outside", "on_edges", "length_right"} and unknown["length_right"] == 1


@dataclass(frozen=True)
class Written:
    folder: Path
    cases: dict[str, HeldOut]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Nine measured pairs: the base's results are noisier than the LoRA's, but for lower garments."""
    data = ListSource([make_sample(seed) for seed in range(9)])
    cases = {"paired": HeldOut(data, list(range(9)), list(range(9)))}
    generator = torch.Generator().manual_seed(0)
    with (tmp_path / LINES).open("w") as file:
        for name in MODELS:
            (tmp_path / "pictures" / name).mkdir(parents=True)
            for index in range(9):
                case = cases["paired"][index]
                noisy = (name == BASE) != (case.sample.category == "lower")
                noise = (0.5 if noisy else 0.1) * torch.randn(case.truth.shape, generator=generator)
                picture = to_picture(case.truth + noise * case.sample.mask)
                picture.save(picture_path(tmp_path, name, "paired", index))
                found = {"category": case.sample.category, **measured(case, picture)}
                file.write(json.dumps({"model": name, "kind": "paired", "case": index, **found}) + "\n")
        file.write('{"model": "abc", "kind"')  # cut short
    return Written(tmp_path, cases)


def test_categories_and_differences(written: Written) -> None:
    lines = read_lines(written.folder)
    assert len(lines) == 18
    results = summarise(written.folder, MODELS, written.cases, NOTHING)["paired"]
    assert {category: result["cases"] for category, result in results.items()} == {
        "upper": 3,
        "lower": 3,
        "full": 3,
        "all": 9,
    }
    gains = [lines["abc", "paired", index]["psnr"] - lines[BASE, "paired", index]["psnr"] for index in range(9)]
    difference = results["all"]["LoRA - base"]["psnr"]
    assert difference["mean"] == pytest.approx(np.mean(gains)) and (difference["low"], difference["high"]) == interval(
        np.array(gains)
    )
    assert results["lower"]["LoRA - base"]["psnr"]["high"] < -5 < 5 < results["upper"]["LoRA - base"]["psnr"]["low"]
    assert "lpips" not in results["all"]["base"] and "fid" not in results["all"]["base"]
    assert changed_outside({"paired": results}) == []
    results["full"]["LoRA"]["changed_outside"] = 0.01
    assert changed_outside({"paired": results}) == ["LoRA"]
    table = tables({"paired": results}, MODELS)
    assert table[3] == "| category | model | PSNR, mask | SSIM, mask | PSNR | SSIM |" and len(table) == 5 + 12
    assert f"| all (9) | base | {results['all']['base']['psnr']['mean']:.2f} [" in table[-3]
    assert "] (3)" not in "".join(table)
    results["all"]["base"]["ssim"] |= {"mean": 0.5, "low": 0.25, "high": 0.75, "cases": 3}
    assert "| 0.500 [0.250, 0.750] (3) |" in tables({"paired": results}, MODELS)[-3], "it is not that of all nine"


def test_networks_see_the_results_and_what_is_real(written: Written) -> None:
    def features(pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)

    seen = Perception(lambda one, two: (one - two).abs().mean((1, 2, 3)), features, {})
    results = summarise(written.folder, MODELS, written.cases, seen)["paired"]
    truths = [written.cases["paired"][index].truth for index in range(9)]
    pictures = [as_tensor(Image.open(picture_path(written.folder, "abc", "paired", index))) for index in range(9)]
    both = [features(torch.stack(each)).numpy() for each in (pictures, truths)]
    assert results["all"]["LoRA"]["fid"]["mean"] == pytest.approx(frechet_distance(*both), rel=1e-5)
    assert results["all"]["LoRA"]["kid"]["mean"] == pytest.approx(1000 * kernel_distance(*both), rel=1e-5)
    far = np.mean([(one - two).abs().mean().item() for one, two in zip(pictures, truths, strict=True)])
    assert results["all"]["LoRA"]["lpips"]["mean"] == pytest.approx(far, rel=1e-5)
    assert "LPIPS | FID | KID x 1000 |" in tables({"paired": results}, MODELS)[3]


def test_the_worst_cases_come_first(written: Written) -> None:
    grid = worst_grid(written.folder, MODELS, "paired", written.cases["paired"], rows=3)
    lines = read_lines(written.folder)
    worst = min(range(9), key=lambda index: lines["abc", "paired", index]["psnr"])
    assert grid.width == 24 + 6 * (64 + 4) and grid.height == 24 + 3 * (96 + 4)
    garment, truth = (grid.crop((x, 24, x + 64, 24 + 96)) for x in (24, 24 + 5 * 68))
    case = written.cases["paired"][worst]
    assert garment.tobytes() == to_picture(case.sample.garment).tobytes()
    assert truth.tobytes() == to_picture(case.truth).tobytes()


def test_the_garments_of_others() -> None:
    data = ListSource([make_sample(seed) for seed in (0, 3, 6, 1, 9, 2)])  # upper, but for the fourth and the last
    items = ["a", "a", "b", "c", "b", "d"]
    cases = held_out(data, None, lambda index: items[index])
    assert cases["paired"].persons == cases["paired"].garments == [0, 1, 2, 4, 3, 5]
    assert (cases["unpaired"].persons, cases["unpaired"].garments) == ([0, 1, 2, 4], [2, 2, 0, 0])
    case = cases["unpaired"][1]
    assert torch.equal(case.sample.person, data[1].person) and torch.equal(case.sample.garment, data[2].garment)
    assert case.truth is None and torch.equal(cases["paired"][1].truth, data[1].person)
    assert held_out(data, 1, lambda index: items[index]).keys() == {"paired"}
    with pytest.raises(ValueError, match="there are no held-out pairs"):
        held_out(ListSource([]), None, str)
