"""`train()` called as a library, on small samples in memory: what it trains, and what stops it."""

import json
import logging
import math
import pickle
import re
import shutil
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.tensorboard import SummaryWriter

from conftest import ListSource, make_sample
from launch import assert_same_run, metrics
from test_lora import predict
from train_flux_inpaint import train
from tryon.config import TrainConfig
from tryon.flux.load import load_transformer
from tryon.flux.lora import attach_lora
from tryon.flux.lora_header import read_facts
from tryon.flux.prompts import TRY_OFF_PROMPT
from tryon.inference.pipeline import build_pipeline
from tryon.inference.recipe import read_recipe
from tryon.profiles import on_toy
from tryon.runs import LORA_FILE, ema_file, find_lora, lora_file, lora_name, newest_checkpoint
from tryon.toy.model import ToyFolders, scheduler
from tryon.training.batches import load_batches
from tryon.training.latent_cache import LatentData

pytestmark = pytest.mark.e2e

PINNED_LOSSES = {1: 0.125715, 2: 0.131041, 3: 0.160118, 4: 0.266392, 5: 0.200061, 6: 0.231150}
TRAIN_DATA, VAL_DATA = (ListSource([make_sample(seed) for seed in seeds]) for seeds in (range(5), range(5, 7)))


@pytest.fixture
def config(tmp_path: Path, data_cache: Path, toy: ToyFolders) -> TrainConfig:
    """Batch 2 by 2 accumulated on five samples: the epoch ends in the middle of a step."""
    return replace(
        on_toy(TrainConfig()),
        height=96,
        width=64,
        pretrained_model_name_or_path=str(toy.base),
        pretrained_inpaint_model_name_or_path=str(toy.transformer),
        data_cache_dir=str(data_cache),
        output_dir=str(tmp_path / "run"),
        max_train_steps=6,
        train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_warmup_steps=2,
        lora_rank=4,
        lora_alpha=4,
        checkpointing_steps=3,
        validation_steps=6,
        num_validation_images=1,
        num_inference_steps=1,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_lora(str(run)))


def test_losses_are_those_of_the_record(config: TrainConfig) -> None:
    """A change of data, noise, model or formula shows here. Change the numbers only with the reason in the commit."""
    run = train(
        replace(config, learning_rate=1e-4), TRAIN_DATA, VAL_DATA
    )  # small, or rounding would grow with the steps
    expected = PINNED_LOSSES
    found = metrics(run)
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        assert math.isclose(found[step], loss, rel_tol=1e-4), repr(found)
    whole = metrics(run, "validation/loss")
    assert set(whole) == {0, 6}

    named = dict.fromkeys(
        name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)
    )
    of_all = [name for name in named if name.startswith("validation/")]
    assert of_all == ["validation/loss", "validation/loss_upper", "validation/loss_full"], "garments in their order"
    for region in ("repainted", "kept", "garment"):
        assert {f"validation_region/{region}{category}" for category in ("", "_upper", "_full")} <= named.keys()
    assert metrics(run, "validation_noise/0.75-1.00") == whole, "the noise levels of both samples are in that range"
    assert metrics(run, "validation_noise/0.75-1.00_full") == metrics(run, "validation/loss_full")
    shown = EventAccumulator(str(run / "logs" / "tryon")).Reload().Tags()["scalars"]
    assert min(shown) == "Loss/train" and "Loss/validation_full" in shown and "train/loss" not in shown


