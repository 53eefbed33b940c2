"""The latent cache: files belong to their sample, are whole or not there, and faults are counted."""

import logging
import multiprocessing
import resource
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch.utils.data import get_worker_info

from conftest import ListSource, make_sample
from tryon.config import TrainConfig
from tryon.data.category import MaskRule
from tryon.data.sample import LatentSample, TryOnSample, UnreadablePicture
from tryon.data.try_off import with_try_offs
from tryon.flux.encode import encode_sample
from tryon.flux.load import ModelFiles, load_text_encoders, load_vae
from tryon.flux.prompt_cache import _device_for, cache_prompts
from tryon.flux.prompts import FIXED_PROMPT
from tryon.profiles import on_toy
from tryon.signals import stop_after
from tryon.toy.model import ToyFolders
from tryon.training.latent_cache import cache_latents, latent_files, read_latents, write_latents


class Faulty(ListSource):
    """Some samples cannot be read."""

    def __init__(self, samples: list[TryOnSample], bad: set[int]):
        super().__init__(samples)
        self.bad = bad

    def __getitem__(self, index: int) -> TryOnSample:
        if index in self.bad:
            raise UnreadablePicture(f"row {index % (len(self) // self.variants)}: broken")
        return super().__getitem__(index)


class ToldWhoReads(Faulty):
    """Samples whose keys say how many workers read them."""

    def __getitem__(self, index: int) -> TryOnSample:
        worker = get_worker_info()
        return replace(super().__getitem__(index), key=f"{worker.num_workers if worker else 0} workers")


@pytest.fixture
def config(tmp_path: Path, toy: ToyFolders) -> TrainConfig:
    paths = {"data_cache_dir": str(tmp_path), "pretrained_model_name_or_path": str(toy.base)}
    return on_toy(TrainConfig(**paths))


def cached(source: ListSource, vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig):
    paths = latent_files(source, ModelFiles(toy.base, toy.transformer), config, vae.dtype)
    return cache_latents(source, paths, "samples", vae, config, Accelerator(cpu=True))


def files(config: TrainConfig) -> list[Path]:
    return sorted(Path(config.data_cache_dir).glob("latents/*/*.safetensors"))


