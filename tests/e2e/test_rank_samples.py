"""The pairs of a run by their loss, on the toy: bad ones come first."""

import csv
import shutil
from pathlib import Path

import pytest

from deepfashion_training import rank_samples
from test_folders import write_own
from train_flux_inpaint import main as train

pytestmark = pytest.mark.e2e


def ranked(run: Path) -> list[dict[str, str]]:
    with (run / "ranking.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_people_beside_garments_that_they_do_not_wear_come_first(
    tmp_path: Path, data_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = tmp_path / "own", tmp_path / "run"
    write_own(folder)
    train(
        [
            "--toy", "--dataroot", str(folder), "--max_train_steps", "1", "--gradient_accumulation_steps", "1",
            "--lora_rank", "4", "--num_validation_images", "1", "--data_cache_dir", str(data_cache),
            "--output_dir", str(run),
        ]
    )  # fmt: skip
    rank_samples.main([str(run), "--worst", "2"])
    pairs = ranked(run)
    losses = [float(pair["loss"]) for pair in pairs]
    assert [pair["rank"] for pair in pairs] == [str(rank) for rank in range(1, len(pairs) + 1)]
    assert 4 <= len(pairs) < 6, "those that were trained on, none that was held back"
    assert losses == sorted(losses, reverse=True) and losses[-1] > 0
    page = (run / "ranking.html").read_text()
    assert page.count("<figure>") == len(pairs) and page.count("<img") == 3 * len(pairs)
    assert page.index("<h2>Worst</h2>") < page.index(f"1: loss {losses[0]:.4f}") < page.index("<h2>Typical</h2>")
    assert "these are not the pairs" not in capsys.readouterr().out

    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"trained on, .*/own, are not there: name their place with --data"):
        rank_samples.main([str(run)])
    one, two = sorted(pair["pair"].removesuffix(".png") for pair in pairs)[-2:]
    shutil.move(moved / "cloth" / f"{one}.JPG", tmp_path / "kept.JPG")
    shutil.move(moved / "cloth" / f"{two}.JPG", moved / "cloth" / f"{one}.JPG")
    shutil.move(tmp_path / "kept.JPG", moved / "cloth" / f"{two}.JPG")
    rank_samples.main([str(run / "checkpoint-1"), "--data", str(moved), "--noise_levels", "2"])
    assert {pair["pair"] for pair in ranked(run)[:2]} == {f"{one}.png", f"{two}.png"}
    said = capsys.readouterr().out
    assert "these are not the pairs that" in said and " 1     upper     me " in said


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is in no run with a config.json: name the folder of a run"):
        rank_samples.main([str(run)])
    with pytest.raises(ValueError, match="has no checkpoint: name a run"):
        rank_samples.main([str(tmp_path)])
