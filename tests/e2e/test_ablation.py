"""The bench for recipes: a step of a variant, and nothing done twice."""

import json
from pathlib import Path

import pytest

from benchmarks.ablation_run import LENGTHS
from benchmarks.toy_ablation import main, read_settings
from tryon.data.category import CATEGORIES

pytestmark = pytest.mark.e2e


def test_a_variant_is_scored_once(tmp_path: Path, data_cache: Path) -> None:
    flags = ["--variants", "mask_tight,try_off_fifth", "--seeds", "1", "--steps", "1", "--pairs", "3", "--cases", "1",
             "--output_dir", str(tmp_path), "--data_cache_dir", str(data_cache)]  # fmt: skip
    main(flags)
    tight, both_tasks = (tmp_path / f"{name}-0.json" for name in ("mask_tight", "try_off_fifth"))
    for file, kinds in ((tight, ("paired", "unpaired")), (both_tasks, ("paired", "unpaired", "try-off"))):
        scores = {f"{category} {kind}" for category in CATEGORIES for kind in kinds}
        results = json.loads(file.read_text())["results"]
        assert results.keys() - {"try-off"} == scores | {f"{score} change" for score in scores} | {LENGTHS}
        assert ("try-off" in results) == ("try-off" in kinds)
    written = tight.stat().st_mtime_ns
    main(flags)
    assert tight.stat().st_mtime_ns == written


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="--variants rank_5 is not known: name some of recipe"):
        read_settings(["--variants", "rank_5"])
