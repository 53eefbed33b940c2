"""Profiles, flags and the checks of the configuration."""

import ast
import dataclasses
import importlib.util
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from app_lora import PageConfig
from conftest import PROJECT
from deepfashion_training.export_viton_hd import ExportConfig
from deepfashion_training.inspect_dataset import InspectConfig
from deepfashion_training.preflight import DataConfig
from evaluate_lora import EvaluateConfig
from folder_lists import FolderConfig
from tryon.app.session import panel_sizes
from tryon.cli import parse_flags
from tryon.config import (
    MOST,
    MOST_SEED,
    TRACKERS,
    MaskConfig,
    PlanConfig,
    TrainConfig,
    TryOnConfig,
    cache_threshold,
    mistakes,
    trackers,
)
from tryon.flux.lora_header import OF_ANOTHER_PROJECT, panel_size
from tryon.profiles import PROFILES, on_toy, resolve
from tryon.share import ShareConfig
from tryon.toy.pretrain.config import PretrainConfig
from tryon_inference_lora import PictureConfig


def given(*argv: str) -> dict:
    return parse_flags(argv, "test", "test", TrainConfig)[0]


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (
            "quick_test",
            {
                "height": 512, "width": 384, "max_train_samples": 100, "max_validation_samples": 20,
                "max_train_steps": 50, "train_batch_size": 1, "gradient_accumulation_steps": 4, "lora_rank": 16,
                "lora_alpha": 16, "lr_warmup_steps": 10, "validation_steps": 25, "checkpointing_steps": 25,
            },
        ),
        (
            "full",
            {
                "height": 768, "width": 576, "max_train_samples": None, "max_validation_samples": 64,
                "max_train_steps": 8000, "train_batch_size": 1, "gradient_accumulation_steps": 8, "lora_rank": 64,
                "lora_alpha": 64, "lr_warmup_steps": 100, "validation_steps": 500, "checkpointing_steps": 500,
            },
        ),
        (
            "h100",
            {
                "height": 768, "width": 576, "max_train_samples": None, "max_validation_samples": 64,
                "max_train_steps": 8000, "train_batch_size": 1, "gradient_accumulation_steps": 8, "lora_rank": 128,
                "lora_alpha": 128, "lr_warmup_steps": 100, "validation_steps": 500, "checkpointing_steps": 500,
            },
        ),
    ],
)  # fmt: skip
def test_profiles_are_those_of_the_readme(profile: str, expected: dict) -> None:
    config = resolve({"profile": profile}, cuda_devices=1)
    common = {"learning_rate": 1e-4, "lr_scheduler": "constant", "mixed_precision": "bf16", "toy": False}
    for name, value in {**expected, **common}.items():
        assert getattr(config, name) == value, name
    if profile != "quick_test":
        assert config.train_batch_size * config.gradient_accumulation_steps == 8


