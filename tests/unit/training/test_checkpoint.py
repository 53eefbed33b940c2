"""Checkpoints: everything comes back, damage is noticed, the newest are kept."""

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from conftest import PROJECT
from tryon.config import TrainConfig, mistakes
from tryon.files import save_json, write_manifest
from tryon.flux.load import load_transformer
from tryon.flux.lora import add_lora
from tryon.flux.lora_header import LoraFacts, verify_lora
from tryon.runs import (
    LORA_FILE,
    SAME_WHEN_RESUMED,
    Refused,
    all_loras,
    check_identity,
    checkpoints,
    ema_file,
    find_lora,
    locked,
    lora_file,
    lora_name,
    newest_checkpoint,
    own_run,
    resume_hint,
    run_folder,
    step_of,
    with_paths,
)
from tryon.toy.model import ToyFolders
from tryon.training.checkpoint import (
    CheckpointWriter,
    TrainerState,
    load_checkpoint,
    save_checkpoint,
    take_snapshot,
    verify,
)
from tryon.training.step import make_optimizer

IDENTITY = {"data": "5 samples", "seed": 0}
FACTS = LoraFacts("base", "transformer", "fixed", 512, 768, 576, "rectangle", "full", 3)


def parts(transformer: FluxTransformer2DModel, optimizer: str = "adamw"):
    config = TrainConfig(optimizer=optimizer)
    parameters = add_lora(transformer, 16, 16, seed=0)  # large enough for bitsandbytes to use its 8-bit moments
    optimiser = make_optimizer(config, parameters)
    return parameters, optimiser


