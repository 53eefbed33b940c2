"""What a page keeps while it is open: the models, the LoRA that is on them, and how masks are made for it.

One try-on runs at a time, whoever asks: the models are shared, and the LoRA may be another for each.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from diffusers.training_utils import free_memory
from PIL import Image
from torch import Tensor

from tryon.config import TryOnConfig
from tryon.data.category import Category, MaskRule
from tryon.data.human_parser import Parser, mask_of_labels, mask_of_worn, parse, parser_for_masks
from tryon.flux.lora_header import LoraFacts, read_facts, verify_lora
from tryon.inference.pipeline import TryOnModel, same_models, swap_lora, try_on

logger = logging.getLogger(__name__)

KEPT_LABELS = 8  # pictures whose parts are remembered, so that a slider answers at once


@dataclass(frozen=True)
class Wish:
    """A try-on as it is asked for. mask: white = repaint. size: height and width of the panel."""

    lora: Path
    person: Image.Image
    garment: Image.Image
    mask: Image.Image
    category: Category
    size: tuple[int, int]
    steps: int
    guidance: float
    seeds: Sequence[int]


@dataclass
class Studio:
    """Models and masks. load: reads a LoRA and the models it was trained for. parser: names, by a LoRA's facts, what
    finds the garments that people wear; None: the usual one."""

    config: TryOnConfig
    load: Callable[[Path], TryOnModel]
    parser: Callable[[LoraFacts | None], str | None]
    model: TryOnModel | None = None
    labels: OrderedDict[tuple[str, str], Tensor] = field(default_factory=OrderedDict)
    parsers: dict[str, Parser] = field(default_factory=dict)
    dressing: threading.Lock = field(default_factory=threading.Lock)
    parsing: threading.Lock = field(default_factory=threading.Lock)

    def dress(self, wish: Wish, each_step: Callable[[int], None]) -> list[Image.Image]:
        """The results of a wish, as `try_on` returns them, with its LoRA on the models. Raises ValueError for a LoRA or
        a mask that cannot be used; what each_step raises ends it."""
        with self.dressing:
            each_step(0)
            self._take(wish.lora)
            return try_on(
                replace(self.model, size=wish.size),
                wish.person,
                wish.garment,
                wish.mask,
                wish.category,
                steps=wish.steps,
                guidance=wish.guidance,
                seeds=wish.seeds,
                each_step=each_step,
            )

    def take(self, lora: Path) -> None:
        """Puts a LoRA on the models; where it was trained for others, these are loaded first."""
        with self.dressing:
            self._take(lora)

    def _take(self, lora: Path) -> None:
        model = self.model
        if model and model.lora == lora:
            return
        verify_lora(lora)
        self.model = None  # whatever ends this halfway, the next one begins anew
        if model and same_models(model, read_facts(lora)):
            try:
                self.model = swap_lora(model, self.config, lora)
            except ValueError:
                self.model = model
                raise
            return
        del model  # two of them would not fit
        free_memory()
        self.model = self.load(lora)

    def make_mask(
        self, lora: Path, person: Image.Image, worn: Image.Image | None, category: Category, rule: MaskRule
    ) -> Image.Image:
        """The mask of a person, RGB, by a rule: "L" of 0 and 255. lora: which parser it asks for. worn: the region of
        what the person wears, likewise; None: the parser finds it. Raises ValueError where no mask can be made."""
        labels = None
        if worn is None or rule.name != "rectangle":
            labels = self._labels(self.parser(read_facts(lora)), person)
        if worn is None:
            return mask_of_labels(labels, category, rule)
        return mask_of_worn(worn, category, rule, labels)

    def _labels(self, name: str | None, person: Image.Image) -> Tensor:
        key = name or "", sha256(person.tobytes()).hexdigest()
        with self.parsing:
            if key not in self.labels:
                if name not in self.parsers:
                    self.parsers[name] = parser_for_masks(name, self.config.cache_dir)
                self.labels[key] = parse(self.parsers[name], person)
                while len(self.labels) > KEPT_LABELS:
                    self.labels.popitem(last=False)
            return self.labels[key]