def test_each_machine_counts_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"profile": "h100", "num_processes": 16}
    with pytest.raises(ValueError, match="was given for 8 CUDA devices: ask"):
        resolve(given, cuda_devices=8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert resolve(given, cuda_devices=8).num_processes == 16


def test_quick_test_falls_back_to_the_toy_only_without_a_gpu() -> None:
    assert resolve({"profile": "quick_test"}, cuda_devices=0).toy
    assert not resolve({"profile": "quick_test"}, cuda_devices=1).toy
    assert resolve({"profile": "quick_test", "toy": True}, cuda_devices=1).toy


def test_a_model_that_the_toy_would_take_the_place_of_is_refused() -> None:
    flags = {"profile": "quick_test", "pretrained_model_name_or_path": "somebody/something"}
    with pytest.raises(ValueError, match="--pretrained_model_name_or_path was given, but there is no GPU"):
        resolve(flags, cuda_devices=0)
    assert resolve(flags, cuda_devices=1).pretrained_model_name_or_path == "somebody/something"


@pytest.mark.parametrize("profile", ["full", "h100"])
def test_real_profiles_need_a_gpu(profile: str) -> None:
    with pytest.raises(ValueError, match="needs a CUDA device"):
        resolve({"profile": profile}, cuda_devices=0)
    toy = resolve({"profile": profile, "toy": True}, cuda_devices=0)
    assert (toy.toy, toy.height, toy.width, toy.max_sequence_length) == (True, 192, 144, 16)
    assert (toy.mixed_precision, toy.lora_rank) == ("no", PROFILES[profile]().lora_rank)


def test_a_flag_beats_profile_and_toy() -> None:
    config = resolve(given("--h100", "--toy", "--lora_rank", "8", "--height", "96"), cuda_devices=0)
    assert (config.lora_rank, config.lora_alpha, config.height, config.width) == (8, 8, 96, 144)


def test_flags_of_every_kind() -> None:
    flags = given("--toy", "--learning_rate", "3e-5", "--optimizer", "adamw8bit", "--max_train_samples", "7",
                  "--checkpoints_total_limit", "none", "--output_dir", "a folder")  # fmt: skip
    assert flags == {
        "toy": True, "learning_rate": 3e-5, "optimizer": "adamw8bit", "max_train_samples": 7,
        "checkpoints_total_limit": None, "output_dir": "a folder",
    }  # fmt: skip


def test_unknown_flags_are_all_named_and_abbreviations_refused() -> None:
    with pytest.raises(
        ValueError, match=r"--learning_rat \(did you mean --learning_rate\?\); unknown flag --frobnicate"
    ):
        given("--learning_rat", "1", "--frobnicate=2")
    with pytest.raises(ValueError, match="unknown argument stray"):
        given("stray")
    with pytest.raises(ValueError, match=r"unknown flag --qick-test \(did you mean --quick-test\?\)"):
        given("--qick-test")


def test_a_profile_is_a_switch_and_only_one_is_taken(capsys: pytest.CaptureFixture) -> None:
    assert given("--quick-test") == {"profile": "quick_test"}
    with pytest.raises(ValueError, match="--h100: not allowed with argument --quick-test"):
        given("--quick-test", "--h100")
    with pytest.raises(SystemExit, match="0"):
        given("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: test [flags]" in shown and "--quick-test a hundred samples" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rate", "fast"], "--learning_rate: invalid float value: 'fast'"),
        (["--max_train_steps", "1.5"], "--max_train_steps: invalid int value: '1.5'"),
        (["--optimizer", "sgd"], "--optimizer: invalid choice: 'sgd'"),
        (["--seed"], "--seed: expected one argument"),
    ],
)
def test_values_of_the_wrong_kind(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        given(*argv)


def test_all_mistakes_come_in_one_message() -> None:
    flags = given("--height", "100", "--lora_rank", "0", "--adam_beta1", "1.5", "--learning_rate", "nan",
                  "--init_lora", "a", "--resume_from_checkpoint", "b")  # fmt: skip
    with pytest.raises(ValueError) as error:
        resolve(flags, cuda_devices=1)
    for name in ("--height", "--lora_rank", "--adam_beta1", "--learning_rate", "--init_lora"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gradient_checkpointing", "0"], "--gradient_checkpointing 0 is neither none, auto, full nor a number"),
        (
            ["--gradient_checkpointing", "half"],
            "--gradient_checkpointing half is neither none, auto, full nor a number",
        ),
        (["--offload", "--gradient_checkpointing", "2"], "leave --gradient_checkpointing 2 out"),
        (["--offload", "--compile"], "--offload and --compile do not go together: give one of them"),
    ],
)
def test_what_does_not_save_memory_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(given(*argv), cuda_devices=1)
    resolve(given(*argv[:1], *(["auto"] if argv[0] != "--offload" else [])), cuda_devices=1)
    assert resolve(given("--offload", "--toy"), cuda_devices=0).gradient_checkpointing == "full"


