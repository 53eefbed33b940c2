"""What is checked before anything heavy is imported: flags, data path, device, run folder.

The launcher runs this as a module. It prints what the launcher needs to know, one value a line: the run's folder
(created), the number of processes, `cuda` or `cpu`, the precision.
"""

import re
import time
from dataclasses import dataclass, replace
from os import environ
from pathlib import Path

from tryon.config import PROJECT, TrainConfig, cuda_device_count, parse_flags, resolve, setting
from tryon.entry import run_script

DEEPFASHION = "SaffalPoosh/deepFashion-with-masks"
DESCRIPTION = "LoRA fine-tuning of CatVTON-Flux. Defaults shown are the full profile's; a flag beats the profile."
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data set is trained on."""

    dataset_name: str | None = setting(
        None, f"hub name, folder of parquet files or saved data set (default {DEEPFASHION}, or the toy's data)"
    )


def read_settings(argv: list[str]) -> tuple[TrainConfig, DataConfig]:
    """The run's resolved configuration, paths made absolute. Raises ValueError, in one sentence, for every mistake."""
    given, data_given = parse_flags(argv, DESCRIPTION, TrainConfig, DataConfig)
    config = resolve(given, cuda_device_count())
    data = DataConfig(**data_given)
    if data.dataset_name is None and not config.toy:
        data = DataConfig(dataset_name=DEEPFASHION)
    if data.dataset_name is not None:
        data = DataConfig(dataset_name=checked_data_path(data.dataset_name))
    config = replace(config, data_cache_dir=str(Path(config.data_cache_dir).expanduser().absolute()))
    return replace(config, output_dir=str(run_folder(config))), data


def checked_data_path(name: str) -> str:
    """A folder's absolute path, or the hub name as it is. Raises ValueError where it can be neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        saved = any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
        if not saved and next(folder.rglob("*.parquet"), None) is None:
            raise ValueError(f"--dataset_name {name} holds neither parquet files nor a saved data set: name another")
        return str(folder.resolve())
    if folder.exists():
        raise ValueError(f"--dataset_name {name} is a file: name the folder that it lies in")
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(f"--dataset_name {name} is neither a folder nor a hub name: check the path")
    return name


def run_folder(config: TrainConfig) -> Path:
    """The run's folder: the one named; the newest one of the profile to be resumed; else a new name below RUNS_DIR.

    Raises ValueError where a new run would write over an old one's checkpoints, or there is nothing to resume.
    """
    parent = Path(environ.get("RUNS_DIR") or PROJECT / "runs").expanduser().absolute()
    prefix = f"deepfashion_lora_{config.profile}_"
    resume = config.resume_from_checkpoint
    if resume not in (None, "latest") and not (Path(resume).expanduser() / "manifest.json").is_file():
        raise ValueError(f"--resume_from_checkpoint {resume} is no whole checkpoint: name a checkpoint-<step> folder")
    if config.output_dir is not None:
        folder = Path(config.output_dir).expanduser().absolute()
        has_checkpoints = any(folder.glob("checkpoint-*/manifest.json"))
        if has_checkpoints and resume is None:
            raise ValueError(
                f"--output_dir {config.output_dir} holds checkpoints of another run: name another folder, "
                "or add --resume_from_checkpoint latest"
            )
        if resume == "latest" and not has_checkpoints:
            raise ValueError(f"--output_dir {config.output_dir} has no checkpoint to resume: name a run's folder")
        return folder
    if resume == "latest":
        runs = sorted({path.parent.parent for path in parent.glob(f"{prefix}*/checkpoint-*/manifest.json")})
        if not runs:
            raise ValueError(f"{parent} has no {config.profile} run with a checkpoint: start one without resuming")
        return runs[-1]
    if resume is not None:
        return Path(resume).expanduser().absolute().parent
    return parent / f"{prefix}{time.strftime('%Y%m%d_%H%M%S')}"


def main(argv: list[str]) -> None:
    config, _ = read_settings(argv)
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").touch()
    except OSError as error:
        raise ValueError(f"the run's folder {folder} cannot be written ({error.strerror}): choose another") from error
    device = "cuda" if cuda_device_count() else "cpu"
    print(folder, config.num_processes, device, config.mixed_precision, sep="\n")


if __name__ == "__main__":
    run_script(main)
