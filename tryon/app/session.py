"""What the app keeps while it runs, for all users of its page: models, LoRAs, masks, and pictures as files.

One try-on runs at a time: all share the models, and each may ask for another LoRA.
"""

import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import free_memory
from PIL import Image
from torch import Tensor

from tryon.config import TryOnConfig, oversized
from tryon.data.category import Category, MaskRule
from tryon.data.human_parser import Parser, labels_at_hand, mask_by_rule, parse, parser_for_masks
from tryon.data.mask_doubts import doubts_about_mask
from tryon.data.sample import usable_mask
from tryon.files import files_fingerprint, replacing
from tryon.flux.lora_header import (
    OF_ANOTHER_PROJECT,
    LoraFacts,
    check_takes_off,
    denoising,
    panel_size,
    read_facts,
    verify_lora,
)
from tryon.inference.photograph import given_back
from tryon.inference.pipeline import TryOnModel, same_models, swap_lora, take_off, try_on
from tryon.inference.recipe import BASE, FINGERPRINT, Recipe, png_text, versions
from tryon.runs import all_loras, lora_name, run_of, validation_losses

logger = logging.getLogger(__name__)

MOST_RESULTS = 4
MOST_STEPS = MOST_GUIDANCE = 100  # more only for a LoRA that was trained for more
MOST_STRENGTH = 1.5
LONGEST_NAME = 60  # characters of each part of a result's name
SEEDS = 2**31 - MOST_RESULTS  # seeds are below this
RANDOM_SEEDS = 10**6  # random seeds are below this: short enough to be read and typed
KEPT_LABELS = 8  # pictures whose parsed parts are kept, so that a slider answers at once
KEPT_SECONDS = 24 * 60 * 60  # of pictures on the disk, and of what a browser's session has seen
GONE = "This LoRA is not there, or not any more: choose another; reloading the page shows them."
NO_LORA = "There is no LoRA yet: train one. It is listed here when its run has saved its first checkpoint."


@dataclass(frozen=True)
class TryOnRequest:
    """A try-on as it is asked for and, once it was made, its results. Pictures are files of the session.

    mask: white = repaint. size: height and width of the panel. seeds: of each result. called: what the pictures of
    person and garment are called, which names the results' files.
    """

    lora: Path
    strength: float  # of the LoRA; 0: the model without it
    person: str
    garment: str
    mask: str
    category: Category
    size: tuple[int, int]
    steps: int
    guidance: float
    seeds: range
    called: tuple[str, str] = ("person", "garment")
    give_back: bool = False  # what the mask hid for nothing
    results: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """The page's name for the LoRA at its strength."""
        if self.strength == 0:
            return BASE
        return lora_name(self.lora) + ("" if self.strength == 1 else f", strength {self.strength:g}")

    def recipe(self, seed: int) -> Recipe:
        """How a result was made. It names no file of this machine: results go to everybody who uses the page."""
        flags = {
            "category": self.category, "height": self.size[0], "width": self.size[1], "steps": self.steps,
            "guidance_scale": self.guidance, "seed": seed, "num_results": 1, "lora_scale": self.strength,
        }  # fmt: skip
        if self.give_back:
            flags["give_back"] = True
        return recipe_of_result(self.lora, flags)

    def result_name(self, seed: int) -> str:
        """The name of a result's file, without its ending: <person>_<garment>_<lora>_<seed>."""
        return "_".join(map(file_name, (*self.called, self.version, str(seed))))


def recipe_of_result(lora: Path, flags: dict[str, Any]) -> Recipe:
    """How a result of the page is made. Raises ValueError where the LoRA was deleted meanwhile."""
    if not lora.is_file():
        raise ValueError(GONE)
    fingerprint = files_fingerprint(lora)[:FINGERPRINT]
    return Recipe(flags, {"lora": fingerprint}, (lora_name(lora),), versions())


def error_text(error: Exception) -> str:
    """What people and programs are told of what went wrong."""
    if isinstance(error, torch.OutOfMemoryError):
        return "The GPU's memory is full: choose fewer results or a smaller size."
    return str(error)


