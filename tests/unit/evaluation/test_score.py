"""What is made of measured cases: means, intervals, differences, sets of pictures."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ListSource, make_sample
from tryon.data.category import CATEGORIES
from tryon.data.sample import to_picture
from tryon.evaluation.cases import BASE, FILL, HeldOut, held_out_cases, paired_cases, try_off_case, try_offs_of
from tryon.evaluation.compare import (
    case_grid,
    changed_outside,
    difference_of,
    findings,
    interval,
    markdown,
    mean_of,
    overview,
    page,
    summarise,
    tables,
    worst_cases,
)
from tryon.evaluation.perceptual import Perception, frechet_distance, kernel_distance
from tryon.evaluation.score import (
    as_tensor,
    filled,
    measured,
    open_folder,
    perceive,
    saved_picture,
)
from tryon.scores import LINES, aligned, picture_path, read_lines, short_tables

MODELS = {BASE: "base", "abc": "LoRA"}
NAMES = {"base": "base", "LoRA": "LoRA"}


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
    found = measured(case, sample.person)
    assert found["changed_outside"] == 0 and found["psnr"] == found["psnr_whole"] == pytest.approx(100)
    assert found["ssim"] == pytest.approx(1) and found["ssim_whole"] == pytest.approx(1)
    assert "length_right" not in found and 0 <= found["on_edges"] <= 1
    changed = {}
    for where, (row, column) in {"inside": (50, 20), "outside": (2, 2)}.items():
        pixels = sample.person.clone()
        pixels[:, row, column] *= -1
        changed[where] = pixels
    inside, outside = (measured(case, result) for result in changed.values())
    assert inside["changed_outside"] == 0 and inside["psnr"] < inside["psnr_whole"] < 60
    assert outside["changed_outside"] == pytest.approx(1 / (sample.mask == 0).sum().item())
    assert outside["psnr"] == pytest.approx(100) and outside["psnr_whole"] < 60
    unknown = measured(replace(case, truth=None, ends_right=lambda picture: picture.shape[1] == 96), changed["inside"])
    assert set(unknown) == {"category", "changed_outside", "on_edges", "length_right"} and unknown["length_right"] == 1


def test_a_try_off_is_measured_where_its_product_picture_shows_the_garment() -> None:
    sample = make_sample(0)
    garment = torch.ones_like(sample.garment)
    garment[:, 30:60, 20:50] = -0.25
    case = try_off_case(replace(sample, garment=garment))
    assert case.sample.try_off and case.sample.mask.sum() == 30 * 30 and (case.sample.mask[:, 30:60, 20:50] == 1).all()
    assert torch.equal(filled(case.sample), garment)
    found = measured(case, garment)
    assert found["psnr"] == found["psnr_whole"] == pytest.approx(100)
    assert not found.keys() & {"changed_outside", "on_edges"}, "nothing has to stay as it is"
    garment = garment.clone()
    garment[:, :10] = 0
    found = measured(case, garment)
    assert found["psnr"] == pytest.approx(100) and found["psnr_whole"] < 30
    assert (try_off_case(replace(sample, garment=torch.ones_like(garment))).sample.mask == 1).all()

    class HalfCut(ListSource):
        def shows_garment_alone(self, index: int) -> bool:
            return index % 2 == 1

    held_out = paired_cases(HalfCut([make_sample(seed) for seed in range(4)]), None)
    cases = try_offs_of(held_out, CATEGORIES)["try-off"]
    assert len(cases) == 2 and cases.name(1) == "sample 3" and cases[0].sample.key == "sample 1"
    assert cases.key(0) != held_out.key(1)
    assert len(try_offs_of(held_out, ["lower"])["try-off"]) == 1 and try_offs_of(held_out, ["full"]) == {}
    assert try_offs_of(replace(held_out, persons=[0], garments=[0]), CATEGORIES) == {}


def test_a_mask_is_filled_with_the_garments_mean_colour() -> None:
    sample = make_sample(0)
    flat = replace(sample, garment=torch.full_like(sample.garment, -0.25))
    hidden = sample.mask.bool().expand(3, -1, -1)
    assert (filled(flat)[hidden] == -0.25).all() and torch.equal(filled(flat)[~hidden], sample.person[~hidden])
    white = replace(sample, garment=torch.ones_like(sample.garment))
    assert (filled(white)[hidden] == 1).all()


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
                picture.save(picture_path(tmp_path, (name, "paired", index)))
                what = {"model": name, "kind": "paired", "case": index, "key": cases["paired"].key(index)}
                file.write(json.dumps({**what, **measured(case, as_tensor(picture))}) + "\n")
        file.write('{"model": "abc", "kind"')  # cut short
    return Written(tmp_path, cases)


def test_categories_and_differences(written: Written) -> None:
    lines = read_lines(written.folder)
    assert len(lines) == 18
    results = summarise(lines, MODELS, written.cases)["paired"]
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
    table = markdown(tables({"paired": results}, NAMES)["paired"])
    assert table[0] == "| category | model | PSNR, mask | SSIM, mask | SSIM |" and len(table) == 2 + 12
    assert results["all"]["LoRA - base"]["psnr_whole"]["mean"] == pytest.approx(np.mean(gains)), "said by PSNR, mask"
    assert f"| all (9) | base | {results['all']['base']['psnr']['mean']:.2f} [" in table[-3]
    assert "] (3)" not in "".join(table)
    results["all"]["base"]["ssim"] |= {"mean": 0.5, "low": 0.25, "high": 0.75, "cases": 3}
    results["all"]["LoRA - base"]["psnr_whole"]["mean"] += 0.1
    table = markdown(tables({"paired": results}, NAMES)["paired"])
    assert table[0] == "| category | model | PSNR, mask | SSIM, mask | PSNR | SSIM |", "it says something else"
    assert "| 0.500 [0.250, 0.750] (3) |" in table[-3], "not that of all nine"


def test_tables_for_a_terminal_are_aligned(written: Written) -> None:
    lines = read_lines(written.folder)
    results = summarise(lines, MODELS, written.cases)
    rows = overview(results, MODELS)
    assert rows[0] == ["PSNR in dB, SSIM", "base", "LoRA"]
    assert [row[0] for row in rows[1:]] == ["upper, paired", "lower, paired", "full, paired"]
    psnr, ssim = (results["paired"]["full"]["LoRA"][each]["mean"] for each in ("psnr", "ssim"))
    assert rows[-1][-1] == f"{psnr:.2f} {ssim:.3f}"
    assert aligned([["a", "wide", "c"], ["longer", "1", "20.00"]]) == ["a       wide      c", "longer     1  20.00"]
    table = aligned(short_tables(results, NAMES)["paired"], texts=2)
    assert table[0].split() == ["category", "measure", "base", "LoRA", "LoRA", "-", "base"]
    assert len(table) == 1 + 4 * 3 and not any("|" in line or "**" in line for line in table)
    names = ["measure", *(4 * ["PSNR, mask", "SSIM, mask", "SSIM"])]
    assert len({line.index(name) for line, name in zip(table, names, strict=True)}) == 1
    assert len({len(line) for line in table}) == 1, "numbers end where their headings do"
    unknown = {"paired": {"all": {"cases": 1, "base": {"changed_outside": 0.0}}}}
    assert overview(unknown, MODELS) == [rows[0]]
    assert short_tables(unknown, NAMES) == {"paired": [["category", "measure", "base"]]}
    text = page("drawings", {}, ["LoRA, on 9 pairs: so and so."], {}, unknown)
    assert "Nothing was computed: there is no truth." in text and "\nLoRA, on 9 pairs: so and so.\n" in text


def test_several_loras_are_told_apart_only_beyond_the_spread(written: Written) -> None:
    lines = read_lines(written.folder)
    other = {("def", "paired", index): lines["abc", "paired", index] for index in range(9)}
    models = {BASE: "base", "abc": "LoRA 1", "def": "LoRA 2"}

    def lead(better: float) -> str:
        moved = {place: {**line, "psnr": line["psnr"] + better} for place, line in other.items()}
        both = {**lines, **moved}
        names = {"base": "base", "LoRA 1": "shirts", "LoRA 2": "skirts"}
        first, *of_each = findings(both, summarise(both, models, written.cases), models, names, written.cases)
        assert [said.partition(":")[0] for said in of_each] == ["shirts", "skirts"]
        return first

    assert lead(0.5) == "skirts has the highest PSNR: +0.50 against shirts."
    assert lead(0.0) == "shirts has the highest PSNR: +0.00 against skirts, no clear difference."
    assert len(findings(lines, summarise(lines, MODELS, written.cases), MODELS, NAMES, written.cases)) == 1


def test_bounds_have_no_difference_from_the_base(written: Written) -> None:
    lines = read_lines(written.folder)
    of_fill = {(FILL, "paired", index): lines["abc", "paired", index] for index in range(9)}
    of_all = summarise({**lines, **of_fill}, {**MODELS, FILL: "fill"}, written.cases)["paired"]["all"]
    assert of_all["fill"] == of_all["LoRA"] and set(of_all) == {
        "cases", "on_edges", "base", "LoRA", "LoRA - base", "fill"
    }  # fmt: skip


def test_a_folder_goes_on_with_more_cases_and_refuses_others(written: Written, tmp_path: Path) -> None:
    settings = {"seed": 0}
    open_folder(written.folder, settings, written.cases)
    data = written.cases["paired"].data
    for count in (3, 12):
        samples = [*data.samples, *(make_sample(seed) for seed in range(9, 12))][:count]
        open_folder(written.folder, settings, {"paired": paired_cases(ListSource(samples), None)})
    with pytest.raises(ValueError, match="holds scores of other settings: seed was 0 and is 1: give the same, or name"):
        open_folder(written.folder, {"seed": 1}, written.cases)
    others = {"paired": paired_cases(ListSource([make_sample(0), *(make_sample(seed) for seed in range(4, 9))]), None)}
    with pytest.raises(
        ValueError, match=r"holds scores of other data \(paired case 1 is sample 4 now\): give the same"
    ):
        open_folder(written.folder, settings, others)
    (written.folder / "settings.json").write_text('{"num_samples": 32}')
    with pytest.raises(ValueError, match="holds scores of an older version: name another folder with --output_dir"):
        open_folder(written.folder, settings, written.cases)


def test_networks_see_the_results_and_what_is_real(written: Written) -> None:
    def features(pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)

    first = written.cases["paired"][0].sample

    def read(picture: Image.Image, mask: torch.Tensor | None) -> list[str]:
        """The first garment alone is printed, and its results show half of the word inside the mask."""
        if mask is None:
            return ["word"] * (picture == to_picture(first.garment))
        assert torch.equal(mask, first.mask)
        return ["or"]

    seen = Perception(lambda one, two: (one - two).abs().mean((1, 2, 3)), features, {}, read=read)
    lines = read_lines(written.folder)
    features_of = perceive(written.folder, lines, MODELS, written.cases, seen)
    results = summarise(lines, MODELS, written.cases, features_of)["paired"]
    truths = [written.cases["paired"][index].truth for index in range(9)]
    pictures = [as_tensor(saved_picture(written.folder, ("abc", "paired", index))) for index in range(9)]
    both = [features(torch.stack(each)).numpy() for each in (pictures, truths)]
    assert results["all"]["LoRA"]["fid"]["mean"] == pytest.approx(frechet_distance(*both), rel=1e-5)
    assert results["all"]["LoRA"]["kid"]["mean"] == pytest.approx(1000 * kernel_distance(*both), rel=1e-5)
    far = np.mean([(one - two).abs().mean().item() for one, two in zip(pictures, truths, strict=True)])
    assert results["all"]["LoRA"]["lpips"]["mean"] == pytest.approx(far, rel=1e-5)
    assert results["all"]["LoRA"]["text"] == {"mean": 0.5, "low": None, "high": None, "cases": 1}
    assert tables({"paired": results}, MODELS)["paired"][0][-4:] == ["LPIPS", "text, %", "FID", "KID x 1000"]
    nothing = Perception(None, None, {}, read=lambda picture, mask: [])
    perceive(written.folder, read_lines(written.folder), MODELS, written.cases, nothing)
    assert nothing.missing == {"text": "no text was read on any garment"}


def test_the_worst_cases_come_first(written: Written) -> None:
    lines, source = read_lines(written.folder), written.cases["paired"]
    picked = worst_cases(lines, MODELS, "paired", 9)
    scores = [lines["abc", "paired", index]["psnr"] for index in picked]
    assert scores == sorted(scores) and sorted(picked) == list(range(9))
    without = {place: {"category": "upper"} for place in lines}
    assert worst_cases(without, MODELS, "paired", 9) == list(range(9)), "there is no truth"
    pictures = {place: saved_picture(written.folder, place) for place in lines}
    grid = case_grid(source, "paired", picked[:3], MODELS, lines, pictures.__getitem__)
    assert grid.width == 24 + 6 * (64 + 4) and grid.height == 24 + 3 * (96 + 4)
    garment, truth = (grid.crop((x, 24, x + 64, 24 + 96)) for x in (24, 24 + 5 * 68))
    run = "deepfashion_lora_quick_test_20261127_120000"
    named = case_grid(source, "paired", picked[:3], {"base": "base", "abc": run}, lines, pictures.__getitem__)
    head = np.asarray(named.convert("L"))[: named.height - 3 * (96 + 4), 24 + 4 * 68 : 24 + 5 * 68]
    inked = (head < 128).any(1)
    assert len(head) > 60 and inked.sum() > 4 * 7, "a run's name has several lines of letters that can be read"
    case = source[picked[0]]
    assert garment.tobytes() == to_picture(case.sample.garment).tobytes()
    assert truth.tobytes() == to_picture(case.truth).tobytes()


def test_the_garments_of_others() -> None:
    data = ListSource([make_sample(seed) for seed in (0, 3, 6, 1, 9, 2)])  # upper, but for the fourth and the last
    items = ["a", "a", "b", "c", "b", "d"]
    cases = held_out_cases(data, None, lambda index: items[index])
    assert cases["paired"].persons == cases["paired"].garments == [0, 3, 5, 1, 2, 4], "the categories take turns"
    assert (cases["unpaired"].persons, cases["unpaired"].garments) == ([0, 1, 2, 4], [2, 2, 0, 0])
    case = cases["unpaired"][1]
    assert torch.equal(case.sample.person, data[1].person) and torch.equal(case.sample.garment, data[2].garment)
    assert case.truth is None and torch.equal(cases["paired"][1].truth, data[3].person)
    with pytest.raises(ValueError, match="there are no held-out pairs"):
        held_out_cases(ListSource([]), None, str)


def test_more_cases_begin_with_the_same() -> None:
    data = ListSource([make_sample(seed) for seed in (0, 3, 6, 1, 9, 2, 12, 5)])
    whole = held_out_cases(data, None, str)
    for count in (1, 2, 4):
        fewer = held_out_cases(data, count, str)
        for kind in ("paired", "unpaired"):
            keys = [[each.key(index) for index in range(len(each))] for each in (fewer[kind], whole[kind])]
            assert keys[0] == keys[1][: len(keys[0])] and len(keys[0]) > 0
        assert paired_cases(data, count) == fewer["paired"]
    assert len(held_out_cases(data, 1, str)["paired"]) == 3