def test_training_is_deterministic_and_resume_is_exact(
    config: TrainConfig, toy: ToyFolders, vae: AutoencoderKL, tmp_path: Path
) -> None:  # fmt: skip
    """With every option of the recipe, whose LoRA plain diffusers reads as we do."""
    train_data, val_data = (ListSource([make_sample(seed) for seed in seeds]) for seeds in ((0, 2, 3, 6, 8), (5, 9)))
    config = replace(
        config, lora_dropout=0.2, mask_loss_weight=3.0, teacher_weight=0.5, timestep_shift="resolution",
        lora_targets="attention_and_context", lora_blocks="double", try_off_share=0.5, ema_decay=0.9,
        base_categories="lower", guidance_scale=30.0, validation_steps=3, keep_best="loss_full",
    )  # fmt: skip
    whole = train(config, train_data, val_data)
    average, trained = (load_file(file(whole / "checkpoint-6")) for file in (ema_file, lora_file))
    assert average.keys() == trained.keys()
    assert all(tensor.any() and not torch.equal(tensor, trained[key]) for key, tensor in average.items())
    losses = {
        file(whole / f"checkpoint-{step}"): metrics(whole, f"validation/{name}")[step]
        for file, name in ((lora_file, "loss_full"), (ema_file, "ema_loss_full"))
        for step in (3, 6)
    }
    assert len(set(losses.values())) == 4 and find_lora(str(whole)) == min(losses, key=losses.get)
    for step in (3, 6):
        shown = read_recipe(whole / "validation" / f"step-{step:06d}.png").loras
        assert shown == (lora_name(find_lora(str(whole / f"checkpoint-{step}"))),)
    first_half = replace(config, output_dir=str(tmp_path / "halves"), max_train_steps=3, dataloader_num_workers=2)
    train(first_half, train_data, val_data)
    halves = train(replace(first_half, max_train_steps=6, resume_from_checkpoint="latest"), train_data, val_data)
    assert_same_run(halves, whole)
    assert metrics(halves, "validation/ema_loss") == metrics(whole, "validation/ema_loss")
    assert read_facts(find_lora(str(halves))).try_off_prompt == TRY_OFF_PROMPT
    in_diffusers, ours = (load_transformer(toy.transformer, torch.float32) for _ in range(2))
    pipeline = build_pipeline(in_diffusers, vae, scheduler())
    pipeline.load_lora_weights(halves / "checkpoint-6" / "transformer", weight_name=LORA_FILE)
    attach_lora(ours, lora_file(halves / "checkpoint-6"), 1.0)
    assert torch.equal(predict(in_diffusers, vae), predict(ours, vae))
    plain = train(replace(config, try_off_share=0.0, output_dir=str(tmp_path / "plain")), train_data, val_data)
    assert metrics(plain) != metrics(whole) and read_facts(find_lora(str(plain))).try_off_prompt is None


def test_what_is_left_to_the_base_is_not_trained_on(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="have lower-body pairs and --base_categories lower leaves these to the model"):
        train(replace(config, base_categories="lower"), TRAIN_DATA, VAL_DATA)


def test_a_loss_that_is_not_measured_cannot_choose_the_best(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="--keep_best loss_lower was given and no validation pair is lower-body"):
        train(replace(config, keep_best="loss_lower"), TRAIN_DATA, VAL_DATA)


