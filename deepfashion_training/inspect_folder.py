"""Inspects a folder that --dataroot takes: its pairs, their pictures, and their masks where there are some."""

from collections.abc import Iterator
from functools import partial
from hashlib import sha256

import torch
from PIL import Image

from deepfashion_training.inspection import (
    Findings,
    Inspected,
    Look,
    few_or_rare,
    judge_pictures,
    measure,
    measure_stored,
    shaded,
)
from deepfashion_training.pairing import in_processes
from folder_datasets import WORN, FolderData, describe_pairs, folder_samples
from folder_lists import FolderConfig, FolderPair, needs_parser, read_pairs
from tryon.config import DEFAULT_PARSER, MaskConfig, TrainConfig, base_categories
from tryon.data.category import Category
from tryon.data.human_parser import find_worn, read_label_map
from tryon.data.masks import among, mask_picture
from tryon.data.sample import UNREADABLE, UnreadablePicture, open_picture, read_mask, read_picture, upright_size

UNMASKED = (
    "the folder has no masks, and none were looked at: a training lets a human parser make them, and --parser "
    f"{DEFAULT_PARSER} shows them here"
)


def inspect(folders: FolderConfig, masks: MaskConfig, config: TrainConfig) -> Inspected:
    """What there is to say of the folder, and to see. Raises ValueError as folder_samples does."""
    pairs = read_pairs(folders, config)
    warnings = few_or_rare([pair.category for pair in pairs[0]], len(pairs[1]), base_categories(config))
    findings = Findings(describe_pairs(folders, *pairs), warnings, [])
    if masked := not needs_parser(folders) or folders.parser is not None:
        train, validation = (folder_samples(each, folders, masks, config, torch.device("cpu")) for each in pairs)
    else:
        train, validation = (FolderData(each, config.height, config.width) for each in pairs)
        findings.warnings.append(UNMASKED)
    looks = [
        in_processes(partial(look_at, data, masked), list(range(len(data.pairs))), f"looking at the {what} pictures")
        for what, data in (("training", train), ("validation", validation))
    ]
    judge_pictures(findings, "pair", *looks)
    of_masks = (["mask"] if train.mask_rule else []) + (["hidden from the model"] if masked else [])
    columns = ["garment", "person", *of_masks]
    return findings, columns, lambda category: pictures_of(category, masked, validation, train)


def look_at(data: FolderData, masked: bool, indices: list[int]) -> list[Look]:
    """What was seen of these pairs. masked: they have masks."""
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    looks = []
    for index in indices:
        pair, measured, problem = data.pair(index), {}, ""
        try:
            person = read_picture(pair.person)
            measured = {"size": person.size, "digest": sha256(pair.person.read_bytes()).hexdigest()}
            read_picture(pair.garment)
            if masked:
                data.pictures(index)
                measured |= measured_mask(data, pair, person)
        except UNREADABLE as error:
            problem = str(error.__cause__ or error)
        looks.append(Look(pair.name, pair.category, problem, measured))
    return looks


def measured_mask(data: FolderData, pair: FolderPair, person: Image.Image) -> dict[str, object]:
    """Measures the garment in a label map, or the folder's own mask, which is larger than a garment by intention."""
    if data.mask_rule:
        return measure(person, worn(pair, person, data.parsed))
    resized = upright_size(pair.mask) != person.size
    found = measure(person, read_mask(pair.mask, person.size)) | measure_stored(open_picture(pair.mask))
    return found | {"still": 0.0, "resized": resized}


def worn(pair: FolderPair, person: Image.Image, parsed: bool) -> Image.Image:
    """Where the label map has the pair's garment. Raises ValueError where a parser saw none."""
    labels = read_label_map(pair.mask, person.size)
    return mask_picture(find_worn(labels, pair.category) if parsed else among(labels, WORN[pair.category]))


def pictures_of(category: Category, masked: bool, *sources: FolderData) -> Iterator[tuple[str, list[Image.Image]]]:
    """For each pair of the category that can be read a caption, garment and person; with masks, the garment in the
    label map, if there is one, and the hidden region."""
    for data in sources:
        for index, pair in enumerate(data.pairs):
            if pair.category != category:
                continue
            try:
                if not masked:
                    yield pair.name, [read_picture(pair.garment), read_picture(pair.person)]
                    continue
                garment, person, hidden = data.pictures(index)
            except (UnreadablePicture, *UNREADABLE):
                continue
            of_garment = [shaded(person, worn(pair, person, data.parsed))] if data.mask_rule else []
            yield pair.name, [garment, person, *of_garment, shaded(person, hidden)]
