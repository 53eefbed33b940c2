"""The launcher end to end on the toy: what a run leaves, what is refused, how it stops."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from deepfashion_training.train_deepfashion_lora import main
from launch import (
    SMALL,
    TOKEN,
    assert_same_run,
    driver_of,
    interrupt,
    launch,
    launch_both,
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
    """Called from another directory, with runs and data below paths with spaces; then resumed, then refused."""
    runs, elsewhere = tmp_path / "my runs", tmp_path / "some where"
    elsewhere.mkdir()
    done = launch(
        "--quick-test", "--max_train_steps", "3", "--checkpointing_steps", "2", "--validation_steps", "2",
        "--max_train_samples", "20", "--num_evaluation_samples", "1", "--train_batch_size", "2",
        "--data_cache_dir", data_cache, runs=runs, cwd=elsewhere,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TOY MODEL" in done.stdout and "finished: " in done.stdout
    assert done.stderr == ""
    assert "Traceback" not in done.stdout and "Warning" not in done.stdout

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
        ".lock", "config.json", "metrics.jsonl", "train.log", "evaluation.json", "evaluation-paired.png",
        "environment.json",
        "data.json",
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
    assert sum(pairs["training, garment from flat"].values()) == 20
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

    again = launch(
        "--quick-test", "--max_train_steps", "4", "--resume_from_checkpoint", "latest", "--num_validation_images", "1",
        "--max_train_samples", "20", "--num_evaluation_samples", "0", "--train_batch_size", "2",
        "--data_cache_dir", data_cache, runs=runs,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stderr == ""
    assert "resumed from" in again.stdout and " 0 of them encoded" not in again.stdout
    assert only_run(runs) == run
    assert set(metrics(run)) == {1, 2, 3, 4}

    over = launch("--quick-test", "--output_dir", run, "--data_cache_dir", data_cache, runs=runs)
    assert over.returncode == 1
    assert "holds checkpoints of another run" in over.stderr


def test_a_plan_is_printed_and_nothing_is_left_behind(tmp_path: Path, data_cache: Path) -> None:
    done = launch("--h100", "--plan", "--gpu_memory", "24", "--price_per_hour", "2", "--data_cache_dir", data_cache,
                  runs=tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "loading torch, diffusers and transformers ...\n"), done.stderr
    assert "planned for FLUX-Fill's own size, as xiaozaa/catvton-flux-alpha is not downloaded yet" in done.stdout
    assert "GB of 24.7 GB usable" in done.stdout and "frozen weights: nf4; every block recomputes" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_h100_profile_runs_on_the_toy(tmp_path: Path, data_cache: Path) -> None:
    """In bf16, as on the GPU, and with activation checkpointing. Small: some CPUs have no instructions for bf16."""
    done = launch(
        "--h100", "--toy", "--mixed_precision", "bf16", "--gradient_checkpointing", "full", "--max_train_steps", "1",
        *SMALL, "--height", "64", "--width", "48", "--num_inference_steps", "1", "--train_batch_size", "1",
        "--data_cache_dir", data_cache, runs=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    settings = json.loads((run / "config.json").read_text())
    assert settings["lora_rank"] == settings["lora_alpha"] == 128
    assert (run / "checkpoint-1" / "manifest.json").is_file()


def test_the_full_profile_runs_on_the_toy(tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver without the launcher, in this process."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    main(["--toy", "--max_train_steps", "1", *SMALL, "--data_cache_dir", str(data_cache)])
    run = only_run(tmp_path)
    assert run.name.startswith("deepfashion_lora_full_")
    assert json.loads((run / "config.json").read_text())["lora_rank"] == 64
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
    assert "--quick-test" in done.stdout and "--learning_rate" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_saves_ends_everything_and_the_rest_is_exact(tmp_path: Path, data_cache: Path) -> None:
    """In the middle of an epoch; the interrupted run, gone on with, is the uninterrupted one bit for bit."""
    flags = ["--quick-test", *SMALL, "--lr_scheduler", "constant", "--data_cache_dir", data_cache]
    process, controller = launch_on_a_terminal(*flags, "--max_train_steps", "2000", runs=tmp_path / "parts")
    shown = read_until(controller, "step 10/2000")
    assert "training:" in shown and "s/step" in shown, "a terminal gets the progress bar"
    run = only_run(tmp_path / "parts")
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
    flags += ["--max_train_steps", str(step + 3)]
    resumed = [*flags, "--resume_from_checkpoint", "latest"]
    again, whole = launch_both(resumed, flags, (tmp_path / "parts", tmp_path / "whole"))
    assert again.returncode == whole.returncode == 0, again.stdout + again.stderr
    assert only_run(tmp_path / "parts") == run
    assert_same_run(run, only_run(tmp_path / "whole"))


def test_sigterm_reaches_the_driver_and_is_waited_for(tmp_path: Path, data_cache: Path) -> None:
    """Here while it prepares; Ctrl-C above comes while it trains."""
    process, controller = launch_on_a_terminal("--quick-test", *SMALL, "--data_cache_dir", data_cache, runs=tmp_path)
    read_until(controller, "TOY MODEL")
    run = only_run(tmp_path)
    process.send_signal(signal.SIGTERM)
    read_until(controller, "stopped by SIGTERM")
    assert process.wait(timeout=20) == 143
    wait_for_no_process_with(str(run))
    os.close(controller)


def test_a_signal_before_training_began_leaves_no_orphan(tmp_path: Path, data_cache: Path) -> None:
    process, controller = launch_on_a_terminal("--quick-test", "--data_cache_dir", data_cache, runs=tmp_path)
    while not processes_with(f"--output_dir {tmp_path}"):  # accelerate is up, the driver is not
        time.sleep(0.05)
    interrupt(controller)
    assert process.wait(timeout=20) == 130
    wait_for_no_process_with(str(tmp_path))
    os.close(controller)


@pytest.mark.parametrize("milliseconds", [0, 5, 10, 15, 20, 30, 50])
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


def test_a_killed_driver_is_a_failure_in_words(tmp_path: Path, data_cache: Path) -> None:
    process, controller = launch_on_a_terminal("--quick-test", *SMALL, "--data_cache_dir", data_cache, runs=tmp_path)
    read_until(controller, "TOY MODEL")
    run = only_run(tmp_path)
    for pid in processes_with(f"--output_dir {run}"):
        if "accelerate.commands.launch" not in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    shown = read_until(controller, "was killed from outside")
    assert process.wait(timeout=20) == 1
    assert "Traceback" not in shown
    os.close(controller)


def test_three_kills_lose_nothing_that_was_saved(tmp_path: Path, data_cache: Path) -> None:
    """After the fourth step, after the eighth, and while a checkpoint is written. tests/faults has the long run."""
    flags = [
        "--quick-test", *SMALL, "--height", "96", "--width", "64", "--num_inference_steps", "1", "--lora_rank", "4",
        "--lr_scheduler", "constant", "--checkpointing_steps", "2", "--validation_steps", "1000",
        "--data_cache_dir", data_cache,
    ]  # fmt: skip
    runs, resume = tmp_path / "killed", ["--resume_from_checkpoint", "latest"]
    for number, steps in enumerate((4, 8, 12)):
        more = resume if number else []
        process, controller = launch_on_a_terminal(*flags, "--max_train_steps", "400", *more, runs=runs)
        wait_until(lambda: runs.is_dir() and any(runs.iterdir()))
        run = only_run(runs)
        wait_until(lambda run=run, steps=steps: (run / "metrics.jsonl").is_file()
                   and max(metrics(run), default=0) >= steps, 120)  # fmt: skip
        driver = driver_of(run)
        if number == 2:
            wait_until(lambda run=run: any(run.glob(".checkpoint-*.partial")), every=0.0005)
        os.kill(driver, signal.SIGKILL)
        read_until(controller, "was killed from outside")
        assert process.wait(timeout=30) == 1
        os.close(controller)
    flags += ["--max_train_steps", str(step_of(newest_checkpoint(run)) + 3)]
    again, whole = launch_both([*flags, *resume], flags, (runs, tmp_path / "whole"))
    assert again.returncode == whole.returncode == 0, again.stdout + again.stderr
    assert_same_run(run, only_run(tmp_path / "whole"))


def test_two_processes_train_what_one_does_with_the_doubled_batch(tmp_path: Path, data_cache: Path) -> None:
    common = [
        "--max_train_steps", "3", "--lr_warmup_steps", "0", "--learning_rate", "1e-3",
        "--max_train_samples", "5", "--max_validation_samples", "2", "--num_validation_images", "1",
        "--num_evaluation_samples", "0", "--data_cache_dir", str(data_cache),
    ]  # fmt: skip
    two = launch("--quick-test", *common, "--num_processes", "2", "--train_batch_size", "1", runs=tmp_path / "two")
    assert two.returncode == 0, two.stdout + two.stderr
    assert two.stdout.count("TOY MODEL") == 1, "only the main process speaks"
    flags = ["--quick-test", *common, "--num_processes", "2", "--train_batch_size", "1"]
    first = launch(*flags, "--max_time", "0:00", runs=tmp_path / "parts")
    assert first.returncode == 124 and "--max_time 0:00 is over" in first.stdout
    assert "saved up to step 1: go on with the same flags" in first.stdout
    rest = launch(*flags, "--resume_from_checkpoint", "latest", runs=tmp_path / "parts")
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert_same_run(only_run(tmp_path / "parts"), only_run(tmp_path / "two"))
    one = tmp_path / "one"
    main(["--quick-test", *common, "--train_batch_size", "2", "--output_dir", str(one)])
    of_two, of_one = metrics(only_run(tmp_path / "two")), metrics(one)
    assert of_two.keys() == of_one.keys() == {1, 2, 3}
    for step, loss in of_one.items():
        assert abs(of_two[step] - loss) < 1e-5


def test_a_data_set_with_broken_rows_stops_with_its_own_exit_code(tmp_path: Path, data_cache: Path) -> None:
    import datasets

    table = datasets.load_from_disk(str(small_data(tmp_path, data_cache)))
    table = table.map(lambda row: {"images": {"bytes": b"no picture", "path": None}}, features=table.features)
    table.save_to_disk(tmp_path / "broken")
    done = launch(
        "--quick-test", "--dataset_name", tmp_path / "broken", "--data_cache_dir", data_cache, runs=tmp_path / "runs"
    )
    assert done.returncode == 1
    assert "error: " in done.stdout and "cannot be read, more than 1 %" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr and "finished" not in done.stdout
    for name in ("train.log", "warnings.log"):
        assert "skipped: row" in (only_run(tmp_path / "runs") / name).read_text()


def small_data(folder: Path, data_cache: Path) -> Path:
    """A few rows of the toy's data as a saved data set, pictures undecoded."""
    from deepfashion_training.deepfashion_dataset import load_table
    from tryon.toy.dataset import write_dataset

    write_dataset(folder / "drawn", items=6, seed=1)
    load_table(str(folder / "drawn"), str(folder / "hf")).save_to_disk(folder / "saved")
    shutil.rmtree(folder / "drawn")
    return folder / "saved"
