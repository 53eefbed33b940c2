"""Which pairs LoRAs are scored on: such as none of them was trained on. Its checks import nothing heavy."""

import logging
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deepfashion_training.preflight import DATA_SET, DataConfig, from_settings, toy_data_folder
from folder_lists import FolderConfig, FolderPair, has_validation, keeps_tests_apart, pairs_of, read_pairs, with_lists
from tryon.config import MOST, MaskConfig, TrainConfig, TryOnConfig, setting
from tryon.data.category import Category, MaskRule
from tryon.data.layout import LAYOUTS
from tryon.files import full_path, read_json
from tryon.runs import run_of
from tryon.units import plural

if TYPE_CHECKING:
    import torch

    from deepfashion_training.deepfashion_dataset import DeepFashionData
    from folder_datasets import FolderData
    from tryon.data.sample import SampleSource
    from tryon.evaluation.cases import CaseSource

logger = logging.getLogger(__name__)

# What decides which items of a data set a training holds back.
SPLIT = ("seed", "max_validation_samples", "min_reference")

# Of data that no LoRA was trained on a tenth of the items is scored, however many that are.
UNSEEN = {"max_validation_samples": sys.maxsize}

# A LoRA is scored on garments too that it leaves to the model: it is used so.
EVERY_CATEGORY = {"base_categories": "none"}

Data = TypeVar("Data", "FolderData", "DeepFashionData")
TrainingSettings = dict[Path, dict[str, Any]]  # of LoRAs: the settings of their runs, empty where they are not known


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """Which pairs are scored on."""

    dataset_name: str | None = setting(None, f"{DATA_SET}; what the first LoRA was trained on if not given")
    dataroot: str | None = setting(None, f"folder laid out as {LAYOUTS}, instead of --dataset_name")
    validation_data_list: str | None = setting(None, "list of pairs in --dataroot; as trained, or that of the test")
    num_samples: int | None = setting(32, "score on the first N pairs of each category; 'none': on all", 1, MOST)


def mistaken_flags(asked: HeldOutConfig) -> list[str]:
    """What is wrong with the flags, each in a clause."""
    problems = []
    if asked.dataset_name and asked.dataroot:
        problems.append("give either --dataset_name or --dataroot")
    if asked.dataroot and not Path(asked.dataroot).expanduser().is_dir():
        problems.append(f"--dataroot {asked.dataroot} is no folder")
    if asked.validation_data_list and asked.dataset_name:
        problems.append("--validation_data_list names a list in --dataroot: leave it out beside --dataset_name")
    return problems


def training_settings(files: list[Path]) -> TrainingSettings:
    """The settings of the runs of LoRAs, in their order, then of the LoRAs that these began from (--init_lora): they
    have learnt from those data too."""
    found: TrainingSettings = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop(0)
        if file not in found:
            run = run_of(file)
            config = run / "config.json" if run else None
            found[file] = read_json(config) if config else {}
            if root := found[file].get("dataroot"):
                found[file]["dataroot"] = str(full_path(root))  # older runs keep a `..` as it was given
            if origin := found[file].get("init_lora"):
                waiting.append(Path(origin))
    return found


def named_data(asked: HeldOutConfig, trained: TrainingSettings) -> HeldOutConfig:
    """What the flags name, else what the first LoRA was trained on. Neither data set nor folder: drawings, or nothing
    is known.

    Raises ValueError where a list of pairs is given without a folder, and where the list cannot be used.
    """
    first = next(iter(trained.values()))
    name = None if asked.dataroot else asked.dataset_name or first.get("dataset_name")
    root = None if name else asked.dataroot or first.get("dataroot")
    asked = replace(asked, dataset_name=name, dataroot=root and str(full_path(root)))
    if root:
        scored_pairs(asked, trained)
    elif asked.validation_data_list:
        raise ValueError(
            "--validation_data_list is for VITON-HD and DressCode folders: give --dataroot, or leave it out"
        )
    return asked


