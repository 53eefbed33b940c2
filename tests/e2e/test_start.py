"""How commands start: what can be refused is refused before anything heavy is imported, and loading is announced."""

import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from conftest import PROJECT
from test_folders import write_viton_hd
from tryon.files import save_json, write_manifest
from tryon.profiles import full, on_toy
from tryon.runs import lora_file
from tryon.toy.dataset import write_dataset

pytestmark = pytest.mark.e2e

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "gradio", "bitsandbytes", "scipy"}
TRY_ON = (
    "tryon_inference_lora.py --image README.md --garment README.md --category upper --output_tryon {folder}/out.png"
)


def started(command: str, folder: Path, **environment: str) -> tuple[int, str, set[str]]:
    """Runs a command line of Python; returns its exit code, what it said on stderr, and the packages it imported."""
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), "RUNS_DIR": str(folder / "runs"), **environment}
    variables.pop("RANK", None)
    arguments = command.format(folder=folder).split()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=PROJECT, env=variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done.returncode, said, {name.partition(".")[0] for name in imported}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run whose LoRA is damaged, one without a checkpoint, no.csv, half a DressCode folder, and a table
    of pictures that leads elsewhere."""
    lora = lora_file(tmp_path / "damaged" / "checkpoint-1")
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"whole")
    write_manifest(tmp_path / "damaged" / "checkpoint-1")
    lora.write_bytes(b"other")
    save_file({}, tmp_path / "foreign.safetensors", {"tryon_lora": '{"unknown": 1}'})
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.csv").write_text("person,garment\n")
    (tmp_path / "upper_body").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "metadata.jsonl").write_text('{"file_name": "../users", "mask_file_name": "../users"}')
    (tmp_path / "users").write_text("somebody:secret")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (f"{TRY_ON} --lora {{folder}}/nope", "/nope does not exist: name a run"),
        (f"{TRY_ON} --lora {{folder}}/empty", "/empty has no checkpoint: name a run"),
        (f"{TRY_ON} --lora {{folder}}/damaged", "is damaged: take another checkpoint"),
        (f"{TRY_ON} --lora {{folder}}/foreign.safetensors", "says in a way that is not known here"),
        (f"{TRY_ON} --lora {{folder}}/empty --base /nope", "--base /nope is neither here nor a hub name"),
        (f"{TRY_ON} --lora {{folder}}/empty --mask /nope.png", "--mask /nope.png is no file"),
        (f"{TRY_ON} --lora nobody/nothing", "not downloaded yet, and the hub cannot be reached"),
        ("tryon_inference_lora.py --lora {folder} --pairs {folder}/nope.csv", "/nope.csv cannot be read"),
        ("tryon_inference_lora.py --lora {folder} --pairs {folder}/no.csv", "/no.csv has no column output"),
        ("app_lora.py --port 7999 --lora {folder}/nope", "/nope does not exist: name a run"),
        ("app_lora.py --port 7999 --lora {folder}/foreign.safetensors", "says in a way that is not known here"),
        ("app_lora.py --port 7999 --lora {folder}/empty --auth {folder}/nope", "/nope cannot be read"),
        ("evaluate_lora.py --lora {folder}/nope", "/nope does not exist: name a run"),
        ("evaluate_lora.py --lora {folder}/damaged", "is damaged: take another checkpoint"),
        ("evaluate_lora.py --lora {folder}/foreign.safetensors --dataroot /nope", "--dataroot /nope is no folder"),
        ("train_flux_inpaint.py --toy --dataroot /nope", "--dataroot /nope is no folder: check the path"),
        ("train_flux_inpaint.py --toy --dataroot {folder}", "upper_body/images has no pictures of people"),
        ("train_flux_inpaint.py --toy --dataroot /nope --init_lora /nope", "/nope"),
        ("-m deepfashion_training.train_deepfashion_lora --toy --dataset_name /nope", "the data set /nope is neither"),
        ("-m deepfashion_training.launch --toy --dataset_name {folder}/photos", "lies outside the folder"),
        ("-m deepfashion_training.launch --toy --init_lora /nope", "--init_lora /nope does not exist"),
        ("-m deepfashion_training.inspect_dataset /nope", "the data set /nope is neither a folder nor a hub name"),
        ("-m deepfashion_training.export_viton_hd /nope {folder}/out", "the data set /nope is neither a folder nor"),
        ("-m tryon.share {folder}/empty", "/empty holds no config.json: name the folder of a run"),
        ("-m tryon.report {folder}/empty", "/empty holds no config.json: name the folder of a run"),
        ("-m tryon.toy.draw {folder}/users", "/users cannot be written"),
        ("pretrain_toy.py --stage nope", "invalid choice: 'nope'"),
        ("pretrain_toy.py --stage transformer --output_dir {folder}", "has no weights/vae.safetensors: run"),
        ("-m benchmarks.train_step --variants nope", "--variants nope is not known"),
    ],
)
def test_what_is_refused_is_refused_before_anything_heavy_is_imported(
    folder: Path, command: str, sentence: str
) -> None:
    code, said, imported = started(command, folder)
    assert code == 1
    assert said.startswith("error: ") and sentence in said and "\n" not in said, said
    assert "tryon" in imported and not imported & HEAVY
    assert not (folder / "runs").exists(), "a refusal leaves nothing behind"


@pytest.mark.parametrize(
    "command",
    ["tryon_inference_lora.py", "app_lora.py", "evaluate_lora.py", "train_flux_inpaint.py", "pretrain_toy.py",
     "-m tryon.share", "-m tryon.report", "-m tryon.toy.draw", "-m deepfashion_training.launch",
     "-m deepfashion_training.inspect_dataset", "-m deepfashion_training.export_viton_hd",
     "-m benchmarks.inference", "-m benchmarks.train_step", "-m benchmarks.toy_ablation", "-m benchmarks.data_scale"],
)  # fmt: skip
def test_help_imports_nothing_heavy_and_loads_nothing(tmp_path: Path, command: str) -> None:
    code, said, imported = started(f"{command} --help", tmp_path)
    assert (code, said) == (0, "")
    assert "tryon" in imported, "which sets what has to be set before torch is loaded"
    assert not imported & HEAVY


@pytest.fixture
def finished(run: Path, tmp_path: Path) -> Path:
    """A run with its settings, as the drivers leave them."""
    folder = tmp_path / "finished"
    shutil.copytree(run, folder)
    save_json(folder / "config.json", asdict(on_toy(full())))
    return folder


def test_runs_are_shown_and_shared_and_toys_drawn_without_heavy_imports(finished: Path, tmp_path: Path) -> None:
    for command in (
        "-m tryon.report {folder}/finished",
        "-m tryon.share {folder}/finished",
        "-m tryon.toy.draw {folder}/x",
    ):
        code, said, imported = started(command, tmp_path)
        assert (code, said) == (0, "")
        assert not imported & HEAVY
    assert (finished / "report.html").is_file() and (finished / "share" / "README.md").is_file()


def test_data_sets_are_read_without_the_models_libraries_and_loading_is_announced_once(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", items=20, seed=0)
    for command in (
        "-m deepfashion_training.inspect_dataset {folder}/data --page {folder}/page.html --data_cache_dir {folder}",
        "-m deepfashion_training.export_viton_hd {folder}/data {folder}/exported",
    ):
        code, said, imported = started(command, tmp_path)
        assert (code, said) == (0, "loading torch and datasets ...")
        assert {"torch", "datasets"} <= imported
        assert not imported & {"diffusers", "transformers", "peft", "accelerate", "bitsandbytes"}


def test_a_training_says_that_it_loads_before_it_does(tmp_path: Path) -> None:
    root = write_viton_hd(tmp_path / "viton", size=(96, 128))
    (tmp_path / "run" / ".lock").mkdir(parents=True)  # ends the training at its start
    code, said, imported = started(
        f"train_flux_inpaint.py --toy --dataroot {root} --output_dir {{folder}}/run", tmp_path
    )
    assert code == 1 and "diffusers" in imported
    assert said.startswith("loading torch, diffusers and transformers ...\n") and said.count("loading") == 1


def test_threads_that_wait_spin_briefly() -> None:
    """The setting is there before torch brings OpenMP in, and does not replace the user's own."""
    for own, spins in ({}, "3000"), ({"GOMP_SPINCOUNT": "70"}, "70"):
        variables = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        shown = subprocess.run(
            [sys.executable, "-c", "import tryon, torch"], cwd=PROJECT, capture_output=True, text=True, check=True,
            env={**variables, **own, "OMP_DISPLAY_ENV": "verbose"},
        )  # fmt: skip
        assert f"GOMP_SPINCOUNT = '{spins}'" in shown.stderr
