"""Trainings as the page shows them: what is asked of the launcher, how a run stands, what may be deleted."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from app_lora import first_lora, read_settings
from conftest import PROJECT
from test_folders import write_own
from tryon.app import training
from tryon.app.train_page import describe
from tryon.app.training import TrainingRequest, all_runs, read_run
from tryon.config import TryOnConfig
from tryon.files import save_json
from tryon.runs import LAUNCH, LAUNCHER_LOCK, LOCK_FILE, locked, process_of

HOLD = """
import sys
from pathlib import Path
from tryon.runs import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(run: Path, lock: str = LAUNCHER_LOCK) -> Iterator[int]:
    """Another process keeps the run, as its launcher or its driver does."""
    command = [sys.executable, "-c", HOLD, str(run), lock]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.communicate()


def make_run(folder: Path, steps: int = 0, log: str = "") -> Path:
    """A run of so many steps, of 300, whose log ends with these lines."""
    folder.mkdir(parents=True)
    save_json(folder / LAUNCH, {"flags": ["--quick-test"], "folder": "/"})
    save_json(folder / "config.json", {"max_train_steps": 300, "num_train_epochs": None, "profile": "quick_test"})
    rows = [{"step": step, "train/loss": 1 / step, "train/seconds": 2.0} for step in range(1, steps + 1)]
    rows += [{"step": steps, "validation/loss": 0.25, "validation/loss_upper": 0.5}] if steps else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9999, "tr')
    (folder / "train.log").write_text(log)
    if steps:
        (folder / f"checkpoint-{steps}").mkdir()
        (folder / f"checkpoint-{steps}" / "manifest.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        (TrainingRequest("toy", "ignored", "quick_test"), ["--quick-test", "--toy"]),
        (TrainingRequest("folder", " my photos ", "full"), ["--full", "--dataset_name=my photos"]),
        (TrainingRequest("hub", "--push_to_hub", "h100"), ["--h100", "--dataset_name=--push_to_hub"]),
        (
            TrainingRequest("hub", "a/b", "full", steps=" 7", more="--prompt 'category' --seed 1"),
            ["--full", "--dataset_name=a/b", "--max_train_steps=7", "--prompt", "category", "--seed", "1"],
        ),
    ],
)
def test_what_is_asked_of_the_launcher(asked: TrainingRequest, flags: list[str]) -> None:
    assert asked.flags() == flags


def test_what_is_missing_or_cannot_be_read_is_said() -> None:
    with pytest.raises(ValueError, match="Name the data"):
        TrainingRequest("hub", "  ", "full").flags()
    with pytest.raises(ValueError, match="further flags cannot be read"):
        TrainingRequest("toy", "", "full", more="--note 'never closed").flags()


@pytest.mark.parametrize(
    ("folders", "flag", "prefix"),
    [
        (("image", "cloth"), "dataroot", "viton_hd_lora"),
        (("train/image", "train/cloth"), "dataroot", "viton_hd_lora"),
        (("upper_body/images",), "dataroot", "dresscode_lora"),
        (("pictures",), "dataset_name", "deepfashion_lora"),
    ],
)
def test_a_folder_is_given_to_the_launcher_as_what_it_is(
    folders: tuple[str, ...], flag: str, prefix: str, tmp_path: Path
) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    asked = TrainingRequest("folder", f" {tmp_path}", "h100")
    assert asked.flags() == ["--h100", f"--{flag}={tmp_path}"]
    assert re.fullmatch(rf"{prefix}_h100_\d{{8}}_\d{{6}}", asked.run_name())
    (tmp_path / "metadata.jsonl").write_text("{}")
    assert asked.flags() == ["--h100", f"--dataset_name={tmp_path}"], "a table counts for more"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the plan of a machine without a GPU")
def test_a_plan_of_a_persons_own_folder_is_of_its_pairs_and_names_its_run(tmp_path: Path, data_cache: Path) -> None:
    write_own(tmp_path / "own")
    asked = TrainingRequest("folder", str(tmp_path / "own"), "quick_test", more=f"--data_cache_dir {data_cache}")
    shown = [" ".join(cells) for cells in training.ask(asked, "--plan", tmp_path / "runs")]
    assert shown[0].startswith("no GPU was found: this plans the toy")
    assert shown[1] == f"planned, data: {tmp_path}/own, taken for a person's own image/ and cloth/"
    assert any(re.fullmatch(" only [45] pairs to train on", line) for line in shown), shown
    assert any(re.search("at most: [45] pairs; ", line) for line in shown), shown
    assert any(f"{tmp_path}/runs/viton_hd_lora_quick_test_" in line for line in shown), shown
    assert not (tmp_path / "runs").exists()


