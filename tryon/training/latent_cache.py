"""Latents on disk, each in a file named after everything that shaped it.

A name is a hash of the row's content, the model's files and the settings. If any of them changes, so does the name: a
stale latent is never read. Files are written under another name and renamed, so that each is whole or absent, and an
interrupted start goes on where it was. Masks are stored as bits.
"""

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tryon.config import TrainConfig
from tryon.console import is_first_process, progress_bar
from tryon.data.category import Category
from tryon.data.sample import LatentSample, SampleSource, TryOnSample, UnreadablePicture, check_unreadable
from tryon.files import files_fingerprint, free_disk
from tryon.flux.encode import encode_sample
from tryon.flux.load import ModelFiles
from tryon.signals import asked_to_stop, ignore_in_worker
from tryon.tensor_files import content_key, drop_damaged, read_whole, write_whole
from tryon.units import gigabytes, plural

logger = logging.getLogger(__name__)

TRY_OFF = "try-off"  # the task of a file that says one; of others it is a try-on
PENDING_WRITES = 8  # files that may wait to be written while the VAE goes on


@dataclass(frozen=True)
class LatentData(Dataset):
    """The encoded samples of one data set: LatentSample by index, each read from its memory-mapped file.

    files: variant by variant, each with all rows. categories, names: of the rows. try_offs: whether the last variant is
    that of WithTryOffs.
    """

    files: list[Path]
    categories: list[Category]
    names: list[str]
    try_offs: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> LatentSample:
        return read_latents(self.files[index])


def write_latents(path: Path, latents: LatentSample) -> None:
    """Writes one sample; its mask as one bit per pixel."""
    bits = torch.from_numpy(np.packbits(latents.mask.numpy(), axis=-1))
    tensors = {"target": latents.target.contiguous(), "masked": latents.masked.contiguous(), "mask_bits": bits}
    task = {"task": TRY_OFF} if latents.try_off else {}
    write_whole(path, tensors, {"key": latents.key, "category": latents.category, **task})


def read_latents(path: Path) -> LatentSample:
    """Reads what write_latents wrote. Raises DamagedFile where the file holds something else."""
    tensors, metadata = read_whole(path)
    mask = torch.from_numpy(np.unpackbits(tensors["mask_bits"].numpy(), axis=-1)).bool()
    try_off = metadata.get("task") == TRY_OFF
    return LatentSample(metadata["key"], tensors["target"], tensors["masked"], mask, metadata["category"], try_off)


def latent_files(samples: SampleSource, files: ModelFiles, config: TrainConfig, dtype: torch.dtype) -> list[Path]:
    """Where the samples' latents are kept, or would be; dtype: the VAE's."""
    folder = Path(config.data_cache_dir) / "latents"
    settings = [files_fingerprint(files.base / "vae"), str(dtype)]
    with progress_bar(len(samples), "reading samples", is_first_process()) as bar:  # all of their bytes
        names = []
        for index in range(len(samples)):
            names.append(content_key(samples.key(index), settings))
            bar.update()
    return [folder / name[:2] / f"{name}.safetensors" for name in names]


def data_identity(files: list[Path]) -> str:
    """What tells a data set from any other: the number of its samples, and a hash of what they hold. files: see
    latent_files."""
    digest = sha256("".join(path.name for path in files).encode()).hexdigest()
    return f"{len(files)} samples {digest[:12]}"


@dataclass(frozen=True)
class ReadableSamples(Dataset):
    """The samples, as a DataLoader's worker reads them: an UnreadablePicture is returned, as raising it would end the
    worker."""

    samples: SampleSource

    def __getitem__(self, index: int) -> TryOnSample | UnreadablePicture:
        try:
            return self.samples[index]
        except UnreadablePicture as error:
            return error


def read_ahead(samples: SampleSource, indices: list[int], workers: int, device: torch.device) -> DataLoader:
    """The samples of these indices in their order, with an UnreadablePicture in the place of one that cannot be read.
    Workers read them while the device encodes others."""
    if samples.mask_rule and samples.mask_rule.parser:
        workers = 0  # the parser may be on the GPU, which a forked process cannot use
    return DataLoader(
        ReadableSamples(samples),
        batch_size=None,
        sampler=indices,
        num_workers=min(workers, len(indices)),
        worker_init_fn=ignore_in_worker,
        pin_memory=device.type == "cuda",
    )