def is_own(settings: dict[str, Any], asked: HeldOutConfig) -> bool:
    """Whether a run with these settings was trained on the data that are scored. asked: see named_data."""
    return (settings.get("dataset_name"), settings.get("dataroot")) == (asked.dataset_name, asked.dataroot)


def scored_pairs(asked: HeldOutConfig, trained: TrainingSettings) -> tuple[FolderConfig, list[FolderPair]]:
    """The folder, and its validation pairs, which are scored: where it brings none, those that the first training on it
    has held back."""
    settings = next((each for each in trained.values() if each.get("dataroot") == asked.dataroot), UNSEEN)
    folders = replace(from_settings(FolderConfig, settings), dataroot=asked.dataroot)
    listed = asked.validation_data_list or folders.validation_data_list
    folders = with_lists(replace(folders, validation_data_list=listed))
    if has_validation(folders):
        return folders, pairs_of(folders.dataroot, "test", folders.validation_data_list)
    return folders, read_pairs(folders, replace(from_settings(TrainConfig, settings), **EVERY_CATEGORY))[1]


def choose_cases(
    asked: HeldOutConfig,
    trained: TrainingSettings,
    rule: MaskRule,
    config: TryOnConfig,
    device: "torch.device",
    *,
    try_offs: Collection[Category],
) -> tuple[str, dict[str, "CaseSource"]]:
    """What the scores are of, in words, and the cases of each kind.

    asked: see named_data. trained: of the LoRAs, the first one first. config: with the panel's size. try_offs:
    categories whose garments are taken off too. Raises ValueError where no data is known, and where one of the
    LoRAs may have learnt from these pairs.
    """

    name, first, size = asked.dataset_name, next(iter(trained.values())), (config.height, config.width)
    of_toy = name is not None and name == str(toy_data_folder(first.get("data_cache_dir", "")))
    if of_toy or (config.toy and not (name or asked.dataroot)):
        from tryon.toy.examples import held_out_drawings

        if asked.num_samples is None:
            raise ValueError("--num_samples none is for data sets, and drawings are endless: give a number")
        return f"drawings, masks by {rule.name}", held_out_drawings(asked.num_samples, *size, rule, try_offs=try_offs)
    if asked.dataroot:
        from folder_datasets import folder_samples

        folders, pairs = scored_pairs(asked, trained)
        check_persons(trained, asked.dataroot, pairs)
        data = folder_samples(pairs, replace(folders, parser=rule.parser), mask_config(rule), config, device)
        data = without_trained_persons(data, trained, asked)
        return asked.dataroot, cases_of(data, asked.num_samples, data.name, try_offs)
    if name is None:
        raise ValueError("what the first LoRA was trained on is not known: give --dataset_name or --dataroot")

    from deepfashion_training.deepfashion_dataset import load_deepfashion

    # The split of a LoRA that was trained on these data: only what it held back is scored.
    settings = next((each for each in trained.values() if each.get("dataset_name") == name), UNSEEN)
    chosen = replace(
        from_settings(DataConfig, settings), dataset_name=name, parser=rule.parser,
        worn_reference_share=0.0,  # it changes training pairs only
    )  # fmt: skip
    split = replace(
        from_settings(TrainConfig, settings), height=config.height, width=config.width, cache_dir=config.cache_dir,
        data_cache_dir=str(full_path(config.data_cache_dir)), **EVERY_CATEGORY,
    )  # fmt: skip
    check_split(trained, name, {**vars(chosen), **vars(split)})
    _, data = load_deepfashion(chosen, mask_config(rule), split, device)
    data = without_trained_persons(data, trained, asked)
    cases = cases_of(data, asked.num_samples, lambda index: data.pair(index).pid, try_offs)
    return f"{name}, masks by {rule.name}", cases


