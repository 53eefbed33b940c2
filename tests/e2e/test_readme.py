"""The commands of README.md and docs/ and their Python, on the toy: each is run or, where it needs a GPU, parsed."""

import json
import re
import shlex
from pathlib import Path

import pytest

import app_lora
import evaluate_lora
import train_flux_inpaint
import tryon_inference_lora
from conftest import PROJECT
from deepfashion_training import (
    export_viton_hd,
    inspect_dataset,
    preflight,
    rank_samples,
    train_deepfashion_lora,
)
from launch import SMALL, metrics, only_run
from tryon import compare_blind, report, share
from tryon.runs import find_lora
from tryon.toy import draw
from tryon.toy.dataset import write_dataset
from tryon.toy.model import ToyFolders

pytestmark = pytest.mark.e2e

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
TRAIN = "bash ./train_deepfashion_lora.sh"
EXPORT = "python -m deepfashion_training.export_viton_hd <data set> <folder>"
ROWS = f"{TRAIN} --quick-test --dataset_name <folder>"
FOLDERS = "python train_flux_inpaint.py --dataroot <folder>"
INSPECT = "python -m deepfashion_training.inspect_dataset <data set>"
INFERENCE = "python tryon_inference_lora.py --lora runs/<run> --image person.jpg --garment garment.jpg"
INFERENCE += " --category lower --output_tryon out.png"
AGAIN = "python tryon_inference_lora.py --again out.png"
TAKE_OFF = (
    "python tryon_inference_lora.py --lora runs/<run> --take_off person.jpg --category lower --output garment.png"
)
COMPARE = INFERENCE.replace("runs/", "base runs/").replace("<run>", "<run> runs/<other>")
COMPARE = COMPARE.replace("--output_tryon out.png", "--output_grid compared.png")
RESUME = f"{TRAIN} --quick-test --max_train_steps 500 --resume_from_checkpoint latest"
SCORE = "python evaluate_lora.py --lora runs/<run>"
SCORE_BOTH = "python evaluate_lora.py --lora runs/<a> runs/<b>"
BLIND = "python -m tryon.compare_blind runs/<a> runs/<b>"
READ = "python -m tryon.compare_blind --read answers.json"
APP = "python app_lora.py --lora runs/"
TRAINING_APP = "python app_lora.py --train"  # in test_train_tab.py
PLAN = f"{TRAIN} --plan --gpu_memory 24 --price_per_hour 0.5"
RANK = "python -m deepfashion_training.rank_samples runs/<run>"
REPORT = "python -m tryon.report runs/<run>"
SHARE = "python -m tryon.share runs/<run>"
DRAW = "python -m tryon.toy.draw drawn"


def blocks(language: str, page: Path) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def flags_of(command: str, **names: str | Path) -> list[str]:
    """A command's arguments, the names in it that stand for others replaced."""
    words = shlex.split(re.sub("<([^>]*)>", r"'<\1>'", command))
    first = next(i for i, word in enumerate(words) if word.startswith("--") or "<" in word)
    replaced = {"<run>": "run", "<folder>": "folder", "<data set>": "data", "<a>": "a", "<b>": "b"}
    return [str(names.get(replaced.get(word.removeprefix("runs/"), word), word)) for word in words[first:]]


def test_every_command_is_one_that_is_tested_here() -> None:
    text = "".join(block for page in PAGES for block in blocks("bash", page)).replace("\\\n", "")
    commands = {" ".join(line.split("#")[0].split()) for line in text.splitlines()}
    assert commands == {
        "git clone <address of this repository> tryon-lora && cd tryon-lora", "bash tests/run.sh",
        f"{TRAIN} --quick-test", TRAIN, f"{TRAIN} --h100", f"{TRAIN} --help", PLAN,
        f"{TRAIN} --check",  # in test_machine_check.py
        INSPECT, EXPORT, ROWS, FOLDERS, DRAW, INFERENCE, AGAIN, COMPARE, SCORE, SCORE_BOTH, BLIND, READ, RANK, REPORT,
        SHARE, RESUME, APP, TRAINING_APP, TAKE_OFF,
    }  # fmt: skip


def test_the_cards_commands_are_among_them() -> None:
    cards = re.findall(r"^\| \d+ GB \| `(.*?)` \|", PAGES[0].read_text(), re.MULTILINE)
    assert cards == [f"{TRAIN} --offload", TRAIN, f"{TRAIN} --h100"]