def cache_latents(
    samples: SampleSource, paths: list[Path], what: str, vae: AutoencoderKL, config: TrainConfig,
    accelerator: Accelerator,
) -> LatentData:  # fmt: skip
    """Encodes what is not cached yet, each process its share, and returns all readable samples in their order.

    paths: latent_files of the samples. Unreadable samples are skipped, counted and listed in the log. Raises ValueError
    where more than one of them, and more than 1 %, cannot be read, and where the disk has no room for what is to be
    written.
    """
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            drop_damaged(paths, what)
    # One of all samples that share a file: variants in which nothing is random.
    missing = list({path: index for index, path in enumerate(paths) if not path.exists()}.values())
    files = len(set(paths))
    rows = len(paths) // samples.variants
    variants = f" of {plural(rows, 'pair')} in up to {samples.variants} variants" if samples.variants > 1 else ""
    logger.info("%s: %d%s, %d of them encoded already", what, files, variants, files - len(missing))
    if missing:
        need = len(missing) * latents_bytes(config.height, 2 * config.width, vae.dtype.itemsize)
        _check_disk(Path(config.data_cache_dir) / "latents", len(missing), need)

    accelerator.wait_for_everyone()  # all have looked before the first writes
    started = time.monotonic()
    own = missing[accelerator.process_index :: accelerator.num_processes]
    bar = progress_bar(len(own), f"encoding {what}", accelerator.is_main_process)
    waited = encode_to_files(samples, own, paths, what, vae, config.dataloader_num_workers, bar)
    bar.close()
    accelerator.wait_for_everyone()
    if missing:
        seconds, encoded = time.monotonic() - started, sum(paths[index].exists() for index in missing)
        words = "%s encoded: %d, %.1f per second, two pictures each; for %.0f %% of the time it waited for pictures"
        logger.info(words, what, encoded, encoded / seconds, 100 * waited / seconds)

    readable = [row for row in range(rows) if all(path.exists() for path in paths[row::rows])]
    check_unreadable(rows - len(readable), rows, what)
    kept = [paths[variant * rows + row] for variant in range(samples.variants) for row in readable]
    return LatentData(kept, [samples.category(row) for row in readable], [samples.name(row) for row in readable])


def encode_to_files(
    samples: SampleSource, own: list[int], paths: list[Path], what: str, vae: AutoencoderKL, workers: int, bar: tqdm
) -> float:
    """Encodes the samples of the indices `own`, each into its file; unreadable ones are named in the log, once for all
    their variants.

    Returns for how many seconds the VAE waited for pictures. Raises ValueError where a file cannot be written.
    """
    reading = read_ahead(samples, own, workers, vae.device)
    writes: deque[Future[None]] = deque()
    asked = time.monotonic()
    waited, resized = 0.0, 0
    skipped = set()
    with ThreadPoolExecutor(1) as writer:  # left by a signal too only when what is under way is written
        for index, sample in zip(own, reading, strict=True):
            waited += time.monotonic() - asked
            if stop := asked_to_stop():  # the time is up
                raise SystemExit(stop)
            if isinstance(sample, UnreadablePicture):
                if str(sample) not in skipped:
                    logger.warning("skipped: %s", sample)
                skipped.add(str(sample))
            else:
                resized += sample.mask_was_resized
                writes.append(writer.submit(write_latents, paths[index], encode_sample(vae, sample)))
            while len(writes) > PENDING_WRITES:
                writes.popleft().result()
            bar.update()
            asked = time.monotonic()
        for write in writes:
            write.result()
    if resized:
        logger.warning("masks of another size than their pictures, resized: %d of %d %s", resized, len(own), what)
    return waited


def latents_bytes(height: int, width: int, itemsize: int) -> int:
    """What a diptych of height x width pixels takes in the cache: twice 16 channels of latents, and a bit a pixel."""
    return 2 * 16 * (height // 8) * (width // 8) * itemsize + height * width // 8


def _check_disk(folder: Path, count: int, need: int) -> None:
    """Says that `count` samples need this many bytes of disk. Raises ValueError where fewer are free."""
    free = free_disk(folder)
    words = "encoding %s into %s: %s needed, %s free"
    logger.info(words, plural(count, "sample"), folder, gigabytes(need), gigabytes(free))
    if need > free:
        raise ValueError(
            f"the latents need {gigabytes(need)} and {folder} has {gigabytes(free)} free: "
            "make room, or put the cache elsewhere with --data_cache_dir"
        )