def test_what_is_read_is_what_was_encoded(vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig) -> None:
    samples = [make_sample(seed) for seed in range(3)]
    data = cached(ListSource(samples), vae, toy, config)
    for index, sample in enumerate(samples):
        expected, found = encode_sample(vae, sample), data[index]
        for name in ("target", "masked", "mask"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert (found.key, found.category) == (sample.key, sample.category)


def test_a_second_start_encodes_nothing(vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig) -> None:
    samples = [make_sample(seed) for seed in range(3)]
    cached(ListSource(samples), vae, toy, config)
    times = [path.stat().st_mtime_ns for path in files(config)]
    cached(Faulty(samples, bad={0, 1, 2}), vae, toy, config)  # would fail if anything were built again
    assert [path.stat().st_mtime_ns for path in files(config)] == times


def test_variants_share_a_file_where_nothing_is_random(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Two rows in two variants, of which the second row's are the same; an unreadable row takes its variants along."""
    samples = [make_sample(0), make_sample(1), make_sample(2), make_sample(1)]
    source = ListSource(samples)
    source.variants = 2
    with caplog.at_level(logging.INFO):
        data = cached(source, vae, toy, config)
    assert "samples: 3 of 2 pairs in up to 2 variants, 0 of them encoded already" in caplog.messages
    assert data.categories == ["upper", "lower"] and len(data) == 4 and len(set(data.files)) == 3
    assert [data[index].key for index in range(4)] == [sample.key for sample in samples]

    for bad in ({0, 2}, {2}):
        faulty = Faulty([make_sample(seed) for seed in (10, 11, 12, 13)], bad)
        faulty.variants = 2
        caplog.clear()
        data = cached(faulty, vae, toy, config)
        assert caplog.messages.count("skipped: row 0: broken") == 1
    assert data.categories == ["full"] and [data[index].key for index in range(2)] == ["sample 11", "sample 13"]


class PartlyAlone(ListSource):
    """Two pairs in two variants; the second one's garment is cut out of a photograph."""

    variants = 2

    def shows_garment_alone(self, index: int) -> bool:
        return index % 2 == 0


def test_try_offs_are_encoded_once_for_each_pair_that_has_one(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [make_sample(seed) for seed in range(4)]
    with caplog.at_level(logging.INFO):
        data = cached(with_try_offs(PartlyAlone(samples)), vae, toy, config)
    assert "try-offs are learnt from 1 of 2 pairs, those with a product picture" in caplog.text
    assert len(data) == 6 and len(files(config)) == 5 and data.files[5] == data.files[1]
    assert data.categories == ["upper", "lower"] and data.names == ["sample 0", "sample 1"]
    try_off, expected = data[4], encode_sample(vae, replace(samples[0], try_off=True))
    assert try_off.try_off and not data[5].try_off and try_off.category == "upper"
    for name in ("target", "masked", "mask"):
        assert torch.equal(getattr(try_off, name), getattr(expected, name)), name
    assert torch.equal(try_off.target, data[0].target) and not torch.equal(try_off.masked, data[0].masked)
    cached(PartlyAlone(samples), vae, toy, config)
    assert len(files(config)) == 5, "try-ons are the same without them"


def test_without_product_pictures_no_try_off_is_learnt() -> None:
    class Cut(PartlyAlone):
        def shows_garment_alone(self, index: int) -> bool:
            return False

    with pytest.raises(ValueError, match="no garment picture is a product picture"):
        with_try_offs(Cut([make_sample(seed) for seed in range(4)]))


def test_an_interrupted_start_goes_on_where_it_was(vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig) -> None:
    samples = [make_sample(seed) for seed in range(3)]
    data = cached(ListSource(samples), vae, toy, config)
    data.files[1].unlink()
    again = cached(Faulty(samples, bad={0, 2}), vae, toy, config)
    assert again.files == data.files


def test_another_content_setting_or_model_is_a_miss(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig, tmp_path: Path
) -> None:
    sample = make_sample(0)
    cached(ListSource([sample]), vae, toy, config)
    assert len(files(config)) == 1
    cached(ListSource([replace(sample, key="other content")]), vae, toy, config)
    assert len(files(config)) == 2
    half = load_vae(toy.base, torch.bfloat16, torch.device("cpu"))
    cached(ListSource([sample]), half, toy, config)
    assert len(files(config)) == 3
    other_model = tmp_path / "other" / "vae"
    shutil.copytree(toy.base / "vae", other_model)
    (other_model / "config.json").write_text((other_model / "config.json").read_text() + "\n")
    cached(ListSource([sample]), vae, replace(toy, base=tmp_path / "other"), config)
    assert len(files(config)) == 4


def test_one_unreadable_sample_is_skipped_and_named(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [make_sample(seed) for seed in range(4)]
    with caplog.at_level(logging.INFO):
        data = cached(Faulty(samples, bad={2}), vae, toy, config)
    assert [data[index].key for index in range(len(data))] == ["sample 0", "sample 1", "sample 3"]
    assert "skipped: row 2: broken" in caplog.text
    assert "1 of 4 samples" in caplog.text


def test_workers_encode_the_same_bits_and_name_what_they_cannot_read(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = ToldWhoReads([make_sample(seed) for seed in range(9)], bad={4})
    alone = cached(source, vae, toy, config)
    config = replace(config, data_cache_dir=str(tmp_path / "by workers"), dataloader_num_workers=2)
    with caplog.at_level(logging.INFO):
        data = cached(source, vae, toy, config)
    assert (data.categories, data.names) == (alone.categories, alone.names) and len(data) == 8
    for index in range(8):
        assert data.files[index].name == alone.files[index].name
        assert (alone[index].key, data[index].key) == ("0 workers", "2 workers")
        assert data[index].category == alone[index].category
        for name in ("target", "masked", "mask"):
            assert torch.equal(getattr(data[index], name), getattr(alone[index], name)), name
    assert "skipped: row 4: broken" in caplog.text and "1 of 9 samples" in caplog.text
    assert "samples encoded: 8, " in caplog.text


def test_a_parser_reads_in_the_process_that_has_the_gpu(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig
) -> None:
    source = ToldWhoReads([make_sample(0)], bad=set())
    source.mask_rule = MaskRule("hull", parser="some/parser")
    data = cached(source, vae, toy, replace(config, dataloader_num_workers=2))
    assert data[0].key == "0 workers"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_deadline_while_encoding_leaves_whole_files(
    workers: int, vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig
) -> None:
    source = ListSource([make_sample(seed) for seed in range(9)])
    config = replace(config, dataloader_num_workers=workers)
    pictures = count(1)
    hook = vae.encoder.register_forward_hook(lambda *_: stop_after(0) if next(pictures) == 6 else None)
    try:
        with pytest.raises(SystemExit) as left:
            cached(source, vae, toy, config)
    finally:
        hook.remove()
        stop_after(None)
    assert left.value.code == 124
    assert [path.suffix for path in Path(config.data_cache_dir).glob("latents/*/*")] == [".safetensors"] * 3
    data = cached(Faulty(source.samples, bad={0, 1, 2}), vae, toy, config)  # would fail if they were read again
    assert [data[index].key for index in range(9)] == [sample.key for sample in source.samples]


def test_resized_masks_are_counted(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [replace(make_sample(seed), mask_was_resized=seed == 1) for seed in range(3)]
    cached(ListSource(samples), vae, toy, config)
    assert "masks of another size than their pictures, resized: 1 of 3 samples" in caplog.text


def test_many_unreadable_samples_stop_the_run(vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig) -> None:
    samples = [make_sample(seed) for seed in range(4)]
    with pytest.raises(ValueError, match="2 of 4 samples cannot be read, more than 1 %"):
        cached(Faulty(samples, bad={1, 2}), vae, toy, config)
    with pytest.raises(ValueError, match="there are no samples"):
        cached(Faulty(samples[1:2], bad={0}), vae, toy, config)


def test_a_damaged_file_is_not_taken_for_latents(vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig) -> None:
    data = cached(ListSource([make_sample(0)]), vae, toy, config)
    content = data.files[0].read_bytes()
    data.files[0].write_bytes(content[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        read_latents(data.files[0])


def test_damaged_files_are_encoded_anew_and_counted(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    source = ListSource([make_sample(seed) for seed in range(3)])
    data = cached(source, vae, toy, config)
    expected = [data[index].target for index in range(3)]
    cut, flipped, _ = data.files
    cut.write_bytes(cut.read_bytes()[:-100])
    content = flipped.read_bytes()
    flipped.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cached(source, vae, toy, config)
    assert "2 of 3 encoded samples were damaged and are encoded again" in caplog.text
    assert all(torch.equal(data[index].target, target) for index, target in enumerate(expected))


def test_too_little_disk_is_refused_before_encoding(
    vae: AutoencoderKL, toy: ToyFolders, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ValueError, match="--data_cache_dir"):
        cached(ListSource([make_sample(0)]), vae, toy, config)
    assert files(config) == []


def test_prompts_are_encoded_once_and_their_length_matters(toy: ToyFolders, tmp_path: Path) -> None:
    def encode(prompts: list[str], length: int):
        cpu, cache = torch.device("cpu"), str(tmp_path)
        return cache_prompts(prompts, toy.base, length, torch.float32, cpu, Path(cache))

    first = encode(["a", FIXED_PROMPT], 16)
    assert first["a"].embeds.shape == (16, 64)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("prompts/*"))]
    assert torch.equal(encode(["a", FIXED_PROMPT], 16)["a"].embeds, first["a"].embeds)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("prompts/*"))] == times
    assert encode(["a"], 32)["a"].embeds.shape == (32, 64)
    assert len(list(tmp_path.glob("prompts/*"))) == 3


def test_text_encoders_run_where_there_is_room(toy: ToyFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    text_encoders = load_text_encoders(toy.base, torch.float32)
    for free, where in ((10**12, "cuda"), (10**9, "cpu")):
        monkeypatch.setattr("tryon.flux.prompt_cache.bytes_free", lambda device, free=free: free)
        assert _device_for(text_encoders, torch.device("cuda")).type == where


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    """Played by a limit on the size of files, in a process of its own."""
    latents = torch.zeros(16, 24, 36)
    sample = LatentSample("key", latents, latents.clone(), torch.zeros(1, 192, 288).bool(), "upper")
    write_latents(tmp_path / "first", sample)

    def write_on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(ValueError, match="second cannot be written.* make room, or put the cache elsewhere"):
            write_latents(tmp_path / "second", sample)

    process = multiprocessing.get_context("fork").Process(target=write_on_a_full_disk)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["first"] and read_latents(tmp_path / "first").key == "key"
