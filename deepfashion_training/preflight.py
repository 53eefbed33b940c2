"""What is checked before anything heavy is imported: flags, data path, device, run folder."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from deepfashion_training.picture_folder import check_metadata
from tryon.cli import checked, parse_flags
from tryon.config import DEFAULT_PARSER, HUB_NAME, MaskConfig, PlanConfig, TrainConfig, setting
from tryon.data.layout import LAYOUTS, holds_pairs, holds_rows, metadata_files
from tryon.files import read_json, save_json
from tryon.profiles import cuda_device_count, resolve
from tryon.runs import LAUNCH, LAUNCHER_LOCK, locked, with_paths

DEEPFASHION = "SaffalPoosh/deepFashion-with-masks"
TOY_ITEMS = 580  # enough for the quick test's 440 training and 20 validation pairs, with none of upper-body garments
KNOWN_ROWS = {None: TOY_ITEMS, DEEPFASHION: 40_658}  # of data sets, None the toy's
COMMAND = "bash ./train_deepfashion_lora.sh"
DESCRIPTION = (
    "LoRA fine-tuning of CatVTON-Flux. Defaults shown are the full profile's; a flag beats the profile. "
    "RUNS_DIR moves the folder that runs are kept in. In place of --dataset_name, --dataroot FOLDER trains on a folder "
    f"laid out as {LAYOUTS}; --dataroot FOLDER --help lists its flags."
)
DATA_SET = "hub name, saved data set, or folder of parquet files or of pictures with metadata.jsonl"

UsualReference = Literal["column", "flat", "other_view", "same_picture"]  # best first
Reference = Literal[UsualReference, "other_view_photo"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data set is trained on, and what is made of its rows."""

    dataset_name: str | None = setting(None, f"{DATA_SET} (default {DEEPFASHION}, or the toy's data)")
    min_reference: UsualReference = setting(
        "same_picture",
        "drop pairs whose garment is shown worse than so: by a picture of its own (column), alone (flat), cut out of "
        "another view, cut out of the same picture",
    )
    worn_reference_share: float = setting(
        0.0,
        "show the garment of this share of the training pairs by the whole photograph of another view, where there is "
        "one: for LoRAs that take photographs of people as garment pictures",
        0,
        1,
    )
    parser: str | None = setting(
        None, f"hub name or folder of a SegFormer that labels people's parts, such as {DEFAULT_PARSER}"
    )


def read_settings(argv: list[str]) -> tuple[TrainConfig, DataConfig, MaskConfig, PlanConfig]:
    """The run's resolved configuration, paths made absolute. Raises ValueError, in one sentence, for every mistake."""
    others = (DataConfig, MaskConfig, PlanConfig)
    given, *rest = parse_flags(argv, COMMAND, DESCRIPTION, TrainConfig, *others)
    data, masks, plan = checked(others, rest)
    if data.dataset_name:  # only of the drawings the quick test leaves a part out
        given = {"base_categories": "none"} | given
    config = resolve(given, cuda_device_count(), plan)
    data = checked_data(data, masks, config.toy)
    return with_paths(config, "deepfashion_lora"), data, masks, plan


def checked_data(data: DataConfig, masks: MaskConfig, toy: bool) -> DataConfig:
    """The settings with the default data set where none is named, but on the toy, and an absolute path.

    Raises ValueError for every mistake.
    """
    parser, name = data.parser, data.dataset_name or (None if toy else DEEPFASHION)
    if masks.mask_rule != "rectangle" and parser is None:
        raise ValueError(
            f"--mask_rule {masks.mask_rule} has to know the person's parts: name a --parser, or use the rule rectangle"
        )
    if masks.mask_rule == "rectangle" and parser is not None:
        raise ValueError("--parser has no use for --mask_rule rectangle: leave it out, or choose hull or parsing")
    if parser and Path(parser).expanduser().is_dir():  # the LoRA's header names it: from anywhere
        parser = str(Path(parser).expanduser().resolve())
    return replace(data, dataset_name=name and checked_data_path(name), parser=parser)


def checked_data_path(name: str) -> str:
    """A folder's absolute path, or the hub name as it is. Raises ValueError where it can be neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if holds_pairs(folder):
            raise ValueError(f"{name} is laid out as VITON-HD, DressCode or image/ and cloth/: give it as --dataroot")
        if not holds_rows(folder):
            raise ValueError(
                f"the data set {name} holds neither parquet files nor a saved data set nor pictures with "
                "metadata.jsonl, .csv or .parquet: name another, or put persons into image/ and garments into cloth/ "
                "and give their folder as --dataroot"
            )
        for file in metadata_files(folder):
            check_metadata(file)
        return str(folder.resolve())
    if folder.exists():
        raise ValueError(f"the data set {name} is a file: name the folder that it lies in")
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(f"the data set {name} is neither a folder nor a hub name: check the path")
    return name


def from_settings(shape: type, settings: dict[str, Any]) -> Any:
    """A configuration with those of the settings that it has a field for, and defaults for the rest."""
    return shape(**{each.name: settings[each.name] for each in fields(shape) if each.name in settings})


def toy_data_folder(data_cache_dir: str) -> Path:
    """Where the toy's data set lies."""
    from tryon.toy.world import WORLD_VERSION

    return Path(data_cache_dir) / "toy" / f"data-v{WORLD_VERSION}-{TOY_ITEMS}"


def start_log(config: TrainConfig, argv: list[str]) -> tuple[Path, dict[str, Any]]:
    """Creates the run's folder, a file that says how it was started, and the train.log. Returns the log, and what that
    file said before, empty for a new run.

    Raises ValueError where the folder cannot be written or another training writes into it.
    """
    folder = Path(config.output_dir)
    try:
        with locked(folder, LAUNCHER_LOCK), locked(folder):
            log = folder / "train.log"
            log.touch()
            begins = log.stat().st_size  # what earlier starts said comes before
            before = read_json(folder / LAUNCH)
            save_json(folder / LAUNCH, {"flags": argv, "folder": str(Path.cwd()), "log_begins": begins})
    except OSError as error:
        raise ValueError(f"the run's folder {folder} cannot be written ({error.strerror}): choose another") from error
    return log, before