def cases_of(
    data: "SampleSource", per_category: int | None, item: Callable[[int], str], try_offs: Collection[Category]
) -> dict[str, "CaseSource"]:
    """The cases of held-out pairs, see held_out_cases, and the try-offs of the paired ones where they are asked for."""
    from tryon.evaluation.cases import held_out_cases, try_offs_of

    cases = held_out_cases(data, per_category, item)
    return cases | try_offs_of(cases["paired"], try_offs)


def check_split(trained: TrainingSettings, name: str, used: dict[str, Any]) -> None:
    """Raises ValueError where a LoRA was trained on another split of the data set `name`: it may have learnt from pairs
    that are scored. used: the settings of the split that is scored."""
    for file, settings in known(trained):
        differences = [each for each in SPLIT if settings.get(each, used[each]) != used[each]]
        if settings.get("dataset_name") == name and differences:
            words = ", ".join(f"{each} {settings[each]} instead of {used[each]}" for each in differences)
            raise ValueError(
                f"{file} was trained on another split of {name} ({words}) and may have learnt from pairs that are "
                "scored: score it by itself, or on data that none of the LoRAs has seen"
            )


def check_persons(trained: TrainingSettings, dataroot: str, pairs: list[FolderPair]) -> None:
    """Raises ValueError where a LoRA was trained on persons of the folder that are scored: another list may name them,
    and another seed hold back others. VITON-HD keeps those of its test apart."""
    for file, settings in known(trained):
        if settings.get("dataroot") == dataroot and not keeps_tests_apart(dataroot):
            folders = with_lists(from_settings(FolderConfig, settings))
            learnt, _ = read_pairs(folders, from_settings(TrainConfig, settings))
            if both := {pair.person for pair in learnt} & {pair.person for pair in pairs}:
                raise ValueError(
                    f"{file} was trained on {folders.train_data_list or dataroot}, which has "
                    f"{plural(len(both), 'person')} of those that are scored: give another --validation_data_list"
                )


def without_trained_persons(data: Data, trained: TrainingSettings, asked: HeldOutConfig) -> Data:
    """The data without the pairs whose person a LoRA was trained on, known by the picture: it may lie in another folder
    or layout. The log says how many are left out, and of which LoRAs that cannot be known. asked: see named_data.
    Raises ValueError where no pair is left."""
    from tryon.data.persons import person_digests, read_persons

    records = {file: read_persons(run_of(file)) for file, settings in trained.items() if settings}
    for file, persons in records.items():
        if persons is None and not is_own(trained[file], asked):
            logger.warning(
                "the run of %s has no record of its persons: whether it was trained on some of these, in another "
                "folder, cannot be known", file,
            )  # fmt: skip
    if not any(records.values()):
        return data
    digests, learnt = list(person_digests(data)), set()
    for file, persons in records.items():
        if both := [index for index, digest in enumerate(digests) if digest in (persons or ())]:
            of_all = f"{len(both)} of {plural(len(digests), 'pair')}"
            logger.warning("%s was trained on the persons of %s, which are left out", file, of_all)
            learnt |= set(both)
    if len(learnt) == len(digests):
        raise ValueError(
            "the LoRAs were trained on every person that would be scored: score on data that none of them has seen"
        )
    return replace(data, pairs=[pair for index, pair in enumerate(data.pairs) if index not in learnt])


def known(trained: TrainingSettings) -> list[tuple[Path, dict[str, Any]]]:
    """The LoRAs whose training data is known; the log warns of the others."""
    for file, settings in trained.items():
        if not settings:
            logger.warning("what %s was trained on is not known: it may have learnt from some of these pairs", file)
    return [(file, settings) for file, settings in trained.items() if settings]


def mask_config(rule: MaskRule) -> MaskConfig:
    """The settings that the rule follows from."""
    return MaskConfig(
        mask_rule=rule.name, mask_top=rule.top, mask_bottom=rule.bottom, mask_left=rule.left, mask_right=rule.right
    )