def test_every_number_has_bounds() -> None:
    """Also those of scripts that no other test imports: a call of `setting` names default, help, least and most."""
    files = [*PROJECT.glob("*.py"), *(PROJECT / "tryon").glob("**/*.py"), *(PROJECT / "benchmarks").glob("*.py"),
             *(PROJECT / "deepfashion_training").glob("*.py")]  # fmt: skip
    numbers = [
        (f"{file.name}: {node.target.id}", node.value.args)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)
        if ast.unparse(node.value.func) == "setting" and re.match("int|float", ast.unparse(node.annotation))
    ]
    assert len(numbers) > 60
    assert [name for name, given in numbers if len(given) != 4] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "9" * 20], f"--seed {'9' * 20} is too large: give 0 to 9223372036854775807"),
        (["--height", "160000"], "--height 160000 is too large: give 16 to 4096"),
        (["--lora_rank", "0"], "--lora_rank 0 is too small: give 1 to 3072"),
        (["--teacher_categories", "upper,shoes"], "--teacher_categories shoes is no category: give some of upper, "),
        (["--base_categories", "shoes"], "--base_categories shoes is no category: give some of upper, lower, full"),
        (["--base_categories", "upper,upper"], "--base_categories names upper twice: name it once"),
        (["--base_categories", "upper", "--teacher_weight", "1"], "--teacher_weight has nothing to teach"),
        (["--base_categories", "full,upper,lower"], "names all categories, and nothing is left to train on"),
        (["--logit_mean", "-1000"], "--logit_mean -1000.0 is too small: give -100 to 100"),
        (
            ["--height", "4096", "--width", "1040"],
            "a panel of 4096 x 1040 (height x width) has 4,259,840 pixels: give a --height and a --width with at most "
            "4,194,304",
        ),
        (["--max_time", f"{'9' * 400}:00"], "is not hh:mm, such as 11:30, and at most 9999:59"),
        (["--gradient_checkpointing", "1000"], "nor a number of blocks from 1 to 999"),
        (["--gradient_checkpointing", "²"], "nor a number of blocks from 1 to 999"),
    ],
)
def test_a_number_out_of_bounds_is_told_both(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(given(*flags), cuda_devices=1)


def test_the_largest_seed_is_one_that_generators_take() -> None:
    last = MOST_SEED + MOST  # seeds are counted on from the first one
    torch.Generator().manual_seed(last)
    torch.manual_seed(last)
    np.random.default_rng([last, 0])
    assert resolve({"seed": MOST_SEED, "height": 4096, "width": 1024}, cuda_devices=1).seed == MOST_SEED


def test_the_order_in_which_categories_are_given_does_not_matter() -> None:
    config = resolve(given("--toy", "--base_categories", "lower, upper", "--teacher_categories", "full,lower"), 0)
    assert (config.base_categories, config.teacher_categories) == ("upper,lower", "lower,full")
    assert resolve(given("--toy", "--base_categories", "none"), 0).base_categories == "none"


def test_a_lora_that_says_it_had_enormous_panels_is_refused() -> None:
    facts = replace(OF_ANOTHER_PROJECT, height=160_000)
    with pytest.raises(ValueError, match=r"a panel of 160000 x 576 \(height x width\) has 92,160,000 pixels"):
        panel_size(TryOnConfig(), facts)
    assert panel_size(TryOnConfig(height=768), facts) == (768, 576)
    assert len(panel_sizes((2048, 1536))) == 3 - 1, "four thirds of it are not offered"


def test_trackers_are_named_together_and_known_before_anything_is_loaded() -> None:
    config = resolve(given("--toy", "--report_to", "tensorboard, tensorboard"), cuda_devices=0)
    assert trackers(config) == ["tensorboard"]
    assert trackers(resolve(given("--toy", "--report_to", "none"), cuda_devices=0)) == []
    absent = next(name for name in TRACKERS if importlib.util.find_spec(name) is None)
    for value, message in (
        (absent, f"--report_to {absent} is not installed: run `pip install {absent}`"),
        ("tensorboard,none", "--report_to none is no tracker: give none, or some of tensorboard, wandb"),
        ("", "--report_to nothing is no tracker"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            resolve(given("--toy", "--report_to", value), cuda_devices=0)


def test_trackers_are_those_of_accelerate() -> None:
    assert sorted(TRACKERS) == sorted(LOGGER_TYPE_TO_CLASS)


def test_a_plan_is_made_for_other_machines_too() -> None:
    plan = PlanConfig(plan=True, gpu_memory=24.0)
    config = resolve({"profile": "quick_test", "num_processes": 4}, cuda_devices=0, plan=plan)
    assert not config.toy and config.num_processes == 4
    assert resolve({"profile": "quick_test"}, cuda_devices=0, plan=PlanConfig(plan=True)).toy
    with pytest.raises(ValueError, match="--plan --gpu_memory 24 to see what it would need"):
        resolve({}, cuda_devices=0, plan=PlanConfig(plan=True))
    with pytest.raises(ValueError, match="--price_per_hour is for --plan and --check: add one"):
        resolve({"profile": "quick_test"}, cuda_devices=0, plan=PlanConfig(price_per_hour=2.0))
    with pytest.raises(ValueError, match="--gpu_memory is for --plan: add it"):
        resolve({"profile": "quick_test"}, cuda_devices=0, plan=PlanConfig(check=True, gpu_memory=24))
    with pytest.raises(ValueError, match="--check measures and --plan foretells: give one of them"):
        resolve({"profile": "quick_test"}, cuda_devices=0, plan=PlanConfig(check=True, plan=True))


def test_more_processes_than_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one process per device"):
        resolve({"num_processes": 2}, cuda_devices=1)


def test_every_setting_is_read_somewhere() -> None:
    files = [*PROJECT.glob("*.py"), *PROJECT.glob("tryon/**/*.py"), *PROJECT.glob("deepfashion_training/*.py")]
    source = "\n".join(path.read_text() for path in files)
    # Each with the name that its values have where they are used.
    shapes = {
        TrainConfig: "config", TryOnConfig: "config", ExportConfig: "config", PretrainConfig: "config",
        PictureConfig: "pictures", PageConfig: "page", FolderConfig: "folders", DataConfig: "data",
        MaskConfig: "masks", InspectConfig: "config", PlanConfig: "plan", ShareConfig: "config",
        EvaluateConfig: "asked",
    }  # fmt: skip
    for shape, name in shapes.items():
        unread = [each.name for each in dataclasses.fields(shape) if not re.search(rf"{name}\.{each.name}\b", source)]
        if shape is PictureConfig:  # opened in a loop over their names
            unread = [each for each in unread if each not in ("garment", "image", "mask")]
        assert unread == [], shape


TOY_CHANGES = {
    "toy", "height", "width", "max_sequence_length", "prompt", "mixed_precision", "gradient_checkpointing", "compile",
    "num_inference_steps", "dataloader_num_workers",
}  # fmt: skip
QUICK_TOY_CHANGES = {
    "base_categories", "max_train_samples", "max_train_steps", "train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler", "weighting_scheme", "logit_mean", "validation_steps", "num_evaluation_samples",
    "balance", "checkpointing_steps",
}  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "changes"),
    [("full", TOY_CHANGES), ("h100", TOY_CHANGES), ("quick_test", TOY_CHANGES - {"compile"} | QUICK_TOY_CHANGES)],
)
def test_the_toy_changes_no_more_than_it_says(profile: str, changes: set[str]) -> None:
    before, after = dataclasses.asdict(PROFILES[profile]()), dataclasses.asdict(on_toy(PROFILES[profile]()))
    assert {name for name in before if before[name] != after[name]} == changes


def test_a_tuple_takes_several_values_and_a_shared_flag_is_the_last_ones() -> None:
    of_model, of_evaluation = parse_flags(
        ("--lora", "a", "b c", "--lora_scale", "0.5", "--num_samples", "none"),
        "test",
        "test",
        TryOnConfig,
        EvaluateConfig,
    )
    assert of_evaluation == {"lora": ("a", "b c"), "num_samples": None}
    assert of_model == {"lora_scale": 0.5}
    with pytest.raises(ValueError, match="--lora: expected at least one argument"):
        parse_flags(("--lora",), "test", "test", EvaluateConfig)
    assert parse_flags((), "test", "test", EvaluateConfig) == [{}]


def test_a_cache_is_asked_for_by_name_and_threshold() -> None:
    assert [cache_threshold(each) for each in ("none", "first_block", "first_block:0.25")] == [None, 0.1, 0.25]
    for wrong in ("last_block", "first_block:", "first_block:0", "first_block:nan", "first_block:1.5", "none:0.1", ""):
        (problem,) = mistakes(TryOnConfig(cache=wrong))
        assert problem.startswith(f"--cache {wrong} is neither none nor first_block with a threshold above 0")