def test_a_refusal_is_the_launchers_own_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for asked, message in (
        (TrainingRequest("toy", "", "quick_test", more="--learning_rat 1"), "did you mean --learning_rate"),
        (TrainingRequest("toy", "", "quick_test", name="../escaped"), "^Name ../escaped is no name of a folder"),
        (TrainingRequest("toy", "", "quick_test", steps="0"), "^Steps 0 is too small"),
        (TrainingRequest("hub", "a/b", "full"), "press Plan with --gpu_memory 24 in Further flags"),
        (TrainingRequest("folder", str(tmp_path / "none"), "quick_test", more="--toy"), "none is neither a folder nor"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            training.start(asked, tmp_path / "runs")
        assert not str(refused.value).startswith("error")
    with pytest.raises(ValueError, match="unknown flag --frobnicate"):
        list(training.ask(TrainingRequest("toy", "", "quick_test", more="--frobnicate"), "--plan", tmp_path / "runs"))
    assert not (tmp_path / "runs").exists() and not (tmp_path / "escaped").exists()
    make_run(tmp_path / "runs" / "taken")
    with pytest.raises(ValueError, match="There is a run taken already"):
        training.start(TrainingRequest("toy", "", "quick_test", name="taken"), tmp_path / "runs")


@pytest.mark.parametrize(
    ("steps", "log", "state", "resumable"),
    [
        (0, "10:00:00 TOY MODEL\n10:00:00   seed   0\n", "stopped", False),
        (3, "stopped by SIGTERM\n", "stopped", True),
        (3, "10:00:00 saved up to step 3: go on\nerror: the disk is full\n", "failed", True),
        (3, "Traceback (most recent call last):\n  File ...\nKeyError: 3\n", "failed", True),
        (300, "10:00:00 finished: /runs/one\n", "finished", True),
        (300, "", "finished", True),  # train_flux_inpaint.py's own runs have no log
    ],
)
def test_how_a_run_has_ended(steps: int, log: str, state: str, resumable: bool, tmp_path: Path) -> None:
    facts = read_run(make_run(tmp_path / "run", steps, log))
    assert (facts.state, facts.step, facts.steps, facts.resumable) == (state, steps, 300, resumable)
    lines = ["", *(line for line in log.splitlines() if "   seed" not in line)]
    assert facts.said == lines[-1].replace(" by SIGTERM", ""), "no setting"
    assert facts.loss == ("0.2500" if steps else "") and facts.psnr == "" and facts.size > 100


def test_a_run_that_goes_on_is_seen_and_cannot_be_deleted(tmp_path: Path) -> None:
    """Its launcher or, without one, its driver keeps it; looking takes nothing away from them."""
    ended = "SIGTERM: saving after this step; a second one stops at once\nerror: the disk is full\n"
    run, other = make_run(tmp_path / "run", 5, ended), make_run(tmp_path / "newer", 4)
    (run / "checkpoint-5").rename(run / "checkpoint-3")

    def append(file: str, line: str) -> None:
        with (run / file).open("a") as opened:
            opened.write(f"\n{line}\n")

    def stands() -> tuple[str, str]:
        facts = read_run(run)
        assert not facts.resumable
        return facts.state, facts.said

    for lock in (LAUNCHER_LOCK, LOCK_FILE):
        with held(run, lock) as process:
            assert process_of(run) == process and process_of(other) is None
            # It goes on from step 3: neither the log nor the steps of the start before are of this one.
            save_json(run / LAUNCH, {"flags": [], "folder": "/", "log_begins": (run / "train.log").stat().st_size})
            assert stands() == ("starting", "")
            append("train.log", "loading torch ...")
            assert stands() == ("loading", "loading torch ...")
            save_json(run / "config-from-3.json", {"max_train_steps": 300})
            assert stands() == ("loading", "loading torch ...")
            (run / "metrics.jsonl").write_text('{"step": 3}')
            assert stands() == ("loading", "loading torch ...")
            append("metrics.jsonl", '{"step": 4}')
            assert stands() == ("running", "loading torch ...")
            for refused in (training.delete, training.resume):
                with pytest.raises(ValueError, match="run is running"):
                    refused(run)
            with pytest.raises(ValueError, match=f"another training, process {process} "), locked(run, lock):
                pass
            append("train.log", "SIGTERM: saving after this step; a second one stops at once")
            assert stands() == ("stopping", "saving after this step")
            append("train.log", "stopped by SIGTERM")
            assert stands() == ("stopping", "stopped")
            assert all_runs(tmp_path) == [other, run], "by when they were begun"
    with pytest.raises(ValueError, match="run has ended already"):
        training.stop(run)
    training.delete(run)
    assert all_runs(tmp_path) == [other]


def test_a_run_goes_on_to_more_steps_than_it_has_and_never_to_fewer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 300, "10:00:00 finished: /runs/one\n")
    assert [training.more_steps(run, asked) for asked in ("", "25", "300", " 301 ", "many")] == [
        "", "", "", "301", "many"
    ]  # fmt: skip
    assert "give a larger number as Steps and press *Go on*, or start another" in describe(run, read_run(run), None)
    (run / LAUNCH).unlink()
    assert "further, start another run" in describe(run, read_run(run), None), "Go on is not for it"


def test_a_run_of_another_program_is_resumed_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    for file in (LAUNCH, "train.log"):
        (run / file).unlink()
    assert not read_run(run).resumable
    assert read_run(run).said == "step 3: loss 0.3333, 2.00 s/step; its log went to the terminal that started it"
    with pytest.raises(ValueError, match="was not started by train_deepfashion_lora.sh"):
        training.resume(run)


def test_curves_are_short_and_the_time_left_is_that_of_recent_steps(tmp_path: Path) -> None:
    rows = [{"step": step, "train/loss": float(step), "train/seconds": 9.0} for step in range(1, 1001)]
    rows += [{"step": 1000, "validation/loss": 0.5}]
    trained, validated = training.loss_curves(rows)
    assert trained[0] == (5, 3.0) and len(trained) == 200 and validated == [(1000, 0.5)]
    rows[950:1000] = [{**row, "train/seconds": 2.0} for row in rows[950:1000]]
    assert training.seconds_left(read_run(make_run(tmp_path / "run", 290)), rows) == 20.0
    assert training.loss_curves([]) == ([], [])


def test_what_a_run_has_reached_is_known_once_it_is_trained_or_scored(tmp_path: Path) -> None:
    run, newer = make_run(tmp_path / "run"), make_run(tmp_path / "newer", 3)
    (run / "metrics.jsonl").write_text('{"step": 0, "validation/loss": 0.1}\n')
    assert (read_run(run).loss, read_run(run).psnr) == ("", "")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 25, "validation/loss": 0.4}\n{"step": 50, "validation/loss": 0.3}\n')
    columns = {"base": {"psnr": 30.0}, "LoRA": {"psnr": 21.04}, "vae": {"psnr": 40.0}}
    save_json(run / "evaluation.json", {"upper": {"paired": columns}})
    assert (read_run(run).loss, read_run(run).psnr) == ("0.3000", "-9.0")
    columns["LoRA"]["psnr"] = 31.24
    save_json(run / "evaluation.json", {"upper": {"paired": columns}})
    assert read_run(run).psnr == "+1.2"
    assert all_runs(tmp_path) == [newer, run], "scores do not make it the newest"


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"dataset_name": "/cache/toy/data-v4-750", "toy": True}, "toy"),
        ({"dataset_name": "/photos/summer", "toy": True}, "summer"),
        ({"dataset_name": "owner/garments"}, "owner/garments"),
        ({"dataroot": "/data/viton"}, "viton"),
        ({}, ""),
    ],
)
def test_a_run_says_in_a_word_what_it_is_trained_on(settings: dict, data: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    save_json(run / "config.json", {"data_cache_dir": "/cache", **settings})
    assert read_run(run).data == data


def test_nobody_trains_through_a_shared_page_without_a_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    for shared in (["--share"], ["--host", "0.0.0.0"], ["--host", "192.168.1.7"], ["--host", "::"]):
        with pytest.raises(ValueError, match=f"--train lets everybody .* with {' '.join(shared)} give --auth"):
            read_settings(["--train", *shared])
        read_settings(["--train", *shared, "--auth", "users.txt"])
        read_settings(["--lora", "runs", *shared])
    for host in ("127.0.0.1", "localhost", "::1"):
        config, _ = read_settings(["--train", "--host", host])
    assert config.lora == str(tmp_path), "there may be no LoRA yet"
    assert first_lora(config, train=True) == (None, tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint"):
        first_lora(config)
    with pytest.raises(ValueError, match="elsewhere does not exist"):
        first_lora(TryOnConfig(lora=str(tmp_path / "elsewhere")), train=True)
