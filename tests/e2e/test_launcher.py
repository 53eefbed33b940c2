"""The launcher end to end on the toy: what a run leaves, what is refused, how it stops."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open

from deepfashion_training.train_deepfashion_lora import main
from known_lines import QUICK_TEST, unknown_lines
from launch import (
    SMALL,
    TOKEN,
    assert_same_run,
    driver_of,
    interrupt,
    launch,
    launch_on_a_terminal,
    metrics,
    only_run,
    processes_with,
    read_until,
    wait_for_no_process_with,
    wait_until,
)
from tryon.report import read_scores
from tryon.runs import newest_checkpoint, step_of
from tryon.toy.model import toy_name

pytestmark = pytest.mark.e2e


def test_a_quick_test_leaves_what_the_readme_lists(tmp_path: Path, data_cache: Path) -> None:
    """Called from another directory, with runs and data below paths with spaces; then refused."""
    runs, elsewhere = tmp_path / "my runs", tmp_path / "some where"
    elsewhere.mkdir()
    done = launch(
        "--quick-test", "--max_train_steps", "3", "--checkpointing_steps", "2", "--validation_steps", "2",
        "--max_train_samples", "8", "--max_validation_samples", "8", "--num_evaluation_samples", "1",
        "--train_batch_size", "2",
        "--data_cache_dir", data_cache, runs=runs, cwd=elsewhere,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TOY MODEL" in done.stdout and "finished: " in done.stdout
    assert done.stderr == ""
    assert unknown_lines(done.stdout, QUICK_TEST) == []

    run = only_run(runs)
    assert run.name.startswith("deepfashion_lora_quick_test_20")
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("logs/")}
    assert len(events) == 1
    checkpoint_files = {
        "manifest.json", "optimizer.json", "optimizer.safetensors", "trainer_state.json",
        "transformer/pytorch_lora_weights.safetensors",
    }  # fmt: skip
    assert files - events == {
        ".lock", ".launcher.lock", "launch.json",
        "config.json", "metrics.jsonl", "train.log", "evaluation.json", "evaluation-paired.png",
        "environment.json",
        "data.json", "persons.json",
        "report.html",
        "evaluation-unpaired.png",
        "validation/step-000000.png", "validation/step-000002.png", "validation/step-000003.png",
        *(f"checkpoint-{step}/{name}" for step in (2, 3) for name in checkpoint_files),
    }  # fmt: skip

    log = (run / "train.log").read_bytes()
    assert b"\r" not in log and b"\x1b" not in log
    assert log.decode().splitlines() == done.stdout.splitlines()
    assert set(metrics(run)) == {1, 2, 3}
    assert set(metrics(run, "validation/loss_lower")) == {0, 2, 3}
    pairs = json.loads((run / "data.json").read_text())
    assert list(pairs) == ["training, garment from flat", "validation"]
    assert sum(pairs["training, garment from flat"].values()) == 8
    settings = json.loads((run / "config.json").read_text())
    assert settings["toy"] is True and settings["profile"] == "quick_test"
    for name in ("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path", "dataset_name"):
        assert Path(settings[name]).is_dir(), "paths recorded must outlive the run"
    with safe_open(run / "checkpoint-3/transformer/pytorch_lora_weights.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["tryon_lora"])
    assert facts == {
        "base": toy_name(), "transformer": toy_name(),
        "prompt": "category", "max_sequence_length": 16, "height": 192, "width": 144,
        "mask_rule": "rectangle", "profile": "quick_test", "step": 3, "mask_offsets": [0, 0, 0, 0],
        "mask_parser": None, "num_inference_steps": 2, "guidance_scale": 30.0,
        "base_categories": ["upper"],
    }  # fmt: skip
    grid = Image.open(run / "validation/step-000003.png")
    assert grid.width > 5 * 144 and grid.height > 4 * 192
    scores = dict(read_scores(run))
    assert len(scores) == 6
    for row, columns in scores.items():
        assert list(columns) == ["base", "LoRA", "fill", "vae"]
        assert f"{row} " in done.stdout and f"{columns['vae']['psnr']:.2f}" in done.stdout

    for file in run.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), f"a secret in {file}"
    assert TOKEN not in done.stdout

    over = launch("--quick-test", "--output_dir", run, "--data_cache_dir", data_cache, runs=runs)
    assert over.returncode == 1
    assert "holds checkpoints of another run" in over.stderr


def test_a_plan_is_printed_and_nothing_is_left_behind(
    tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver without the launcher, in this process, here and below."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    main(["--h100", "--plan", "--gpu_memory", "24", "--price_per_hour", "2", "--data_cache_dir", str(data_cache)])
    shown, said = capsys.readouterr()
    assert said == "loading torch, diffusers and transformers ...\n"
    assert "the size of FLUX-Fill is assumed, because xiaozaa/catvton-flux-alpha is not a folder here" in shown
    assert "planned, data: SaffalPoosh/deepFashion-with-masks, of the hub: at most 40,658 pairs to train on\n" in shown
    assert "GB of 24.7 GB usable" in shown and "frozen weights: nf4; every block recomputes" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "rank"),
    [
        ((), 64),
        # In bf16, as on the GPU, and with activation checkpointing. Small: some CPUs have no instructions for bf16.
        (("--h100", "--mixed_precision", "bf16", "--gradient_checkpointing", "full", "--height", "64", "--width", "48",
          "--num_inference_steps", "1", "--train_batch_size", "1"), 128),
    ],
    ids=["full", "h100"],
)  # fmt: skip
def test_the_profiles_for_gpus_run_on_the_toy(
    flags: tuple[str, ...], rank: int, tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    AcceleratorState._reset_state()  # a process has one precision otherwise
    main(["--toy", "--max_train_steps", "1", *SMALL, "--data_cache_dir", str(data_cache), *flags])
    AcceleratorState._reset_state()
    run = only_run(tmp_path)
    assert run.name.startswith(f"deepfashion_lora_{'h100' if flags else 'full'}_")
    settings = json.loads((run / "config.json").read_text())
    assert settings["lora_rank"] == settings["lora_alpha"] == rank
    assert (run / "checkpoint-1" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--h100"], "the h100 profile needs a CUDA device and none was found"),
        ([], "the full profile needs a CUDA device and none was found"),
        (["--quick-test", "--learning_rat", "1"], "unknown flag --learning_rat (did you mean --learning_rate?)"),
        (["--quick-test", "--dataset_name", "no/such/folder"], "neither a folder nor a hub name"),
        (["--quick-test", "--dataset_name", "."], "holds neither parquet files nor a saved data set"),
        (["--quick-test", "--lora_rank", "0", "--height", "5"], "--lora_rank 0 is too small"),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(flags: list[str], message: str, tmp_path: Path) -> None:
    if not any("--quick-test" in flag for flag in flags) and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    empty, runs = tmp_path / "empty", tmp_path / "runs"
    empty.mkdir()
    done = launch(*flags, runs=runs, cwd=empty)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not runs.exists()


def test_help_lists_launcher_and_driver(tmp_path: Path) -> None:
    done = launch("--help", runs=tmp_path / "runs")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--quick-test", "--learning_rate", "--dataroot FOLDER"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_is_interrupted_and_killed_goes_on_exactly(tmp_path: Path, data_cache: Path) -> None:
    """Ctrl-C in the middle of an epoch, then a kill while a checkpoint is written: gone on with, it is the
    uninterrupted run bit for bit. tests/faults kills at twenty moments."""
    flags = [
        "--quick-test", *SMALL, "--height", "96", "--width", "64", "--num_inference_steps", "1", "--lora_rank", "4",
        "--lr_scheduler", "constant", "--validation_steps", "1000", "--data_cache_dir", data_cache,
    ]  # fmt: skip
    runs, long, resume = tmp_path / "parts", ("--max_train_steps", "2000"), ("--resume_from_checkpoint", "latest")
    process, controller = launch_on_a_terminal(*flags, *long, "--checkpointing_steps", "1000", runs=runs)
    shown = read_until(controller, "step 10/2000")
    assert "training:" in shown and "s/step" in shown, "a terminal gets the progress bar"
    run = only_run(runs)
    pressed = time.monotonic()
    interrupt(controller)
    shown = read_until(controller, "closed by the launcher's end", 20)
    assert process.wait(timeout=20) == 130
    assert time.monotonic() - pressed < 20
    assert "stopped by SIGINT" in shown and "SIGINT: saving after this step" in shown
    assert "Traceback" not in shown and "finished" not in shown
    wait_for_no_process_with(str(run))
    log = (run / "train.log").read_bytes()
    assert b"\r" not in log and b"stopped by SIGINT" in log
    os.close(controller)
    step = step_of(newest_checkpoint(run))
    assert f"saved up to step {step}: go on with the same flags and --resume_from_checkpoint" in log.decode()
    assert max(metrics(run)) == step >= 10

    process, controller = launch_on_a_terminal(*flags, *long, *resume, "--checkpointing_steps", "4", runs=runs)
    wait_until(lambda: max(metrics(run)) >= step + 6, 120)
    driver = driver_of(run)
    wait_until(lambda: any(run.glob(".checkpoint-*.partial")), every=0.0005)
    os.kill(driver, signal.SIGKILL)
    shown = read_until(controller, "was killed from outside")
    assert process.wait(timeout=30) == 1
    assert "Traceback" not in shown
    os.close(controller)

    flags += ["--max_train_steps", str(step_of(newest_checkpoint(run)) + 3)]
    again = launch(*flags, *resume, runs=runs)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stderr == "" and "resumed from" in again.stdout and " 0 of them encoded" not in again.stdout
    assert only_run(runs) == run
    whole = launch(*flags, runs=tmp_path / "whole")  # with as many threads
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert_same_run(run, only_run(tmp_path / "whole"))


def test_a_signal_before_training_began_leaves_no_orphan(tmp_path: Path, data_cache: Path) -> None:
    process, controller = launch_on_a_terminal("--quick-test", "--data_cache_dir", data_cache, runs=tmp_path)
    while not processes_with(f"--output_dir {tmp_path}"):  # accelerate is up, the driver is not
        time.sleep(0.05)
    interrupt(controller)
    assert process.wait(timeout=20) == 130
    wait_for_no_process_with(str(tmp_path))
    os.close(controller)


@pytest.mark.parametrize("milliseconds", [0, 10, 20, 50])
def test_a_signal_while_processes_are_started_is_not_lost(milliseconds: int, tmp_path: Path, data_cache: Path) -> None:
    """Aimed at the moments around the launcher's forks, where a signal once was lost or left a shell behind."""
    process, controller = launch_on_a_terminal(
        "--quick-test", *SMALL, "--data_cache_dir", data_cache, runs=tmp_path, temporary=tmp_path
    )
    while not list(tmp_path.glob("train-*/output")):
        time.sleep(0.0005)
    time.sleep(milliseconds / 1000)
    interrupt(controller)
    shown = read_until(controller, "finished")
    assert "finished" not in shown and "Traceback" not in shown
    assert process.wait(timeout=20) in (130, -signal.SIGINT)
    wait_for_no_process_with(str(tmp_path))
    os.close(controller)


def test_a_data_set_with_broken_rows_stops_the_driver(
    tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    table = datasets.load_from_disk(str(small_data(tmp_path, data_cache)))
    table = table.map(lambda row: {"images": {"bytes": b"no picture", "path": None}}, features=table.features)
    table.save_to_disk(tmp_path / "broken")
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    with pytest.raises(ValueError, match="cannot be read, more than 1 %"):
        main(["--quick-test", "--dataset_name", str(tmp_path / "broken"), "--data_cache_dir", str(data_cache)])
    shown = capsys.readouterr().out
    assert "skipped: row" in shown and "finished" not in shown
    assert "skipped: row" in (only_run(tmp_path / "runs") / "warnings.log").read_text()


def small_data(folder: Path, data_cache: Path) -> Path:
    """A few rows of the toy's data as a saved data set, pictures undecoded."""
    from deepfashion_training.deepfashion_dataset import load_table
    from tryon.toy.dataset import write_dataset

    write_dataset(folder / "drawn", items=6, seed=1)
    load_table(str(folder / "drawn"), str(folder / "hf")).save_to_disk(folder / "saved")
    shutil.rmtree(folder / "drawn")
    return folder / "saved"
