"""How long a data set of the hub's size takes until its pairs are known, and how much memory.

    python -m benchmarks.data_scale

Draws rows in the hub's layout, small pictures, four shards; then columns, colours, references, categories and split are
found, and the keys of all samples computed, in a process of its own. A second start finds the colours in the cache.
"""

import io
import json
import logging
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from deepfashion_training.preflight import DataConfig
from tryon.cli import parse, run_script
from tryon.config import MOST, MOST_SIDE, PROJECT, MaskConfig, TrainConfig, setting
from tryon.console import load_libraries, progress_bar, set_up_logging

logger = logging.getLogger(__name__)

SHARDS = 4
VIEWS = ("front", "side", "back", "full", "additional", "flat")  # the last for every third item
KINDS = ("Tees_Tanks", "Blouses_Shirts", "Sweaters", "Dresses", "Pants", "Skirts", "Denim", "Graphic_Tees")


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """The flags of this script."""

    rows: int = setting(40_658, "rows of the data set; the hub's has 40,658", 10, MOST)
    picture_height: int = setting(128, "height of the pictures, whose width is three quarters of it", 16, MOST_SIDE)
    folder: str = setting(
        str(PROJECT / "runs" / "data_scale"), "where the data set is written, if none of that size is there yet"
    )
    measure: bool = setting(False, "measure in this process, which the script starts by itself")


def read_settings(argv: list[str]) -> ScaleConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Measures how long finding the pairs of a large data set takes."
    (config,) = parse(argv, "python -m benchmarks.data_scale", description, ScaleConfig)
    return config


def write_rows(config: ScaleConfig) -> None:
    """Items of about five views in the hub's layout; a garment is a rectangle of two colours, noise all around."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Features, Value
    from datasets import Image as Picture

    height, width = config.picture_height, config.picture_height * 3 // 4
    texts = {name: Value("string") for name in ("gender", "pose", "cloth_type", "pid", "caption")}
    features = Features({"images": Picture(), **texts, "mask": Picture(), "mask_overlay": Picture()})
    rng = np.random.default_rng(0)
    background = rng.integers(180, 220, (height, width, 3), dtype=np.uint8)
    rows, item, staging = [], 0, Path(config.folder).with_name(".partial")
    bar = progress_bar(config.rows, "writing rows", visible=True)
    while len(rows) < config.rows:
        kind, colours = KINDS[rng.integers(len(KINDS))], rng.integers(0, 256, (2, 3))
        for view in VIEWS[: 6 if item % 3 == 0 else 5][: config.rows - len(rows)]:
            pixels, mask = background.copy(), np.zeros((height, width), np.uint8)
            top, left = rng.integers(height // 4, height // 3), rng.integers(width // 5, width // 3)
            box = slice(top, top + height // 2), slice(left, left + width // 3)
            mask[box] = 255
            pixels[box] = colours[0]
            pixels[top : top + height // 8, box[1]] = colours[1]
            texts = {"gender": "WOMEN", "pose": view, "cloth_type": kind, "pid": f"id_{item:08d}"}
            caption = "a woman in a denim jacket and a skirt" if item % 2 else "a woman in jeans"
            images = {"images": _file(pixels, "JPEG"), "mask": _file(mask, "PNG"), "mask_overlay": _file(mask, "PNG")}
            rows.append({**images, **texts, "caption": caption})
            bar.update()
        item += 1
    bar.close()
    staging.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        part = rows[shard * len(rows) // SHARDS : (shard + 1) * len(rows) // SHARDS]
        table = pyarrow.Table.from_pylist(part, schema=features.arrow_schema)
        name = f"train-{shard:05d}-of-{SHARDS:05d}.parquet"
        pyarrow.parquet.write_table(table, staging / name, row_group_size=100)
    staging.rename(config.folder)


def _file(pixels: np.ndarray, kind: str) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def measure(config: ScaleConfig) -> None:
    """Finds pairs and keys, and prints seconds and memory as JSON."""
    import torch

    from deepfashion_training.deepfashion_dataset import load_deepfashion

    started = time.monotonic()
    train, validation = load_deepfashion(
        DataConfig(dataset_name=config.folder),
        MaskConfig(),
        TrainConfig(data_cache_dir=str(Path(config.folder).with_name("cache"))),
        torch.device("cpu"),
    )
    paired = time.monotonic()
    for index in range(len(train)):
        train.key(index)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found = {"pairs": len(train.pairs) + len(validation.pairs), "samples": len(train)}
    found |= {"pairs_seconds": paired - started, "keys_seconds": time.monotonic() - paired}
    print(json.dumps(found | {"peak_gb": peak / 1e6}))


def main(argv: list[str]) -> None:
    config = read_settings(argv)
    set_up_logging(is_main_process=True)
    load_libraries("torch", "datasets")
    if config.measure:
        measure(config)
        return
    config = replace(config, folder=str(Path(config.folder) / f"{config.rows}-{config.picture_height}"))
    if not Path(config.folder).is_dir():
        write_rows(config)
    cache = Path(config.folder).with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    for start in ("first start", "second start"):
        command = [sys.executable, "-m", "benchmarks.data_scale", "--folder", config.folder, "--measure"]
        done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        logger.info(
            "%s: %d pairs in %.1f s, keys of %d samples in %.1f s, %.2f GB the largest process",
            start, found["pairs"], found["pairs_seconds"], found["samples"], found["keys_seconds"], found["peak_gb"],
        )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
