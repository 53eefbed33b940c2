"""Trains the toy's human parser, on people of all categories, views and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

from tryon.data.category import CATEGORIES
from tryon.data.human_parser import Parser, parse, parts_of
from tryon.data.masks import PARTS
from tryon.toy.examples import labelled_person
from tryon.toy.model import PARSER_LABELS, new_parser, parser_processor
from tryon.toy.pretrain.config import PretrainConfig
from tryon.toy.pretrain.stage import Stage, mixed_precision, muon_and_adamw


@dataclass(frozen=True)
class ParserBatches(Dataset):
    """The people of step i, drawn for it alone, as the processor makes them: pixel_values [B, 3, H, W] and labels
    [B, H, W]."""

    processor: SegformerImageProcessorPil
    config: PretrainConfig

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        count = self.config.parser_batch_size
        people = [labelled_person(self.config.seed + 4, index) for index in range(step * count, (step + 1) * count)]
        pictures, labels = zip(*people, strict=True)
        return dict(self.processor(list(pictures), segmentation_maps=list(labels), return_tensors="pt"))


def parser_stage(config: PretrainConfig, device: torch.device) -> Stage:
    """The stage of the parser."""
    held_out = [labelled_person(config.seed + 5, index) for index in range(config.held_out)]
    processor = parser_processor()
    torch.manual_seed(config.seed)
    model = new_parser().to(device).train()

    def loss(batch: dict[str, Tensor]) -> Tensor:
        with mixed_precision(device):
            return parser_loss(model, batch)

    def measure() -> dict[str, float]:
        parser = Parser("", model.eval(), processor, parts_of(PARSER_LABELS))
        measured = measure_parser(parser, held_out)
        model.train()
        return measured

    batches, optimizers = ParserBatches(processor, config), muon_and_adamw(model, config.parser_learning_rate)
    return Stage(model, config.parser_steps, optimizers, batches, loss, measure)


def parser_loss(model: SegformerForSemanticSegmentation, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the labels of a batch."""
    return model(**{name: tensor.to(model.device, non_blocking=True) for name, tensor in batch.items()}).loss


def measure_parser(parser: Parser, people: Sequence[tuple[Image.Image, Tensor]]) -> dict[str, float]:
    """Over all pixels of the people, at their own sizes: the share whose part is right, and the intersection over union
    of parts, the mean over all there are and over the three of garments."""
    confusion = torch.zeros(len(PARTS), len(PARTS))
    for picture, labels in people:
        pairs = parser.parts[labels] * len(PARTS) + parse(parser, picture)
        confusion += torch.bincount(pairs.flatten(), minlength=len(PARTS) ** 2).view_as(confusion)
    right = confusion.diag()
    iou = right / (confusion.sum(0) + confusion.sum(1) - right)  # nan where a part is nowhere
    worn = iou[[PARTS.index(category) for category in CATEGORIES]]
    return {
        "accuracy": (right.sum() / confusion.sum()).item(),
        "iou": iou.nanmean().item(),
        "iou_worn": worn.nanmean().item(),
    }
