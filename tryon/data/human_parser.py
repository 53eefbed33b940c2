"""Label maps of people: which pixel is head, arm or leg, which garment. By a SegFormer with ATR labels, or a file."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from tryon.config import DEFAULT_PARSER, PARSER_FILES
from tryon.console import progress_bar
from tryon.data.category import CATEGORIES, Category, MaskRule
from tryon.data.masks import PARTS, agnostic_mask, among, mask_picture, without_specks
from tryon.data.sample import UNREADABLE, open_picture, read_picture
from tryon.files import files_fingerprint, replacing
from tryon.hub import folder_on_disk, hub_or_folder
from tryon.units import plural

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

logger = logging.getLogger(__name__)

# The labels of the ATR data set, which human parsers are trained on and DressCode's label maps use, in their order.
PART_OF_LABEL = {
    "Background": "background", "Hat": "head", "Hair": "head", "Sunglasses": "head", "Upper-clothes": "upper",
    "Skirt": "lower", "Pants": "lower", "Dress": "full", "Belt": "lower", "Left-shoe": "shoes", "Right-shoe": "shoes",
    "Face": "head", "Left-leg": "legs", "Right-leg": "legs", "Left-arm": "arms", "Right-arm": "arms", "Bag": "other",
    "Scarf": "other",
}  # fmt: skip
ATR = tuple(PART_OF_LABEL)

# How much of the picture's height a mask begins above the garment that was found: neither parsers nor hands are exact
# to the pixel, and at the mask's edge the new picture only fades in (tryon.inference.photograph). A strip of the old
# garment spoils a result; a mask that begins a little higher does not.
UNSURE = 0.015
BACKGROUND = PARTS.index("background")
PORTRAIT = 3 / 4  # width of one, in heights
LARGEST_PARSED = 2048  # pixels of the longer side, of the labels


def parts_of(labels: Sequence[str]) -> Tensor:
    """[labels], the places in PARTS of ATR labels."""
    return torch.tensor([PARTS.index(PART_OF_LABEL[label]) for label in labels])


_PART_OF_ATR = parts_of(ATR)
_LABEL_OF_PART = {part: ATR.index(label) for label, part in reversed(PART_OF_LABEL.items())}
_ATR_OF_PART = torch.tensor(
    [_LABEL_OF_PART.get(part, 0) for part in PARTS]
)  # hands have no label, no parser finds them


@dataclass(frozen=True)
class Parser:
    """A human parser: a model, what its pictures are made with, and the part that each of its labels is."""

    fingerprint: str  # of its files
    model: "SegformerForSemanticSegmentation"
    processor: "SegformerImageProcessorPil"
    parts: Tensor  # [labels], places in PARTS


def load_parser(name: str, cache_dir: str | None, device: torch.device) -> Parser:
    """Loads a SegFormer with ATR labels, such as mattmdjaga/segformer_b2_clothes, from the hub or a folder.

    Raises ValueError where it cannot be had, or its labels are not those of ATR.
    """
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil  # few data sets need it

    folder = hub_or_folder(name, PARSER_FILES, cache_dir)
    try:
        processor = SegformerImageProcessorPil.from_pretrained(folder)
        model, loaded = SegformerForSemanticSegmentation.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the parser {name} cannot be loaded ({error}): name a SegFormer with ATR labels") from error
    if absent := [*loaded["missing_keys"], *loaded["mismatched_keys"]]:
        raise ValueError(f"the parser {name} lacks {len(absent)} of its weights: name one that is complete")
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if unknown := sorted(set(labels) - set(PART_OF_LABEL)):
        raise ValueError(f"the parser {name} has the labels {', '.join(unknown)}: name a SegFormer with ATR labels")
    return Parser(files_fingerprint(folder), model.to(device).eval(), processor, parts_of(labels))


def parser_for_masks(name: str | None, cache_dir: str | None) -> Parser:
    """The parser, or the default one for photographs, to make masks with; downloaded only where it is not on the disk.
    Raises ValueError, in one sentence, where it cannot be had: then masks have to be given."""
    name = name or DEFAULT_PARSER
    try:
        on_disk = folder_on_disk(name, PARSER_FILES, cache_dir)
        return load_parser(str(on_disk or name), cache_dir, torch.device("cpu"))
    except ValueError as error:
        raise ValueError(
            f"without a human parser no mask can be made and nothing given back: {error}, or give a mask"
        ) from error


def labels_at_hand(labels: Callable[[], Tensor], name: str | None, cache_dir: str | None) -> Tensor | None:
    """A person's labels for what is worth no download: None where parser_for_masks would need one, or, which the log
    says, where its parser cannot be used. labels: gives them, by that parser."""
    if folder_on_disk(name or DEFAULT_PARSER, PARSER_FILES, cache_dir) is None:
        return None
    try:
        return labels()
    except ValueError as error:
        logger.warning("the mask is not compared with the person: %s", error)
        return None


def parse(parser: Parser, person: Image.Image) -> Tensor:
    """[H, W] of places in PARTS, bytes, for an RGB picture of a person.

    Parsers resize every picture to one shape and were trained on portraits. In a landscape a first pass therefore finds
    where the person stands, and a second one labels a portrait around it.
    """
    labels = _parse_portrait(parser, person)
    seen = (labels != BACKGROUND).any(0).nonzero().flatten().tolist()
    if person.width <= person.height or not seen:
        return labels
    width = max(round(PORTRAIT * person.height), round(1.2 * (seen[-1] - seen[0])))
    left = max(0, min((seen[0] + seen[-1] - width) // 2, person.width - width))
    portrait = _parse_portrait(parser, person.crop((left, 0, min(left + width, person.width), person.height)))
    labels = torch.full_like(labels, BACKGROUND)
    labels[:, left : left + portrait.shape[1]] = portrait
    return labels


@torch.no_grad()
def _parse_portrait(parser: Parser, person: Image.Image) -> Tensor:
    """[H, W] of places in PARTS, bytes, for a portrait. In a very large one the labels are coarser, as the model gives
    each pixel one float per label."""
    inputs = parser.processor(person, return_tensors="pt").to(parser.model.device)
    size = person.height, person.width
    scale = min(1.0, LARGEST_PARSED / max(size))
    scores = interpolate(parser.model(**inputs).logits, [round(scale * side) for side in size], mode="bilinear")
    parts = parser.parts[scores[0].argmax(0).cpu()].to(torch.uint8)
    return interpolate(parts[None, None], size, mode="nearest-exact")[0, 0]


def worn_garments(labels: Tensor) -> dict[Category, Tensor]:
    """[1, H, W] bool: the garment of each category that a person wears, specks aside, by its labels, [H, W] of places
    in PARTS. A full-body garment may replace an upper and a lower one together."""
    seen = {each: without_specks(among(labels, (each,))) for each in CATEGORIES}
    if not seen["full"].any() and seen["upper"].any():  # its mask hangs from the neckline
        seen["full"] = seen["upper"] | seen["lower"]
    return seen


def find_worn(labels: Tensor, category: Category) -> Tensor:
    """[1, H, W] bool: the garment of a category that a person wears, as worn_garments finds it.

    A dress cannot be replaced in part, as its waistline is not known. Raises ValueError if nothing of the category is
    worn.
    """
    seen = worn_garments(labels)
    if seen[category].any():
        return seen[category]
    if others := [each for each in CATEGORIES if seen[each].any()]:
        raise ValueError(
            f"the parser sees no {category}-body garment on this person: give the person's picture if this is the "
            "garment's, or a mask, or what is worn there as a region or paint, or choose the category "
            f"{' or '.join(others)} if the new garment is one"
        )
    raise ValueError(
        "the parser sees no garment on this person: give the person's picture if this is the garment's, or a mask, or "
        "another picture"
    )


def mask_of_labels(labels: Tensor, category: Category, rule: MaskRule) -> Image.Image:
    """The mask that training would have made for a garment of the category, from the person's labels alone, [H, W] of
    places in PARTS: "L" of 0 and 255. It begins a little higher (UNSURE). Raises ValueError as find_worn does."""
    return mask_picture(agnostic_mask(find_worn(labels, category), category, rule, labels, UNSURE))


def mask_by_rule(
    worn: Image.Image | None, category: Category, rule: MaskRule, labels: Callable[[], Tensor]
) -> Image.Image:
    """The mask that training would have made of a person, "L" of 0 and 255, beginning a little higher, as the garment's
    upper edge is unsure.

    worn: the region of the garment that the person wears; None: it is found in the labels. labels: gives them, [H, W]
    of indices into PARTS, and is called only where they are needed. Raises ValueError where no mask can be made.
    """
    if worn is None:
        return mask_of_labels(labels(), category, rule)
    region = torch.from_numpy(np.array(worn) > 0)[None]
    return mask_picture(agnostic_mask(region, category, rule, None if rule.name == "rectangle" else labels(), UNSURE))


def read_label_map(file: Path, size: tuple[int, int]) -> Tensor:
    """[H, W] of places in PARTS from a picture whose pixels, or palette indices, are ATR labels; at `size` (width,
    height) of its person. Raises ValueError where it holds other values."""
    labels = np.array(open_picture(file).resize(size, Image.Resampling.NEAREST))
    if labels.ndim != 2 or labels.max() >= len(ATR):
        raise ValueError(f"{file} is no label map: its pixels must be 0 to {len(ATR) - 1}, the labels of ATR")
    return _PART_OF_ATR[torch.from_numpy(labels.astype(np.int64))]


def cached_label_maps(
    people: Sequence[Path], name: str, cache_dir: str | None, data_cache: Path, device: torch.device
) -> list[Path]:
    """The files of the people's label maps, as read_label_map reads them, made by the parser `name` where they are not
    there yet. A person who cannot be read has none.

    They are named after the person's picture and the parser's files. Raises ValueError where the parser cannot be had,
    and where a file cannot be written.
    """
    parser = hub_or_folder(name, PARSER_FILES, cache_dir)
    made_by = files_fingerprint(parser).encode()
    digests = [sha256(made_by + (file.read_bytes() if file.is_file() else b"")).hexdigest() for file in people]
    files = [data_cache / "labels" / digest[:2] / f"{digest}.png" for digest in digests]
    missing = {file: person for file, person in zip(files, people, strict=True) if not file.is_file()}
    if not missing:
        return files
    logger.info("labelling the people in %s with %s", plural(len(missing), "picture"), name)
    model = load_parser(str(parser), None, device)
    bar = progress_bar(len(missing), "labelling people", visible=True)
    for file, person in missing.items():
        bar.update()
        try:
            labels = parse(model, read_picture(person))
        except UNREADABLE:
            continue
        try:
            with replacing(file) as staging:
                Image.fromarray(_ATR_OF_PART[labels.long()].to(torch.uint8).numpy()).save(staging, "PNG")
        except OSError as error:
            raise ValueError(
                f"{file} cannot be written ({error}): make room, or put the cache elsewhere with --data_cache_dir"
            ) from error
    bar.close()
    return files