def first_seed(asked: int | None) -> int:
    """The seed that was asked for, else a random one. Raises ValueError for one that cannot be used."""
    seed = secrets.randbelow(RANDOM_SEEDS) if asked is None else asked
    if not 0 <= seed < SEEDS:
        raise ValueError(f"The seed must be a whole number from 0 to {SEEDS - 1}.")
    return int(seed)


def file_name(words: str) -> str:
    """Words as a part of a file's name."""
    return re.sub(r"[^\w.]+", "-", words).strip("-.")[:LONGEST_NAME] or "unnamed"


def best_of(run: Path) -> Path | None:
    """The LoRA of a run's checkpoint with the lowest validation loss; None where fewer than two have one."""
    losses = validation_losses(run)
    return min(losses, key=losses.get) if len({file.parents[1] for file in losses}) > 1 else None


def panel_sizes(size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """The sizes that the page offers, by name: as trained, two thirds and, where a panel may be so large, four thirds
    of it, in multiples of 16."""

    def scaled(scale: float) -> tuple[int, int]:
        return max(16, 16 * round(scale * size[0] / 16)), max(16, 16 * round(scale * size[1] / 16))

    words = {size: "as trained", scaled(2 / 3): "faster", scaled(4 / 3): "finer"}
    return {
        f"{height} x {width}, {word}": (height, width)
        for (height, width), word in words.items()
        if not any(oversized(height, width))
    }


@dataclass
class Session:
    """Models, the LoRA on them, and all that is needed to make a request and to carry it out."""

    config: TryOnConfig
    load: Callable[[Path, float], TryOnModel]  # reads a LoRA, at a strength, and the models that it was trained for
    parser: Callable[[LoraFacts], str | None]  # the human parser for a LoRA; None: the usual one
    first: Path | None  # the LoRA that the page begins with; None: there is none yet
    runs: Path  # the folder of runs whose LoRAs can be chosen too
    folder: Path  # an empty one, for pictures
    steps: int | None  # denoising steps and guidance that the page begins with; None: as the LoRA was trained
    guidance: float | None
    model: TryOnModel | None = None
    labels: OrderedDict[tuple[str, str], Tensor] = field(default_factory=OrderedDict)
    parsers: dict[str | None, Parser] = field(default_factory=dict)
    dressing: threading.RLock = field(default_factory=threading.RLock)
    parsing: threading.Lock = field(default_factory=threading.Lock)
    filing: threading.Lock = field(default_factory=threading.Lock)

    def loras(self) -> list[tuple[str, str]]:
        """Names and paths of the LoRAs that can be chosen now, the newest first: a training removes its older
        checkpoints."""
        files = dict.fromkeys([*all_loras(self.runs), self.first])
        return [(lora_name(file), str(file)) for file in files if file and file.exists()]

    def labelled_loras(self) -> list[tuple[str, str]]:
        """As `loras`, each name with what the page says of it: the newest, the best of its run."""
        loras = self.loras()
        best = {best_of(run) for run in {run_of(Path(file)) for _, file in loras} if run}
        marks = {file: ["lowest validation loss of its run"] for _, file in loras if Path(file) in best}
        if len(loras) > 1:
            marks[loras[0][1]] = ["newest", *marks.get(loras[0][1], [])]
        return [(f"{name} ({', '.join(marks[file])})" if file in marks else name, file) for name, file in loras]

    def loras_for_try_off(self) -> list[tuple[str, str]]:
        """Those of `loras` that have learnt to take garments off."""
        return [(name, file) for name, file in self.loras() if read_facts(Path(file)).try_off_prompt]

    def usual(self) -> str:
        """The LoRA that is used where none was chosen: the first one; the newest where that is gone, or there was none;
        empty where there is none now."""
        files = [file for _, file in self.loras()]
        return str(self.first) if str(self.first) in files else next(iter(files), "")

    def chosen(self, lora: str) -> Path:
        """The file of a LoRA, given by path or name. Raises ValueError where it cannot be chosen."""
        loras = self.loras()
        if not loras:
            raise ValueError(NO_LORA)
        found = next((path for name, path in loras if lora in (name, path)), None)
        if found is None:
            raise ValueError(GONE)
        return Path(found)

    def facts(self, lora: Path | None) -> LoraFacts:
        """What a LoRA was trained for; the defaults where there is none."""
        return read_facts(lora) if lora else OF_ANOTHER_PROJECT

    def sizes(self, lora: Path | None) -> dict[str, tuple[int, int]]:
        """Sizes of the panel, height and width, by name; the first one is as the LoRA was trained."""
        return panel_sizes(panel_size(self.config, self.facts(lora)))

    def denoising(self, lora: Path | None) -> tuple[int, float]:
        """The steps and the guidance that the page shows for a LoRA."""
        return denoising(self.facts(lora), self.steps, self.guidance)

    def file(self, picture: Image.Image, name: str = "picture", recipe: Recipe | None = None) -> str:
        """The picture as a PNG file of that name, which carries its recipe; one file for equal pictures. Files older
        than a day are removed.

        Gradio would write a picture again each time it is shown, while a browser may still be reading it.
        """
        with self.filing:
            for old in self.folder.glob("*/*.png"):
                if old.stat().st_mtime < time.time() - KEPT_SECONDS:
                    old.unlink()
            pixels = picture.tobytes() + repr((picture.mode, picture.size, recipe)).encode()
            file = self.folder / sha256(pixels).hexdigest() / f"{name}.png"
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                with replacing(file) as staging:
                    picture.save(staging, "PNG", compress_level=1, pnginfo=recipe and png_text(recipe))
            file.touch()
            return str(file)

    def make_mask(
        self, lora: Path, person: Image.Image, worn: Image.Image | None, category: Category, rule: MaskRule
    ) -> Image.Image:
        """The mask of a person, RGB, by a rule: "L" of 0 and 255. lora: whose parser is used. worn: the region of the
        garment that the person wears, "L" of 0 and 255; None: the parser finds it. Raises ValueError where no mask can
        be made."""
        return mask_by_rule(worn, category, rule, lambda: self._labels(self.parser(read_facts(lora)), person))

    def doubts_about_mask(self, asked: TryOnRequest) -> Iterator[str]:
        """Why the mask of a try-on is hardly one that was meant, each reason in a clause."""
        parser, person = self.parser(read_facts(asked.lora)), Image.open(asked.person)
        labels = labels_at_hand(lambda: self._labels(parser, person), parser, self.config.cache_dir)
        return doubts_about_mask(Image.open(asked.mask), labels, asked.category)

    def _labels(self, parser: str | None, person: Image.Image) -> Tensor:
        key = parser or "", sha256(person.tobytes()).hexdigest()
        with self.parsing:
            if key not in self.labels:
                if parser not in self.parsers:
                    self.parsers[parser] = parser_for_masks(parser, self.config.cache_dir)
                self.labels[key] = parse(self.parsers[parser], person)
                while len(self.labels) > KEPT_LABELS:
                    self.labels.popitem(last=False)
            return self.labels[key]

    def request(
        self, *, lora: Path, strength: float, person: Image.Image, garment: Image.Image, mask: Image.Image,
        category: Category, size: str | None, steps: int, guidance: float, count: int, seed: int | None,
        called: tuple[str, str], give_back: bool = False,
    ) -> TryOnRequest:  # fmt: skip
        """A try-on to be made. size: a name of `sizes`; None: as trained. seed: None: a random one.

        Raises ValueError for a number, a size or a mask that cannot be used.
        """
        sizes = self.sizes(lora)
        size = size or next(iter(sizes))
        if size not in sizes:
            raise ValueError(f"There is no size {size}: choose one of {'; '.join(sizes)}.")
        shown_steps, shown_guidance = self.denoising(lora)
        most_steps, most_guidance = max(shown_steps, MOST_STEPS), max(shown_guidance, MOST_GUIDANCE)
        most_strength = max(MOST_STRENGTH, self.config.lora_scale)
        if not 0 <= strength <= most_strength:
            raise ValueError(f"The LoRA's strength must be from 0, the model without it, to {most_strength:g}.")
        if not (1 <= count <= MOST_RESULTS and 1 <= steps <= most_steps and 0 <= guidance <= most_guidance):
            raise ValueError(
                f"There may be 1 to {MOST_RESULTS} results, 1 to {most_steps} steps and guidance of 0 to "
                f"{most_guidance:g}."
            )
        first = first_seed(seed)
        seeds = range(first, first + int(count))  # a slider's numbers may come as floats
        pictures = (
            self.file(person),
            self.file(garment, file_name(called[1])),
            self.file(usable_mask(mask, person.size)),
        )
        return TryOnRequest(
            lora, strength, *pictures, category, sizes[size], int(steps), guidance, seeds, called, give_back
        )

    def dress(self, asked: TryOnRequest, each_step: Callable[[int], None]) -> TryOnRequest:
        """The request with its results, made with its LoRA on the models. each_step: called with how many steps are
        done; what it raises ends the try-on. Raises ValueError for a LoRA or a mask that cannot be used."""
        with self.dressing:
            each_step(0)
            self.take(asked.lora, asked.strength)
            recipes = [asked.recipe(seed) for seed in asked.seeds]  # the LoRA may be deleted while people are dressed
            person, garment, mask = map(Image.open, (asked.person, asked.garment, asked.mask))
            results = try_on(
                replace(self.model, size=asked.size), person, garment, mask, asked.category,
                steps=asked.steps, guidance=asked.guidance, seeds=asked.seeds, each_step=each_step,
            )  # fmt: skip
        if asked.give_back:
            parser = self.parser(read_facts(asked.lora))
            before, *after = (self._labels(parser, picture) for picture in (person, *results))
            results = [
                given_back(person, result, mask, asked.category, before, labels)
                for result, labels in zip(results, after, strict=True)
            ]
        names = map(asked.result_name, asked.seeds)
        return replace(asked, results=tuple(map(self.file, results, names, recipes)))

    def take_off(
        self, lora: Path, person: Image.Image, category: Category, seed: int | None, called: str,
        each_step: Callable[[int], None],
    ) -> tuple[str, int]:  # fmt: skip
        """The file of a product picture of what the person wears, and its seed. seed: None: a random one. called: what
        the person's picture is called. each_step: as in `dress`. Raises ValueError for a seed or a LoRA that cannot be
        used."""
        check_takes_off(read_facts(lora), category)
        seed, strength, (steps, guidance) = first_seed(seed), self.config.lora_scale, self.denoising(lora)
        with self.dressing:
            each_step(0)
            self.take(lora, strength)
            height, width = self.model.size
            recipe = recipe_of_result(lora, {
                "category": category, "height": height, "width": width, "steps": steps, "guidance_scale": guidance,
                "seed": seed, "num_results": 1, "lora_scale": strength,
            })  # fmt: skip
            how = {"steps": steps, "guidance": guidance, "seeds": [seed]}
            (result,) = take_off(self.model, person, category, **how, each_step=each_step)
        name = "_".join(map(file_name, (called, category, lora_name(lora), str(seed))))
        return self.file(result, name, recipe), seed

    def take(self, lora: Path, strength: float) -> None:
        """Puts a LoRA on the models at a strength; where it was trained for others, these are loaded first."""
        with self.dressing:
            model = self.model
            if model and (model.lora, model.scale) == (lora, strength):
                return
            verify_lora(lora)
            self.model = None  # where this ends halfway, the next try-on loads everything again
            if model and (model.lora == lora or same_models(model, read_facts(lora))):
                try:
                    self.model = swap_lora(model, replace(self.config, lora_scale=strength), lora)
                except ValueError:
                    self.model = model
                    raise
                return
            del model  # two of them would not fit
            free_memory()
            self.model = self.load(lora, strength)

    def release(self) -> None:
        """Frees the models' memory, after the try-on that is being made; the next one loads them again."""
        with self.dressing:
            self.model = None
            free_memory()
