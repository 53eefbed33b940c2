"""Writes a data set's training and validation pairs as VITON-HD folders, which CatVTON-Flux's own script and other
VITON trainers read, and ours: `train_flux_inpaint.py` gets the very samples that the data set itself gives.

    python -m deepfashion_training.export_viton_hd <data set> <folder>

    <folder>/train/{image,cloth,agnostic-mask}   <folder>/test/{image,cloth,agnostic-mask}
    <folder>/train_pairs.txt, test_pairs.txt     person.jpg garment.jpg; in the test list the garment of another person
    <folder>/train/categories.txt, test/...      person.jpg upper|lower|full, which VITON-HD itself does not know

A pair with something random in it is written as its first variant. Nothing is lost on the way: a photograph that is a
JPEG already is copied, and everything else written as PNG under the .jpg name that VITON trainers insist on; picture
libraries go by the content.
"""

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepfashion_training.preflight import DATA_SET, DataConfig, checked_data_path, from_settings
from tryon.cli import parse, run_script
from tryon.config import MOST, MOST_SEED, MaskConfig, TrainConfig, setting
from tryon.console import load_libraries, progress_bar, set_up_logging
from tryon.files import replacing

if TYPE_CHECKING:
    from PIL import Image

    from deepfashion_training.deepfashion_dataset import DeepFashionData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is exported where. The split is the one that training with the same seed and limits makes."""

    dataset_name: str = setting(None, DATA_SET, positional=True)
    folder: str = setting(None, "where the folders are written; must not be there yet", positional=True)
    seed: int = setting(TrainConfig.seed, "seed of the split", 0, MOST_SEED)
    max_train_samples: int | None = setting(None, "export the first N training samples only", 1, MOST)
    max_validation_samples: int = setting(
        TrainConfig.max_validation_samples, "export at most N validation samples", 1, MOST
    )
    cache_dir: str | None = setting(None, "where the hub's files are kept; the hub's own default if not given")


def read_settings(argv: list[str]) -> ExportConfig:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    command = "python -m deepfashion_training.export_viton_hd <data set> <folder>"
    description = "Writes a data set's pairs as VITON-HD folders."
    (config,) = parse(argv, command, description, ExportConfig, problems=problems_of)
    return replace(config, dataset_name=checked_data_path(config.dataset_name))


def problems_of(config: ExportConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    if Path(config.folder).expanduser().exists():
        yield f"{config.folder} exists: remove it or name another folder"


def main(argv: list[str]) -> None:
    config = read_settings(argv)
    set_up_logging(is_main_process=True)

    load_libraries("torch", "datasets")
    import torch

    from deepfashion_training.deepfashion_dataset import load_deepfashion

    folder = Path(config.folder).expanduser().absolute()
    data, settings = DataConfig(dataset_name=config.dataset_name), from_settings(TrainConfig, vars(config))
    train, validation = load_deepfashion(data, MaskConfig(variants=1), settings, torch.device("cpu"))
    with replacing(folder) as staging:
        counts = [write_split(data, staging, split) for data, split in ((train, "train"), (validation, "test"))]
    logger.info("wrote %d training and %d test pairs into %s", *counts, folder)


def write_split(data: "DeepFashionData", root: Path, split: str) -> int:
    """Writes all readable pairs below root/<split> and their lists, and returns how many. The rest is logged.

    Raises ValueError where too many are unreadable (tryon.data.sample.check_unreadable).
    """
    from tryon.data.sample import UnreadablePicture, check_unreadable

    folder = root / split
    for part in ("image", "cloth", "agnostic-mask"):
        (folder / part).mkdir(parents=True)
    names: dict[str, list[str]] = {}
    bar = progress_bar(len(data), f"writing {split}", visible=True)
    for index in range(len(data)):
        stem = f"{index:06d}_00"
        try:
            garment, person, hidden = data.pictures(index)
        except UnreadablePicture as error:
            logger.warning("skipped: %s", error)
        else:
            person_file, _, *garment_files = data.files(index)
            whole = data.pair(index).reference in ("column", "flat")  # not cut out of anything
            write_picture(folder / "image" / f"{stem}.jpg", person, person_file)
            write_picture(folder / "cloth" / f"{stem}.jpg", garment, garment_files[0] if whole else None)
            hidden.save(folder / "agnostic-mask" / f"{stem}_mask.png")
            names.setdefault(data.category(index), []).append(f"{stem}.jpg")
        bar.update()
    bar.close()
    written = sorted((name, category) for category, group in names.items() for name in group)
    check_unreadable(len(data) - len(written), len(data), f"{split} pairs")
    # Unpaired, a person gets the garment of the next one of its category.
    others = {name: (group[1:] + group[:1])[at] for group in names.values() for at, name in enumerate(group)}
    pairs = [f"{name} {name if split == 'train' else others[name]}\n" for name, _ in written]
    (root / f"{split}_pairs.txt").write_text("".join(pairs))
    (folder / "categories.txt").write_text("".join(f"{name} {category}\n" for name, category in written))
    return len(written)


def write_picture(path: Path, picture: "Image.Image", source: bytes | None) -> None:
    """Writes the source's own bytes where they are a JPEG that every reader sees as `picture`, else a PNG of it."""
    from PIL import ExifTags

    from tryon.data.sample import open_picture

    if source:
        opened = open_picture(io.BytesIO(source))
        upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if opened.format == "JPEG" and opened.mode == "RGB" and upright:
            path.write_bytes(source)
            return
    picture.save(path, "PNG")


if __name__ == "__main__":
    run_script(main)