@pytest.mark.slow
def test_compiled_blocks_train_as_others_do(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Graphs and their backward passes, without a minute of C++ for their kernels: unit tests compile single blocks.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    config = replace(config, max_train_steps=2, gradient_checkpointing="2")
    plain = train(config, TRAIN_DATA, VAL_DATA)
    compiled = train(replace(config, compile=True, output_dir=str(tmp_path / "compiled")), TRAIN_DATA, VAL_DATA)
    for curve in ("train/loss", "train/grad_norm", "validation/loss"):
        assert metrics(compiled, curve) == pytest.approx(metrics(plain, curve), rel=1e-4), curve
    assert weights(compiled).keys() == weights(plain).keys()


def test_what_saves_memory_changes_little_or_nothing(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, max_train_steps=2, report_to="none")
    plain = metrics(train(config, TRAIN_DATA, VAL_DATA))
    offloaded = replace(config, offload=True, gradient_checkpointing="full", output_dir=str(tmp_path / "offloaded"))
    assert metrics(train(offloaded, TRAIN_DATA, VAL_DATA)) == plain
    with caplog.at_level(logging.INFO):
        quantised = replace(config, quantization="int8", output_dir=str(tmp_path / "int8"))
        assert metrics(train(quantised, TRAIN_DATA, VAL_DATA)) == pytest.approx(plain, rel=0.05)
    assert "frozen weights: int8" in caplog.text
    with pytest.raises(ValueError, match="quantization was int8 and is none"):
        train(replace(quantised, quantization="auto", max_train_steps=3, resume_from_checkpoint="latest"), TRAIN_DATA,
              VAL_DATA)  # fmt: skip


def test_where_time_goes_is_shown_said_and_kept(
    config: TrainConfig, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TRAIN_TERMINAL", "1")
    with caplog.at_level(logging.INFO):
        run = train(config, TRAIN_DATA, VAL_DATA)
    bars = [line.partition(":")[0] for line in capsys.readouterr().err.split("\r") if "%|" in line]
    shown = [bar for bar, _ in groupby(bars)]
    after_steps = shown[shown.index("training") :]
    assert after_steps == ["training", "saving step 6", "validating step 6"], "no bar is there once its work is done"
    assert {"reading samples", "drawing without the LoRA", "validating step 0"} <= set(shown)
    assert "step 6/6: loss" in caplog.text and "left" not in caplog.text.partition("step 6/6")[2].partition("\n")[0]
    assert re.search(r"where time went: validation \d+ %, data \d+ %, .*forward \d+ %, .*rest \d+ %", caplog.text)
    parts = ("data", "transfer", "forward", "backward", "optimiser", "checkpoint")
    seconds = {part: sum(metrics(run, f"time/{part}").values()) for part in parts}
    assert 0 < seconds["forward"] < sum(metrics(run, "train/seconds").values())
    assert set(metrics(run, "time/forward")) == {6}


def test_dropout_is_drawn_anew_in_each_step_and_never_validated_with(config: TrainConfig, tmp_path: Path) -> None:
    # At a rate that changes nothing, so that what differs is the dropout alone.
    still = replace(config, learning_rate=1e-30, lr_warmup_steps=0, init_lora=None)
    first = train(replace(config, max_train_steps=1, learning_rate=0.1, lr_warmup_steps=0), TRAIN_DATA, VAL_DATA)
    still = replace(still, init_lora=str(first), max_train_steps=2, validation_steps=1)
    plain = train(replace(still, output_dir=str(tmp_path / "plain")), TRAIN_DATA, VAL_DATA)
    dropped = train(replace(still, output_dir=str(tmp_path / "dropped"), lora_dropout=0.5), TRAIN_DATA, VAL_DATA)
    assert all(metrics(plain)[step] != metrics(dropped)[step] for step in (1, 2))
    assert metrics(plain, "validation/loss") == metrics(dropped, "validation/loss")


def test_another_seed_trains_something_else(config: TrainConfig, tmp_path: Path) -> None:
    run = train(replace(config, max_train_steps=3), TRAIN_DATA, VAL_DATA)
    other = train(replace(config, max_train_steps=3, seed=1, output_dir=str(tmp_path / "b")), TRAIN_DATA, VAL_DATA)
    assert metrics(run) != metrics(other)


def test_a_resumed_run_takes_the_new_learning_rate_and_no_other_data(config: TrainConfig, tmp_path: Path) -> None:
    half = replace(config, max_train_steps=3)
    train(half, TRAIN_DATA, VAL_DATA)
    again = replace(half, max_train_steps=4, resume_from_checkpoint="latest", learning_rate=5e-4)
    others = [make_sample(seed) for seed in range(90, 94)]
    with pytest.raises(ValueError, match="data was 5 samples .* and is 4 samples"):
        train(replace(again, data_cache_dir=str(tmp_path)), ListSource(others), VAL_DATA)
    assert not (tmp_path / "latents").exists(), "refused before anything is encoded"
    with pytest.raises(ValueError, match="seed was 0 and is 1; train_batch_size was 2 and is 1"):
        train(replace(again, seed=1, train_batch_size=1), TRAIN_DATA, VAL_DATA)
    run = train(again, TRAIN_DATA, VAL_DATA)
    assert metrics(run, "train/learning_rate")[4] == 5e-4


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: torch.tensor(math.nan))
    with pytest.raises(ValueError, match="the gradient's norm nan at step 1"):
        train(config, TRAIN_DATA, VAL_DATA)
    assert not list(Path(config.output_dir).glob("checkpoint-*"))


def test_a_finished_run_cannot_be_resumed(config: TrainConfig) -> None:
    train(replace(config, max_train_steps=3), TRAIN_DATA, VAL_DATA)
    with pytest.raises(ValueError, match="is at step 3 of 3: give more --max_train_steps"):
        train(replace(config, max_train_steps=3, resume_from_checkpoint="latest"), TRAIN_DATA, VAL_DATA)


def test_a_run_goes_on_with_a_new_cache_and_copied_models(config: TrainConfig, toy: ToyFolders, tmp_path: Path) -> None:
    train(replace(config, max_train_steps=1), TRAIN_DATA, VAL_DATA)
    shutil.copytree(toy.base.parent, tmp_path / "copied", copy_function=shutil.copyfile)
    moved = replace(
        config,
        pretrained_model_name_or_path=str(tmp_path / "copied/base"),
        pretrained_inpaint_model_name_or_path=str(tmp_path / "copied/transformer"),
        data_cache_dir=str(tmp_path / "cache"),
        resume_from_checkpoint="latest",
        max_train_steps=2,
    )
    assert set(metrics(train(moved, TRAIN_DATA, VAL_DATA))) == {1, 2}


def test_a_damaged_checkpoint_is_named_skipped_and_kept(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(config, TRAIN_DATA, VAL_DATA)
    resumed = replace(config, output_dir=str(tmp_path / "resumed"), checkpointing_steps=1, max_train_steps=3)
    run = train(resumed, TRAIN_DATA, VAL_DATA)
    for step, name in ((3, "optimizer.safetensors"), (2, "trainer_state.json")):
        with (run / f"checkpoint-{step}" / name).open("r+b") as file:
            file.write(b"x")
    resumed = replace(resumed, max_train_steps=6, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"checkpoint-3/optimizer.safetensors is damaged"):
        train(replace(resumed, resume_from_checkpoint=str(run / "checkpoint-3")), TRAIN_DATA, VAL_DATA)
    train(resumed, TRAIN_DATA, VAL_DATA)
    assert "optimizer.safetensors is damaged: kept as checkpoint-3.damaged, going on from checkpoint-1" in caplog.text
    assert (run / "checkpoint-2.damaged/manifest.json").is_file() and (run / "checkpoint-2/manifest.json").is_file()
    assert_same_run(run, whole)


def test_a_run_without_an_undamaged_checkpoint_is_refused_before_anything_is_loaded(config: TrainConfig) -> None:
    run = train(replace(config, max_train_steps=1), TRAIN_DATA, VAL_DATA)
    (run / "checkpoint-1" / "optimizer.json").unlink()
    resumed = replace(config, resume_from_checkpoint="latest", pretrained_model_name_or_path="nowhere")
    with pytest.raises(ValueError, match="has no undamaged checkpoint"):
        train(resumed, TRAIN_DATA, VAL_DATA)


def test_a_deadline_saves_and_goes_on_exactly(config: TrainConfig, tmp_path: Path) -> None:
    whole = train(config, TRAIN_DATA, VAL_DATA)
    parts = replace(config, output_dir=str(tmp_path / "parts"))
    for step in (1, 2):  # a minute has passed at once
        with pytest.raises(SystemExit) as left:
            train(replace(parts, max_time="0:00", resume_from_checkpoint="latest" if step > 1 else None), TRAIN_DATA,
                  VAL_DATA)  # fmt: skip
        assert left.value.code == 124 and newest_checkpoint(tmp_path / "parts").name == f"checkpoint-{step}"
    run = train(replace(parts, resume_from_checkpoint="latest"), TRAIN_DATA, VAL_DATA)
    assert_same_run(run, whole)


class Recorder(GeneralTracker):
    """A tracker that keeps what it is told, with a server that answers."""

    name, requires_logging_directory, started = "recorder", False, []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.rows, self.pictures, self.settings, self.finished = [], [], {}, False

    @property
    def tracker(self) -> "Recorder":
        return self

    def start(self) -> None:
        self.started.append(self)

    def store_init_configuration(self, values: dict) -> None:
        self.settings = values

    def log(self, values: dict, step: int | None = None) -> None:
        self.rows.append((step, values))

    def log_images(self, values: dict, step: int | None = None) -> None:
        self.pictures += [(step, name, picture) for name, pictures in values.items() for picture in pictures]

    def finish(self) -> None:
        self.finished = True


class NotThere(Recorder):
    name = "not there"

    def start(self) -> None:
        raise ConnectionError("no such server\nwith more about it")


def test_a_tracker_that_fails_does_not_end_the_training(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("the tracker's server is gone")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    monkeypatch.setattr(SummaryWriter, "add_scalars", fail)
    for kind in (Recorder, NotThere):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, kind.name, kind)
    run = train(replace(config, max_train_steps=2, report_to="not there,tensorboard,recorder"), TRAIN_DATA, VAL_DATA)
    assert caplog.text.count("tensorboard failed (the tracker's server is gone) and is left out") == 1
    assert caplog.text.count("not there failed (no such server) and is left out") == 1
    assert set(metrics(run)) == {1, 2} and find_lora(str(run)).is_file()

    recorder = Recorder.started[-1]
    assert recorder.settings["lora_rank"] == 4 and recorder.finished
    for curve in ("train/loss", "validation/loss"):
        assert {step: values[curve] for step, values in recorder.rows if curve in values} == metrics(run, curve)
    shown = Image.open(picture := run / "validation" / "step-000002.png").tobytes()
    assert read_recipe(picture).loras == (f"{run.name}, step 2",)
    assert [(step, name) for step, name, _ in recorder.pictures] == [(0, "validation"), (2, "validation")]
    assert recorder.pictures[-1][2].tobytes() == shown


def test_a_loss_that_is_not_finite_stops_before_the_update(config: TrainConfig) -> None:
    wild = replace(config, learning_rate=1e30, lr_warmup_steps=0, checkpointing_steps=1)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) .*at step 2.*lower --learning_rate.*\(sample \d, "):
        train(wild, TRAIN_DATA, VAL_DATA)
    assert newest_checkpoint(Path(config.output_dir)).name == "checkpoint-1"


def test_init_lora_starts_from_the_weights_of_another_run(config: TrainConfig, tmp_path: Path) -> None:
    first = train(replace(config, max_train_steps=3), TRAIN_DATA, VAL_DATA)
    second = replace(config, output_dir=str(tmp_path / "second"), init_lora=str(first), max_train_steps=1)
    run = train(replace(second, learning_rate=1e-30, lr_warmup_steps=0), TRAIN_DATA, VAL_DATA)
    for key, tensor in weights(first).items():
        torch.testing.assert_close(weights(run)[key], tensor, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="give --lora_rank 4 --lora_alpha 4"):
        train(replace(second, lora_rank=8, lora_alpha=8), TRAIN_DATA, VAL_DATA)


def test_init_lora_that_cannot_be_right_is_refused_before_anything_is_done(config: TrainConfig, run: Path) -> None:
    shutil.copytree(run / "checkpoint-1", Path(config.output_dir).parent / "checkpoint-1")
    lora = find_lora(str(Path(config.output_dir).parent / "checkpoint-1"))
    wild = {key: tensor / 0 for key, tensor in load_file(lora).items()}
    save_file(wild, lora)
    with pytest.raises(ValueError, match="is damaged: take another checkpoint"):
        train(replace(config, init_lora=str(lora)), TRAIN_DATA, VAL_DATA)
    alone = lora.with_name("alone.safetensors")
    save_file(wild, alone)
    with pytest.raises(ValueError, match="alone.safetensors holds numbers that are not finite"):
        train(replace(config, init_lora=str(alone)), TRAIN_DATA, VAL_DATA)
    assert not Path(config.output_dir).exists()


def test_every_optimizer_and_schedule_runs(config: TrainConfig, tmp_path: Path) -> None:
    for number, (optimizer, schedule) in enumerate([("adamw8bit", "cosine"), ("adamw", "linear")]):
        changes = {"optimizer": optimizer, "lr_scheduler": schedule, "output_dir": str(tmp_path / str(number))}
        changes["dataloader_num_workers"] = number  # once without and once with a worker
        run = train(replace(config, **changes, report_to="none"), TRAIN_DATA, VAL_DATA)
        rates = metrics(run, "train/learning_rate")
        assert rates[2] > rates[1] and rates[6] < rates[3]
        assert not (run / "logs").exists()


def test_batches_reach_workers_however_they_are_started(config: TrainConfig) -> None:
    """A worker that is not forked gets the collate function pickled."""
    loader = load_batches(
        config, LatentData([Path("a"), Path("b")], ["upper", "lower"], ["a", "b"]), {}, Accelerator(cpu=True), 0, 1
    )
    assert pickle.loads(pickle.dumps(loader.collate_fn)).keywords == {"prompts": {}}
    assert pickle.loads(pickle.dumps(loader.dataset)) == loader.dataset


def test_epochs_become_steps(config: TrainConfig) -> None:
    run = train(replace(config, num_train_epochs=2), TRAIN_DATA, VAL_DATA)  # 10 samples, 4 a step
    assert set(metrics(run)) == {1, 2, 3}


def test_a_kernel_that_fails_is_left_for_the_safest_one(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its second step on, torch's own choice of kernel returns NaN; with several kernels allowed it is used, with
    the plain one alone it is not."""
    config = replace(config, max_train_steps=4, checkpointing_steps=2, gradient_accumulation_steps=1)
    right = torch.nn.functional.scaled_dot_product_attention
    passes = 0

    def failing(query: torch.Tensor, *rest: torch.Tensor, **settings: object) -> torch.Tensor:
        nonlocal passes
        out = right(query, *rest, **settings)
        planned = isinstance(query, FakeTensor)  # without numbers, as activations are counted on
        if planned or not query.requires_grad or not torch.backends.cuda.flash_sdp_enabled():
            return out
        passes += 1
        return out * torch.nan if passes > 6 else out  # six blocks a step

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", failing)
    with caplog.at_level(logging.WARNING):
        whole = train(config, TRAIN_DATA, VAL_DATA)
    assert (
        caplog.text.count("step 2: the gradient is not finite with the attention kernel native; once more with _native")
        == 1
    )
    assert set(metrics(whole)) == {1, 2, 3, 4}
    assert all(math.isfinite(loss) for loss in metrics(whole).values())

    # Gone on from the second step with a kernel that is right again, the run still uses the safest one.
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", right)
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "checkpoint-4")
    resumed = train(replace(config, output_dir=str(copy), resume_from_checkpoint="latest"), TRAIN_DATA, VAL_DATA)
    assert_same_run(resumed, whole)


def test_a_gradient_that_no_kernel_makes_finite_stops_the_run(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch.nn.functional.scaled_dot_product_attention

    def failing(query: torch.Tensor, *rest: torch.Tensor, **settings: object) -> torch.Tensor:
        out = right(query, *rest, **settings)
        return out * torch.nan if query.requires_grad else out

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", failing)
    with pytest.raises(ValueError, match="the loss is nan .* at step 1, so this update was not made"):
        train(config, TRAIN_DATA, VAL_DATA)
