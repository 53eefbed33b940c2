"""The verdict on a LoRA, by made-up differences from the base, and what LoRAs are called."""

from pathlib import Path
from typing import Any

import pytest

from tryon.evaluation.compare import markdown, page, tables
from tryon.runs import lora_file
from tryon.scores import STARS, names_of, short_tables, stars_in, verdict


def difference(mean: float, half: float, cases: int = 32) -> dict[str, Any]:
    """A difference whose interval reaches this far to either side."""
    marked = cases >= 6 and abs(mean) > half
    return {"mean": mean, "low": mean - half, "high": mean + half, "cases": cases, "marked": marked}


def scores(kind: str = "paired", **differences: dict[str, Any]) -> dict[str, Any]:
    """Of one kind of pairs; differences: by category."""
    known = {category: {"cases": 32, "base": {"psnr": difference(20.0, 1.0)}, "LoRA - base": each}
             for category, each in differences.items()}  # fmt: skip
    return {kind: known}


def both(psnr: dict[str, Any], ssim: dict[str, Any]) -> dict[str, Any]:
    return {"psnr": psnr, "ssim": ssim}


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        (both(difference(2.0, 0.5), difference(0.1, 0.02)),
         "better than the base on upper (PSNR +2.00 [+1.50, +2.50])"),
        (both(difference(-0.2, 0.1), difference(0.1, 0.2)),
         "worse than the base on upper (PSNR -0.20 [-0.30, -0.10])"),
        (both(difference(2.0, 0.5), difference(-0.1, 0.02)),
         "mixed on upper (PSNR +2.00 [+1.50, +2.50], SSIM -0.100 [-0.120, -0.080])"),
        (both(difference(2.0, 2.5), difference(-0.1, 0.2)),
         "no clear difference on upper (PSNR +2.00 [-0.50, +4.50])"),
        ({"psnr": difference(0.1, 0.5), "lpips": difference(-0.1, 0.02)},
         "better than the base on upper (LPIPS -0.100 [-0.120, -0.080])"),
    ],
    ids=["better", "worse", "mixed", "within the spread", "LPIPS is better where it is lower"],
)  # fmt: skip
def test_a_category_is_judged_by_the_differences_that_count(differences: dict[str, Any], expected: str) -> None:
    found = verdict(scores(upper=differences, all=differences), "LoRA")
    assert found == f"on 32 paired pairs {expected}"


def test_what_improved_is_told_from_what_got_worse() -> None:
    better, worse = {"psnr": difference(2.0, 0.5)}, {"psnr": difference(-2.0, 0.5)}
    found = verdict(scores(upper=worse, lower=better, full={"psnr": difference(0.0, 0.5)}, all=better), "LoRA")
    clauses = found.removeprefix("on 32 paired pairs ").split("; ")
    assert [clause.partition(" (")[0] for clause in clauses] == [
        "better than the base on lower", "worse than the base on upper", "no clear difference on full",
    ]  # fmt: skip
    assert "), all (PSNR +2.00 [+1.50, +2.50])" in clauses[0]


def test_of_few_pairs_nothing_is_said() -> None:
    found = scores(upper={"psnr": difference(2.0, 0.5, cases=5)}, all={"psnr": difference(2.0, 0.5)})
    found["paired"]["upper"]["cases"] = 5
    assert verdict(found, "LoRA") == "on 32 paired pairs too few to say on upper (PSNR +2.00 [+1.50, +2.50])"
    found["paired"]["all"]["cases"] = 1
    assert verdict(found, "LoRA") == "1 paired pair cannot say whether it is better than the base: look at the pictures"


def test_unpaired_pairs_count_first_where_their_truth_is_known() -> None:
    paired = scores(upper={"psnr": difference(2.0, 0.5)}, all={"psnr": difference(2.0, 0.5)})
    unpaired = scores("unpaired", upper={"psnr": difference(-2.0, 0.5)}, all={"psnr": difference(-2.0, 0.5)})
    assert verdict({**paired, **unpaired}, "LoRA").startswith("on 32 unpaired pairs ")
    without_truth = {"unpaired": {"all": {"cases": 32, "base": {}, "LoRA - base": {}}}}
    assert verdict({**paired, **without_truth}, "LoRA").startswith("on 32 paired pairs ")
    assert verdict(without_truth, "LoRA") == verdict({}, "LoRA") == verdict(paired, "another") == ""


def test_loras_are_called_by_their_runs_where_several_are_compared() -> None:
    def names(*files: Path) -> list[str]:
        headings = {f"LoRA {number}": {"file": str(file)} for number, file in enumerate(files, 1)}
        base, *found = names_of(headings).values()
        assert base == "base" and list(names_of(headings))[1:] == list(headings)
        return found

    def of(run: str, step: int = 10) -> Path:
        return lora_file(Path("/runs") / run / f"checkpoint-{step}")

    hub = Path("/hub/models--somebody--hats/snapshots/0123/pytorch_lora_weights.safetensors")
    assert names(of("shirts"), of("skirts"), hub, Path("/x/soft.safetensors"), Path("/shared") / hub.name) == [
        "shirts", "skirts", "hats", "soft", "shared",
    ]  # fmt: skip
    assert names(of("shirts"), of("shirts", 20), of("skirts")) == ["shirts, step 10", "shirts, step 20", "skirts"]
    assert names(of("deepfashion_full_20261127_203311"), of("a")) == ["deepfash…1127_203311", "a"]
    assert names(of("a/shirts"), of("b/shirts"), of("base")) == ["LoRA 1", "LoRA 2", "LoRA 3"], "else one of two"
    assert names(of("shirts")) == ["LoRA 1"], "its heading says it"


def test_one_mark_with_one_explanation_is_before_differences_that_count() -> None:
    loras = {f"LoRA {number}": {"file": f"/{name}.safetensors", "sha256": "", "step": 9}
             for number, name in enumerate(("better", "same"), 1)}  # fmt: skip
    columns = {"LoRA 1 - base": {"psnr": difference(2.0, 0.5)}, "LoRA 2 - base": {"psnr": difference(0.1, 0.5)}}
    results = {"paired": {"all": {"cases": 32, "base": {"psnr": difference(20.0, 1.0)}, **columns}}}
    head, row = short_tables(results, names_of(loras))["paired"]
    assert head[2:] == ["base", "better - base", "same - base"]
    assert row[3:] == ["*+2.00 [+1.50, +2.50]", "+0.10 [-0.40, +0.60]"]
    assert markdown(tables(results, names_of(loras))["paired"])[3:] == [
        "|  | better - base | *+2.00 [+1.50, +2.50] |", "|  | same - base | +0.10 [-0.40, +0.60] |",
    ]  # fmt: skip
    text = page("drawings", loras, [], {}, results)
    assert STARS in text and "**" not in text and stars_in({}) == ""