def step(parameters, optimiser, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimiser.step()


def save(run: Path, state: TrainerState, transformer, optimiser, keep: int | None = None) -> Path:
    return save_checkpoint(run, take_snapshot(state, FACTS, transformer, optimiser), keep)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_resumed_optimiser_goes_on_as_if_nothing_happened(
    optimizer: str, toy: ToyFolders, transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    trained = parts(transformer, optimizer)
    for seed in range(3):
        step(*trained, seed)
    state = TrainerState(step=3, identity=IDENTITY)
    checkpoint = save(tmp_path, state, transformer, trained[1])

    other = load_transformer(toy.transformer, torch.float32)
    resumed = parts(other, optimizer)
    assert load_checkpoint(checkpoint, IDENTITY, other, resumed[1]) == state
    for seed in range(3, 6):
        step(*trained, seed)
        step(*resumed, seed)
    for expected, found in zip(trained[0], resumed[0], strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("file", ["optimizer.safetensors", "transformer/pytorch_lora_weights.safetensors",
                                  "trainer_state.json", "optimizer.json"])  # fmt: skip
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed(file: str, damage: str, transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    trained = parts(transformer)
    step(*trained, 0)
    checkpoint = save(tmp_path, TrainerState(1, IDENTITY), transformer, trained[1])
    verify(checkpoint)
    path = checkpoint / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is {'missing' if damage == 'remove' else 'damaged'}"):
        verify(checkpoint)


def test_a_lora_that_is_not_finite_is_not_resumed(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    """Written whole by a step that was too large."""
    trained = parts(transformer)
    trained[0][5].data[0, 0] = torch.nan
    checkpoint = save(tmp_path, TrainerState(1, IDENTITY), transformer, trained[1])
    verify(checkpoint)
    with pytest.raises(ValueError, match=f"{checkpoint}.* holds numbers that are not finite.* an earlier checkpoint"):
        load_checkpoint(checkpoint, IDENTITY, transformer, trained[1])


def test_another_run_is_not_resumed(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    trained = parts(transformer)
    checkpoint = save(tmp_path, TrainerState(1, IDENTITY), transformer, trained[1])
    other = {"data": "6 samples", "seed": 0, "height": 96}
    with pytest.raises(ValueError, match="data was 5 samples and is 6 samples; height was 768 and is 96"):
        load_checkpoint(checkpoint, other, transformer, trained[1])


def test_what_is_written_while_training_goes_on_is_what_was_trained_before(
    transformer: FluxTransformer2DModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, disk = parts(transformer), threading.Event()
    step(*trained, 0)
    expected = save(tmp_path / "expected", TrainerState(1, IDENTITY), transformer, trained[1])
    (tmp_path / "run").mkdir()

    def slow(*arguments) -> Path:
        disk.wait()
        return save_checkpoint(*arguments)

    monkeypatch.setattr("tryon.training.checkpoint.save_checkpoint", slow)
    with CheckpointWriter(tmp_path / "run", keep=None) as writer:
        writer.save(TrainerState(1, IDENTITY), FACTS, transformer, trained[1])
        step(*trained, 1)
        writer.raise_if_failed()
        assert not checkpoints(tmp_path / "run")
        disk.set()
        writer.wait()
    found = tmp_path / "run" / "checkpoint-1"
    for file in ("optimizer.safetensors", "transformer/pytorch_lora_weights.safetensors"):
        tensors, others = load_file(found / file), load_file(expected / file)
        assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in others)


def test_a_checkpoint_that_cannot_be_written_is_said_at_the_next_step(
    transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    trained = parts(transformer)
    with CheckpointWriter(tmp_path / "no folder", keep=None) as writer:
        (tmp_path / "no folder").touch()
        writer.save(TrainerState(1, IDENTITY), FACTS, transformer, trained[1])
        for ask in (writer.wait, writer.raise_if_failed):
            with pytest.raises(ValueError, match="checkpoint-1 cannot be written .*: make room on the disk, then resu"):
                ask()


def test_retention_keeps_the_newest(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    trained = parts(transformer)
    for number in (5, 20, 100):
        save(tmp_path, TrainerState(number, IDENTITY), transformer, trained[1], keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]
    assert newest_checkpoint(tmp_path).name == "checkpoint-100"
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def validated(run: Path, **losses: dict[int, float]) -> None:
    """Writes the run's metrics. losses: of each name, by step."""
    rows = [{"step": step, f"validation/{name}": loss} for name, of in losses.items() for step, loss in of.items()]
    merged = {row["step"]: {} for row in rows}
    for row in rows:
        merged[row["step"]] |= row
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in merged.values()))


def test_the_best_checkpoint_is_kept_and_is_what_the_run_means(
    transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    """Of the steps that are both saved and validated."""
    trained = parts(transformer)
    validated(tmp_path, loss_lower={0: 0.1, 10: 0.5, 15: 0.2, 20: 0.4}, loss={10: 0.1, 20: 0.2, 40: 0.05})
    for number in (10, 20, 25, 30, 35):
        state = TrainerState(number, IDENTITY, keep_best="loss_lower")
        save(tmp_path, state, transformer, trained[1], keep=2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [20, 30, 35]
    assert find_lora(str(tmp_path)) == lora_file(tmp_path / "checkpoint-20")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-35", "from which training goes on"
    (tmp_path / "checkpoint-35" / "trainer_state.json").write_text("{")
    assert find_lora(str(tmp_path)) == lora_file(tmp_path / "checkpoint-20"), "also beside a damaged one"
    validated(tmp_path, loss_lower={20: 0.4, 35: 0.3})
    save(tmp_path, TrainerState(40, IDENTITY, keep_best="loss_lower"), transformer, trained[1], keep=2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [35, 40], "it is no longer the best"
    save(tmp_path, TrainerState(45, IDENTITY), transformer, trained[1], keep=2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [40, 45], "resumed without --keep_best"
    assert find_lora(str(tmp_path)) == lora_file(tmp_path / "checkpoint-45")


def test_a_checkpoint_means_its_average_where_that_scores_better(tmp_path: Path) -> None:
    run = make_run(make_run(tmp_path / "run", 10), 20)
    for step in (10, 20):
        for file in (lora_file, ema_file):
            (path := file(run / f"checkpoint-{step}")).parent.mkdir()
            path.touch()
    newer = run / "checkpoint-20"
    assert find_lora(str(run)) == lora_file(newer), "nothing is measured yet"
    validated(run, loss={10: 0.1, 20: 0.4}, ema_loss={10: 0.2, 20: 0.3}, loss_full={20: 0.2}, ema_loss_full={20: 0.3})
    assert find_lora(str(run)) == find_lora(str(newer)) == ema_file(newer) and lora_name(ema_file(newer)).endswith(
        "run, step 20, average"
    )
    assert find_lora(str(run / "checkpoint-10")) == lora_file(run / "checkpoint-10")
    assert find_lora(str(newer / "transformer")) == lora_file(newer)
    assert set(all_loras(tmp_path)) == {ema_file(newer), lora_file(run / "checkpoint-10")}
    (newer / "trainer_state.json").write_text('{"keep_best": "loss_full"}')
    assert find_lora(str(run)) == lora_file(newer), "by the loss that chooses the best"
    write_manifest(newer)
    verify_lora(ema_file(newer))
    ema_file(newer).write_text("changed")
    with pytest.raises(ValueError, match="ema/pytorch_lora_weights.safetensors is damaged: take another checkpoint"):
        verify_lora(ema_file(newer))


def test_a_checkpoint_without_a_manifest_does_not_count(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    trained = parts(transformer)
    first = save(tmp_path, TrainerState(1, IDENTITY), transformer, trained[1])
    second = save(tmp_path, TrainerState(2, IDENTITY), transformer, trained[1])
    (second / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path) == first
    with pytest.raises(ValueError, match="no whole checkpoint"):
        verify(second)


def test_a_lora_is_found_by_run_checkpoint_folder_and_file(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    trained = parts(transformer)
    checkpoint = save(tmp_path, TrainerState(1, IDENTITY), transformer, trained[1])
    file = checkpoint / "transformer" / "pytorch_lora_weights.safetensors"
    for name in (tmp_path, checkpoint, checkpoint / "transformer", file):
        assert find_lora(str(name)) == file
    with pytest.raises(ValueError, match="has no checkpoint"):
        find_lora(str(tmp_path / "nowhere"))


def test_a_folder_of_runs_means_its_newest_lora_and_the_others_are_listed(
    transformer: FluxTransformer2DModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = parts(transformer)
    files = [
        save(tmp_path / run, TrainerState(step, IDENTITY), transformer, trained[1]) / "transformer" / LORA_FILE
        for run, step in (("a", 1), ("b", 5), ("a", 2))
    ]
    for age, file in enumerate(files):
        os.utime(file, (1_000_000 + age, 1_000_000 + age))
    with caplog.at_level(logging.INFO):
        assert find_lora(str(tmp_path)) == files[2]
    assert (
        f"{tmp_path} has 3 LoRAs: a/checkpoint-2 is the newest; others: b/checkpoint-5, a/checkpoint-1" in caplog.text
    )


def make_run(folder: Path, step: int = 5) -> Path:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    (folder / f"checkpoint-{step}" / "manifest.json").write_text("{}")
    identity = {name: getattr(TrainConfig(), name) for name in SAME_WHEN_RESUMED}
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"step": step, "identity": identity}))
    return folder


def test_a_setting_that_is_younger_than_the_checkpoint_was_at_its_default(tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "run") / "checkpoint-5"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    del state["identity"]["teacher_weight"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    check_identity(checkpoint, {"teacher_weight": 0.0})
    with pytest.raises(ValueError, match="teacher_weight was 0.0 and is 0.5"):
        check_identity(checkpoint, {"teacher_weight": 0.5})


def test_a_folder_is_one_trainings(tmp_path: Path) -> None:
    hold = "import sys\nfrom pathlib import Path\nfrom tryon.runs import locked\nwith locked(Path(sys.argv[1])):\n" \
           "    print('held', flush=True)\n    sys.stdin.read()"  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    with (
        pytest.raises(ValueError, match=f"another training, process {process.pid} on .*, writes into"),
        locked(tmp_path),
    ):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path):  # whoever is killed holds nothing
        pass


def test_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    config = TrainConfig(profile="h100")
    new = run_folder(config, "lora")
    assert new.parent == tmp_path and new.name.startswith("lora_h100_20") and not new.exists()

    with pytest.raises(ValueError, match="has no h100 run with a checkpoint"):
        run_folder(TrainConfig(profile="h100", resume_from_checkpoint="latest"), "lora")

    def begin(name: str, profile: str, day: int) -> Path:
        (tmp_path / name).mkdir()
        save_json(tmp_path / name / "config.json", {"profile": profile})
        os.utime(tmp_path / name / "config.json", (day, day))
        return tmp_path / name

    make_run(begin("full_shirts", "full", 4))
    with pytest.raises(ValueError, match=r"no h100 run .*, or give the profile of another: full_shirts \(full\)$"):
        run_folder(TrainConfig(profile="h100", resume_from_checkpoint="latest"), "lora")
    make_run(begin("lora_h100_20260101_000000", "h100", 1))
    newest = make_run(begin("a", "h100", 2))
    begin("never_saved", "h100", 3)
    assert run_folder(TrainConfig(profile="h100", resume_from_checkpoint="latest"), "lora") == newest

    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        run_folder(TrainConfig(output_dir=str(newest)), "lora")
    assert run_folder(TrainConfig(output_dir=str(newest), resume_from_checkpoint="latest"), "lora") == newest
    with pytest.raises(ValueError, match="has no checkpoint to resume"):
        run_folder(TrainConfig(output_dir=str(tmp_path / "x"), resume_from_checkpoint="latest"), "lora")
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        run_folder(TrainConfig(resume_from_checkpoint=str(newest / "checkpoint-6")), "lora")
    with pytest.raises(ValueError, match="has no checkpoint: name a run"):
        run_folder(TrainConfig(resume_from_checkpoint=str(tmp_path)), "lora")
    named = TrainConfig(resume_from_checkpoint=str(newest / "checkpoint-5"))
    for way in (named, TrainConfig(resume_from_checkpoint=str(newest))):
        assert run_folder(way, "lora") == newest
    make_run(newest, 7)
    (newest / "checkpoint-7-copy").mkdir()
    (newest / "checkpoint-7-copy" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the newest of its run"):
        run_folder(named, "lora")
    elsewhere = TrainConfig(resume_from_checkpoint=str(newest / "checkpoint-5"), output_dir=str(tmp_path / "new"))
    assert run_folder(elsewhere, "lora") == tmp_path / "new"
    make_run(tmp_path / "new")
    with pytest.raises(ValueError, match="holds checkpoints of another run than"):
        run_folder(elsewhere, "lora")

    named = TrainConfig(run_name="shirts")
    assert run_folder(named, "lora") == run_folder(replace(named, output_dir=str(tmp_path / "shirts")), "lora")
    (tmp_path / "shirts" / "validation").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "train.log", "persons.json"):
        (tmp_path / "shirts" / name).touch()
    assert run_folder(named, "lora") == tmp_path / "shirts", "stopped before its first checkpoint"
    (tmp_path / "shirts" / "mine.txt").touch()
    with pytest.raises(ValueError, match="shirts is there already: give another --run_name$"):
        run_folder(named, "lora")
    (tmp_path / "shirts" / "mine.txt").unlink()
    make_run(tmp_path / "shirts")
    with pytest.raises(ValueError, match="give another --run_name, or add --resume_from"):
        run_folder(named, "lora")
    assert run_folder(replace(named, resume_from_checkpoint="latest"), "lora") == tmp_path / "shirts"
    with pytest.raises(ValueError, match="--run_name and --output_dir name two folders"):
        run_folder(replace(named, output_dir=str(newest)), "lora")
    for name in ("", ".hidden", "-flag", "a/b", "..", "a b", "é", "a" * 101):
        assert any("is no name of a folder" in clause for clause in mistakes(TrainConfig(run_name=name))), name


def test_a_run_that_has_nothing_left_to_do_is_not_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", step=50)
    resume = TrainConfig(output_dir=str(run), resume_from_checkpoint="latest", max_train_steps=50)
    assert with_paths(replace(resume, num_evaluation_samples=4), "lora").output_dir == str(run), "it is not scored"
    with pytest.raises(ValueError, match="checkpoint-50 is at step 50 of 50 already: give more --max_train_steps"):
        with_paths(resume, "lora")
    assert with_paths(replace(resume, max_train_steps=51), "lora").output_dir == str(run)
    with pytest.raises(ValueError, match="height was 768 and is 96; seed was 0 and is 1: give what the run's config"):
        with_paths(replace(resume, max_train_steps=51, seed=1, height=96), "lora")


def test_model_folders_are_recorded_with_paths_that_hold_from_anywhere(
    toy: ToyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.base.parent)
    config = TrainConfig(pretrained_model_name_or_path="base", output_dir=str(tmp_path / ".." / tmp_path.name))
    resolved = with_paths(replace(config, data_cache_dir="base/../cache"), "lora")
    assert resolved.pretrained_model_name_or_path == str(toy.base) and resolved.output_dir == str(tmp_path)
    assert resolved.data_cache_dir == str(toy.base.parent / "cache")
    assert resolved.pretrained_inpaint_model_name_or_path == "xiaozaa/catvton-flux-alpha"


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path / "my run", step=25)
    config = TrainConfig(output_dir=str(run), max_train_steps=50)
    go_on = "saved up to step 25: go on with the same flags and"
    for changes, words in (
        ({}, f"{go_on} --resume_from_checkpoint '{run}/checkpoint-25'"),
        ({"init_lora": "other"}, f"{go_on} --init_lora none --resume_from_checkpoint"),
        ({"max_train_steps": 25}, "all is done up to step 25, and saved in "),
        (
            {"max_train_steps": 25, "num_evaluation_samples": 4},
            f"are still to come: give the same flags and --resume_from_checkpoint '{run}/check",
        ),
    ):
        with caplog.at_level(logging.INFO), pytest.raises(SystemExit), resume_hint(replace(config, **changes)):
            raise SystemExit(130)
        assert words in caplog.text
        caplog.clear()

    with caplog.at_level(logging.INFO), pytest.raises(ValueError), resume_hint(config):
        raise ValueError("the disk is full")
    assert "saved up to step 25" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO), pytest.raises(ValueError), resume_hint(config):
        raise Refused("another run")
    assert not caplog.text


def test_a_start_that_does_not_begin_leaves_no_record(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", step=25)
    kept = {"config.json": "{}", "config-from-25.json": '{"seed": 1}', "warnings.log": "12:00:00 of the run\n"}
    for name, content in kept.items():
        (run / name).write_text(content)
    config = TrainConfig(output_dir=str(run), resume_from_checkpoint="latest")
    for names in (kept, ["config.json"]):  # with files of an earlier start from this checkpoint, and without
        for name in kept.keys() - names:
            (run / name).unlink()
        with pytest.raises(Refused), own_run(config, True):
            logging.getLogger().warning("of another data set")
            assert "of another data set" in (run / "warnings.log").read_text()
            raise Refused("another run")
        assert {name: (run / name).read_text() for name in kept if (run / name).exists()} == {
            name: kept[name] for name in names
        }
    with pytest.raises(SystemExit), own_run(config, True) as begun:
        begun()
        raise SystemExit(130)
    assert json.loads((run / "config-from-25.json").read_text())["output_dir"] == str(run)
