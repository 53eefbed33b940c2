"""Trainings on VITON-HD and DressCode folders, by the launcher and by train_flux_inpaint.py's own command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECT
from launch import environment, launch, metrics
from test_folders import write_dresscode, write_viton_hd
from train_flux_inpaint import main
from tryon.app.training import read_run
from tryon.config import TOY_NOTICE
from tryon.flux.lora_header import read_facts
from tryon.runs import LAUNCHER_LOCK, LOCK_FILE

pytestmark = pytest.mark.e2e


def test_the_launcher_trains_on_a_viton_hd_folder(tmp_path: Path, data_cache: Path) -> None:
    root, run = write_viton_hd(tmp_path / "viton hd", size=(96, 128)), tmp_path / "run"
    flags = [
        "--toy", f"--dataroot={root}", "--gradient_accumulation_steps", "1", "--lora_rank", "4",
        "--num_validation_images", "1", "--data_cache_dir", data_cache, "--num_evaluation_samples", "1",
    ]  # fmt: skip
    done = launch(*flags, "--max_train_steps", "2", "--run_name", "run", runs=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (run / "train.log").read_text()
    assert f"finished: {run}" in log and log.count(TOY_NOTICE) == 1
    assert (run / "warnings.log").read_text().count("warning: only 3 pairs to train on") == 1
    scores = json.loads((run / "evaluation.json").read_text())["scores"]
    assert list(scores) == ["paired"] and list(scores["paired"]) == ["upper", "all"]
    assert (run / "evaluation-paired.png").is_file() and not (run / "evaluation-unpaired.png").exists()
    assert json.loads((run / "data.json").read_text()) == {"training": {"upper": 3}, "validation": {"upper": 3}}
    assert set(metrics(run)) == {1, 2}
    assert (run / "checkpoint-2/transformer/pytorch_lora_weights.safetensors").is_file()

    # A start that is refused once the data are there changes nothing but the log.
    before = contents(run)
    refused = launch(*flags, "--max_train_samples", "2", "--resume_from_checkpoint", "latest", runs=tmp_path)
    assert refused.returncode == 1 and "data was 3 samples" in refused.stdout and "and is 2 samples" in refused.stdout
    assert contents(run) == before and log in (run / "train.log").read_text()
    assert read_run(run).state == "finished"


def contents(run: Path) -> dict[str, bytes]:
    """The files of a run but for its log and locks."""
    names = {"train.log", LOCK_FILE, LAUNCHER_LOCK}
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*")
            if file.is_file() and file.name not in names}  # fmt: skip


def test_the_loop_trains_on_a_dresscode_folder(tmp_path: Path, data_cache: Path) -> None:
    root, run = write_dresscode(tmp_path / "dresscode", 2), tmp_path / "run"
    flags = [
            "--toy", "--dataroot", str(root), "--max_train_steps", "1", "--gradient_accumulation_steps", "1",
            "--lora_rank", "4", "--num_validation_images", "1", "--data_cache_dir", str(data_cache),
            "--output_dir", str(run), "--mask_rule", "hull", "--mask_left", "0.05", "--mask_growth", "0.1",
        ]  # fmt: skip
    main(flags)
    assert set(metrics(run, "validation/loss_full")) == {0, 1}
    facts = read_facts(run / "checkpoint-1/transformer/pytorch_lora_weights.safetensors")
    assert facts.mask_rule == "hull" and facts.mask_offsets == (0, 0, 0.05, 0)

    # As after a stop between the last step and the scores.
    kept = contents(run)
    go_on = [*flags, "--num_evaluation_samples", "1", "--resume_from_checkpoint", "latest"]
    main(go_on)
    assert json.loads((run / "evaluation.json").read_text())["loras"]["LoRA"]["step"] == 1
    after = contents(run)
    assert {name for name in kept if after[name] != kept[name]} == {"report.html"}, "nothing is trained again"
    with pytest.raises(ValueError, match="is at step 1 of 1 already: give more --max_train_steps"):
        main(go_on)


def test_a_wrong_folder_is_refused_at_once(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "train_flux_inpaint.py", "--toy"],
        cwd=PROJECT, env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    given = "a folder laid out as VITON-HD, DressCode, or image/ and cloth/ alone"
    assert refused.stderr == f"error: --dataroot is missing: give {given}\n"
    assert not list(tmp_path.glob("viton_hd_lora*"))