def test_the_commands_in_their_order(tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, cache = tmp_path / "runs", ("--data_cache_dir", str(data_cache))
    monkeypatch.setenv("RUNS_DIR", str(runs))
    # test_launcher launches both.
    train_deepfashion_lora.main(["--quick-test", "--max_train_steps", "1", *SMALL, *cache])
    run = only_run(runs)
    train_deepfashion_lora.main([*flags_of(RESUME), "--max_train_steps", "2", *SMALL, *cache])
    assert set(metrics(run)) == {1, 2}

    drawn = tmp_path / DRAW.split()[-1]
    draw.main([str(drawn)])
    at = {"person.jpg": drawn / "person-1.png", "garment.jpg": drawn / "garment-1.png", "out.png": tmp_path / "out.png"}
    tryon_inference_lora.main([*flags_of(INFERENCE, run=run, **at), "--steps", "1", *cache])
    tryon_inference_lora.main([*flags_of(AGAIN, **at), *cache])
    assert (tmp_path / "out-again.png").is_file()
    assert tryon_inference_lora.read_settings(flags_of(COMPARE, run=run, **at))[1].lora[:2] == ("base", str(run))
    config, _ = app_lora.read_settings([*flags_of(APP), "--lora", str(runs)])
    assert app_lora.first_lora(config) == (find_lora(str(run)), runs)
    few = ["--num_samples", "1", "--data_cache_dir", str(data_cache)]
    evaluate_lora.main([*flags_of(SCORE, run=run), *few])
    assert json.loads((run / "scores" / "evaluation.json").read_text())["settings"]["data"].startswith("drawings")
    both = {"a": run / "checkpoint-1", "b": run / "checkpoint-2"}
    evaluate_lora.main([*flags_of(SCORE_BOTH, **both), *few])
    compare_blind.main([*flags_of(BLIND, **both), "--page", str(tmp_path / "compare.html")])
    assert (tmp_path / "compare.html").read_text().count("data:image/jpeg") == 3 * 4
    (tmp_path / "answers.json").write_text('{"a": "one", "b": "two", "answers": []}')
    compare_blind.main(flags_of(READ, **{"answers.json": tmp_path / "answers.json"}))
    rank_samples.main(flags_of(RANK, run=run))
    assert len((run / "ranking.csv").read_text().splitlines()) == 1 + 6
    (run / "report.html").unlink()
    report.main(flags_of(REPORT, run=run))
    share.main(flags_of(SHARE, run=run))
    assert (run / "report.html").is_file() and (run / "share" / "README.md").is_file()

    write_dataset(tmp_path / "data", items=6, seed=2)
    inspect_dataset.main([*flags_of(INSPECT, data=tmp_path / "data"), "--page", str(tmp_path / "page.html")])
    more = ["--plan", "--output_dir", str(tmp_path / "of rows"), *cache]
    train_deepfashion_lora.main([*flags_of(ROWS, folder=tmp_path / "data"), *more])
    export_viton_hd.main(flags_of(EXPORT, data=tmp_path / "data", folder=tmp_path / "viton"))
    more = ["--toy", "--max_train_steps", "1", *SMALL, *cache, "--output_dir", str(tmp_path / "of viton")]
    train_flux_inpaint.main([*flags_of(FOLDERS, folder=tmp_path / "viton"), *more])
    assert set(metrics(tmp_path / "of viton")) == {1}


def test_what_needs_a_gpu_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    for flags, profile in (([], "full"), (["--h100"], "h100"), (["--offload"], "full")):
        assert preflight.read_settings([*flags, "--toy"])[0].profile == profile
    config, *_, plan = preflight.read_settings(flags_of(PLAN))
    assert config.profile == "full" and not config.toy and plan.plan and plan.gpu_memory == 24


def test_the_python_loads_a_lora(run: Path, toy: ToyFolders) -> None:
    (code,) = blocks("python", PROJECT / "docs" / "inference.md")  # the app's is tested with the app
    names = {
        "xiaozaa/catvton-flux-alpha": toy.transformer,
        "black-forest-labs/FLUX.1-dev": toy.base,
        "runs/<run>/checkpoint-8000": run / "checkpoint-1",
    }
    for name, folder in names.items():
        assert name in code
        code = code.replace(name, str(folder))
    space: dict = {}
    exec(code, space)
    assert space["pipeline"].get_list_adapters() == {"transformer": ["default_0"]}
