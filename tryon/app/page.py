"""What happens when something on the page of app_lora.py is pressed; what is seen of it is in layout.py."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image, ImageChops, ImageColor

from tryon.app.session import Studio, Wish
from tryon.data.category import CATEGORIES, Category
from tryon.data.sample import UNREADABLE, read_picture, upright_rgb
from tryon.files import replacing
from tryon.flux.lora_header import LoraFacts, denoising, panel_size, read_facts
from tryon.inference.pipeline import usable_rule
from tryon.runs import all_loras, run_of, step_of

logger = logging.getLogger(__name__)

MOST_RESULTS = 4
MOST_STEPS = MOST_GUIDANCE = 100  # of the sliders, but for a LoRA that was trained for more
MOST_PIXELS = 64 * 2**20  # of a picture: masks, labels and results of larger ones would take gigabytes each
SEEDS = 2**31 - MOST_RESULTS  # a seed is below
RANDOM_SEEDS = 10**6  # and a new one below this: unlike the last one, and short enough to be read and typed
MASK_COLOUR, MASK_OPACITY = "#ff2d9b", 0.6  # what is painted over still shows
PAINTED = 64  # alpha, of 255, from which a pixel counts as painted: a stroke's soft edge is left out
LONGEST_HISTORY = 24
KEPT_SECONDS = 24 * 60 * 60  # of what a session has seen, and of uploads and results on the disk
Editor = dict[str, Any]  # of Gradio: {"background": picture or None, "layers": [RGBA of its size], "composite": ...}
UNCHANGED = gr.skip()
NO_PICTURE = "This file is no picture that can be read: give a PNG, JPEG or WebP."
OUT_OF_MEMORY = "The GPU's memory is full: choose fewer results or a smaller size."
PROGRESS = gr.Progress()  # as a default Gradio gives a handler one of its own


@dataclass(frozen=True)
class Example:
    """A person and a garment to begin with."""

    person: Path
    garment: Path
    category: Category


@dataclass(frozen=True)
class Entry:
    """A try-on in the session's history, its pictures as files of the page: what was asked for, and what came of it."""

    lora: Path
    person: str
    garment: str
    mask: str
    category: Category
    size: tuple[int, int]
    steps: int
    guidance: float
    seeds: Sequence[int]
    results: list[str]


@dataclass(frozen=True)
class Made:
    """How the mask on the page was made: of whom, as a file of the page, and of which paint; None: of what the parser
    finds."""

    person: str
    worn: Image.Image | None


class Stopped(Exception):
    """A try-on that somebody stopped."""


def lora_name(file: Path) -> str:
    """What the page calls a LoRA."""
    if run := run_of(file):
        return f"{run.name}, step {step_of(file.parents[1])}"
    return f"{file.parent.name}/{file.name}"


def describe(facts: LoraFacts | None, size: tuple[int, int]) -> str:
    """A line about a LoRA. size: height and width of the panel."""
    pixels = f"panels of {size[0]} x {size[1]} pixels (height x width)"
    if not facts.known:
        return f"This LoRA does not say how it was trained; {pixels}."
    rules = {
        "rectangle": "roomy rectangles as masks",
        "given": "masks of its data's own; those made here are rectangles",
    }
    masks = rules.get(facts.mask_rule, f"masks by the rule {facts.mask_rule}")
    return f"{facts.profile} profile, step {facts.step}; {pixels}; {masks}."


def panel_sizes(size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """The sizes that the page offers, by name: as trained, two thirds and four thirds of it, in multiples of 16."""

    def scaled(scale: float) -> tuple[int, int]:
        return max(16, 16 * round(scale * size[0] / 16)), max(16, 16 * round(scale * size[1] / 16))

    words = {size: "as trained", scaled(2 / 3): "faster", scaled(4 / 3): "finer"}
    return {f"{height} x {width}, {word}": (height, width) for (height, width), word in words.items()}


def painted_mask(editor: Editor) -> Image.Image:
    """ "L" of 0 and 255 at the size of the editor's picture: 255 wherever any of its layers has paint."""
    mask = Image.new("L", editor["background"].size)
    for layer in editor["layers"]:
        paint = layer.getchannel("A").resize(mask.size).point(lambda alpha: 255 if alpha >= PAINTED else 0)
        mask = ImageChops.lighter(mask, paint)
    return mask


def as_paint(mask: Image.Image) -> Image.Image:
    """A mask, "L" of 0 and 255, as a layer of the editor: paint, which can be erased."""
    layer = Image.new("RGBA", mask.size, ImageColor.getrgb(MASK_COLOUR))
    layer.putalpha(mask.point(lambda value: round(value * MASK_OPACITY)))
    return layer


def usable(what: str, picture: Image.Image | None) -> Image.Image:
    """The picture, RGB and upright. Raises ValueError where there is none, or one that cannot be used."""
    if picture is None:
        raise ValueError(f"Give a picture of the {what} first.")
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(
            f"The picture of the {what} has more than {MOST_PIXELS / 2**20:.0f} megapixels: make it smaller."
        )
    try:
        return upright_rgb(picture)
    except ValueError as error:
        raise ValueError(f"The picture of the {what} cannot be used, as {error}.") from error


def person_of(editor: Editor | None) -> Image.Image:
    """The editor's picture, RGB. Raises ValueError where there is none."""
    return usable("person", editor and editor["background"])


def said_of(error: Exception) -> str:
    """What the page says of what went wrong."""
    return OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else str(error)


def far_enough(value: float, most: float) -> gr.Slider:
    """A slider at a value, which may lie beyond where it usually ends."""
    return gr.Slider(value=value, maximum=max(value, most))


def words(entry: Entry) -> str:
    """What the page says of a result."""
    seeds = entry.seeds
    with Image.open(entry.results[0]) as result:
        width, height = result.size
    which = f"Seed {seeds[0]}" if len(seeds) == 1 else f"Seeds {seeds[0]} to {seeds[-1]}"
    return f"{which}; {height} x {width} pixels (height x width)."


@dataclass
class Page:
    """What is behind the page. Its methods are called by Gradio, with what the components hold; what is wrong with that
    is said on the page."""

    studio: Studio
    first: Path  # the LoRA that it begins with
    runs: Path  # the folder of runs whose LoRAs it offers besides
    folder: Path  # an empty one, for pictures on their way to the page
    examples: list[Example]
    steps: int | None  # what it begins with, as is the guidance; None: as the LoRA was trained
    guidance: float | None
    notice: Callable[[LoraFacts | None], str]  # what is to be known of the models of a LoRA with these facts; or ""
    stops: dict[str, threading.Event] = field(default_factory=dict)  # by session, while it is dressing somebody
    filing: threading.Lock = field(default_factory=threading.Lock)

    def loras(self) -> list[tuple[str, str]]:
        """Names and paths of the LoRAs to choose from. A training removes its older checkpoints."""
        files = dict.fromkeys([self.first, *all_loras(self.runs)])
        return [(lora_name(file), str(file)) for file in files if file.exists()]

    def chosen(self, lora: str) -> Path:
        """The file of a LoRA, of which `lora` is the path or the name. Raises ValueError where it is none of those to
        choose from."""
        found = next((path for name, path in self.loras() if lora in (name, path)), None)
        if found is None:
            raise ValueError("This LoRA is not there, or not any more: choose another; reloading the page shows them.")
        return Path(found)

    def trained_size(self, lora: Path) -> tuple[int, int]:
        return panel_size(self.studio.config, read_facts(lora))

    def most(self, lora: Path) -> tuple[int, float]:
        """The most steps and guidance that may be asked for: one try-on at a time is made, whoever waits."""
        steps, guidance = denoising(read_facts(lora), self.steps, self.guidance)
        return max(steps, MOST_STEPS), max(guidance, MOST_GUIDANCE)

    def about(self, lora: Path) -> str:
        """A line about a LoRA and its models."""
        facts = read_facts(lora)
        return f"{self.notice(facts)} {describe(facts, self.trained_size(lora))}".strip()

    def file(self, picture: Image.Image) -> str:
        """The picture as a PNG file for the page, the same for equal pictures; what is older than a day is removed.

        Gradio would write a picture anew each time it is shown, while a browser may still be reading it.
        """
        with self.filing:
            for old in self.folder.glob("*.png"):
                if old.stat().st_mtime < time.time() - KEPT_SECONDS:
                    old.unlink()
            pixels = picture.tobytes() + repr((picture.mode, picture.size)).encode()
            file = self.folder / f"{sha256(pixels).hexdigest()}.png"
            if not file.exists():
                with replacing(file) as staging:
                    picture.save(staging, "PNG", compress_level=1)
            file.touch()
            return str(file)

    def editor(self, person: Image.Image, mask: Image.Image | None) -> Editor:
        """What the editor shows: a person, and its mask as paint."""
        layers = [] if mask is None else [self.file(as_paint(mask))]
        return {"background": self.file(person), "layers": layers, "composite": None}

    def refresh(self) -> tuple:
        """When the page is opened: the LoRAs, as trainings go on meanwhile; and where the first one is gone, the newest
        and what `choose_lora` says of it."""
        loras = self.loras()
        if self.first.exists() or not loras:
            return gr.Dropdown(loras), *(UNCHANGED,) * 8
        _, newest = loras[0]
        return gr.Dropdown(loras, value=newest), *self.choose_lora(newest)

    def choose_lora(self, lora: str) -> tuple:
        """What the page says of the LoRA, the sizes it offers for it, and what it was trained for: steps, guidance and
        the mask's offsets."""
        try:
            file = self.chosen(lora)
            facts, size = read_facts(file), self.trained_size(file)
        except ValueError as error:
            gr.Warning(str(error))
            return (UNCHANGED,) * 8
        sizes = list(panel_sizes(size))
        rule = usable_rule(facts)
        offsets = [100 * share for share in rule.offsets]
        steps, guidance = denoising(facts, self.steps, self.guidance)
        sliders = far_enough(steps, MOST_STEPS), far_enough(guidance, MOST_GUIDANCE)
        return self.about(file), gr.Dropdown(sizes, value=sizes[0]), *sliders, *offsets

    def make_mask(
        self, lora: str, editor: Editor | None, category: Category, worn: Image.Image | None, *offsets: float
    ) -> tuple[Editor, Made, str]:
        """The editor with a mask on it, how it was made, and words. worn: paint over what is worn; None: the parser
        finds it. offsets: MaskRule's, in percent. Raises ValueError where no mask can be made."""
        person = person_of(editor)
        rule = usable_rule(read_facts(self.chosen(lora)))
        top, bottom, left, right = (percent / 100 for percent in offsets)
        rule = replace(rule, top=top, bottom=bottom, left=left, right=right)
        mask = self.studio.make_mask(Path(lora), person, worn, category, rule)
        share = mask.histogram()[255] / (mask.width * mask.height)
        said = f"What is pink will be repainted: {share:.0%} of the picture."
        return self.editor(person, mask), Made(self.file(person), worn), said

    def mask_of_person(self, *asked: Any) -> tuple:
        """The same with what the parser finds. asked: LoRA, editor, category, offsets."""
        try:
            lora, editor, category, *offsets = asked
            return self.make_mask(lora, editor, category, None, *offsets)
        except ValueError as error:
            gr.Warning(str(error))
            return UNCHANGED, UNCHANGED, str(error)

    def mask_of_paint(self, *asked: Any) -> tuple:
        """The same with what is painted over."""
        try:
            lora, editor, category, *offsets = asked
            person_of(editor)
            paint = painted_mask(editor)
            if paint.getbbox() is None:
                raise ValueError("Paint over all of the garment that the person wears first.")
            return self.make_mask(lora, editor, category, paint, *offsets)
        except ValueError as error:
            gr.Warning(str(error))
            return UNCHANGED, UNCHANGED, str(error)

    def mask_anew(self, made: Made | None, *asked: Any) -> tuple:
        """The same as the last time, for another category or other offsets; a mask that was not made stays."""
        try:
            lora, editor, category, *offsets = asked
            if made is None or self.file(person_of(editor)) != made.person:
                return (UNCHANGED,) * 3
            return self.make_mask(lora, editor, category, made.worn, *offsets)
        except ValueError as error:
            gr.Warning(str(error))
            return UNCHANGED, UNCHANGED, str(error)

    def refuse_unreadable(self, upload: dict | None) -> Any:
        """A garment that was uploaded, or nothing in its place where it is no picture."""
        try:
            if upload is not None:
                read_picture(Path(upload["path"]))
            return UNCHANGED
        except UNREADABLE:
            gr.Warning(NO_PICTURE)
            return None

    def tell_of_unreadable(self) -> None:
        """A file that the editor could not open."""
        gr.Warning(NO_PICTURE)

    def begin(self, request: gr.Request) -> tuple:
        self.stops[request.session_hash] = threading.Event()
        return gr.Button("Dressing ...", interactive=False), gr.Button(interactive=True)

    def stop(self, request: gr.Request) -> None:
        """Says nothing: the words could arrive after those of the end."""
        if stop := self.stops.get(request.session_hash):
            stop.set()

    def end(self, request: gr.Request) -> tuple:
        self.stops.pop(request.session_hash, None)
        return gr.Button("Dress", interactive=True), gr.Button(interactive=False)

    def leave(self, request: gr.Request) -> None:
        """Somebody closed the page: nobody waits for what is being made."""
        if stop := self.stops.pop(request.session_hash, None):
            stop.set()

    def dress(
        self,
        history: list[Entry],
        lora: str,
        editor: Editor | None,
        garment: Image.Image | None,
        category: Category,
        size: str,
        steps: int,
        guidance: float,
        count: int,
        seed: int | None,
        is_random: bool,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
    ) -> tuple:
        """The slider, the results and what they are of, the seed, the history and its pictures, and words."""
        stop = self.stops.get(request.session_hash) or threading.Event()
        try:
            person, mask = person_of(editor), painted_mask(editor)
            garment = usable("garment", garment)
            if mask.getbbox() is None:
                raise ValueError("Press Make a mask, or paint over the part of the person that is to be dressed.")
            if not is_random and seed is None:
                raise ValueError("Give a seed, or let it be new each time.")
            seed = None if is_random else seed
            wish = self.wish(self.chosen(lora), person, garment, mask, category, size, steps, guidance, count, seed)
            entry = self.fulfil(wish, stop, progress)
        except Stopped:
            return (UNCHANGED,) * 6 + ("Stopped: nothing was made.",)
        except (ValueError, torch.OutOfMemoryError) as error:
            logger.warning("%s", error)
            gr.Warning(said_of(error))
            return (UNCHANGED,) * 6 + (said_of(error),)
        history = [entry, *history][:LONGEST_HISTORY]
        past = [(each.results[0], str(each.seeds[0])) for each in history]
        return *shown(entry), wish.seeds[0], history, past, words(entry)

    def try_on(
        self,
        person: Image.Image | None,
        garment: Image.Image | None,
        mask: Image.Image | None = None,
        category: Category | None = None,
        lora: str | None = None,
        size: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        count: int = 1,
        seed: int | None = None,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[list[str], int]:
        """For programs: the results, and the first one's seed. Without a mask one is made; without a LoRA it is that
        which the page begins with; without a size, steps or guidance they are as it was trained; without a seed it is a
        new one."""
        try:
            person, garment = usable("person", person), usable("garment", garment)
            if category not in CATEGORIES:
                raise ValueError(f"Give a category, one of {', '.join(CATEGORIES)}.")
            file = self.chosen(lora or next((path for _, path in self.loras()), ""))
            facts = read_facts(file)
            if mask is None:
                mask = self.studio.make_mask(file, person, None, category, usable_rule(facts))
            steps, guidance = denoising(facts, steps, guidance)
            wish = self.wish(file, person, garment, mask, category, size, steps, guidance, count, seed)
            entry = self.fulfil(wish, threading.Event(), progress)
            return entry.results, wish.seeds[0]
        except (ValueError, torch.OutOfMemoryError) as error:
            logger.warning("%s", error)
            raise gr.Error(said_of(error), print_exception=False) from None

    def wish(
        self,
        lora: Path,
        person: Image.Image,
        garment: Image.Image,
        mask: Image.Image,
        category: Category,
        size: str | None,
        steps: int,
        guidance: float,
        count: int,
        seed: int | None,
    ) -> Wish:
        """What is asked for. size: the name of one that the page offers, or None: as trained. seed: None is a new one.
        Raises ValueError for numbers and sizes that there are not."""
        sizes = panel_sizes(self.trained_size(lora))
        size = size or next(iter(sizes))
        if size not in sizes:
            raise ValueError(f"There is no size {size}: choose one of {'; '.join(sizes)}.")
        most_steps, most_guidance = self.most(lora)
        if not (1 <= count <= MOST_RESULTS and 1 <= steps <= most_steps and 0 <= guidance <= most_guidance):
            raise ValueError(
                f"There may be 1 to {MOST_RESULTS} results, 1 to {most_steps} steps and guidance of 0 to "
                f"{most_guidance:g}."
            )
        if seed is None:
            seed = secrets.randbelow(RANDOM_SEEDS)
        if not 0 <= seed < SEEDS:
            raise ValueError(f"The seed must be a whole number from 0 to {SEEDS - 1}.")
        seeds = range(int(seed), int(seed) + int(count))  # a slider's numbers may come as floats
        return Wish(lora, person, garment, mask, category, sizes[size], int(steps), guidance, seeds)

    def fulfil(self, wish: Wish, stop: threading.Event, progress: gr.Progress) -> Entry:
        """Dresses, step by step. Raises Stopped where that is asked for meanwhile, and ValueError as Studio.dress."""

        def each_step(done: int) -> None:
            if stop.is_set():
                raise Stopped
            progress((done, wish.steps), desc="dressing" if done else "preparing")

        results = self.studio.dress(wish, each_step)
        person, garment, mask, *shown = map(self.file, (wish.person, wish.garment, wish.mask, *results))
        return Entry(
            wish.lora, person, garment, mask, wish.category, wish.size, wish.steps, wish.guidance, wish.seeds, shown
        )

    def compare(self, entry: Entry, event: gr.SelectData) -> tuple[str, str]:
        """The slider between the person and the result that was picked."""
        return entry.person, entry.results[event.index]

    def restore(self, history: list[Entry], event: gr.SelectData) -> tuple:
        """Everything as it was when a picture of the history was made; the next one would be the same."""
        entry = history[event.index]
        try:
            trained = self.trained_size(self.chosen(str(entry.lora)))
            pictures = (entry.person, entry.garment, entry.mask, *entry.results)
            if not all(Path(picture).exists() for picture in pictures):
                raise ValueError("The pictures of this one are older than a day and were removed.")
        except ValueError as error:
            gr.Warning(str(error))
            return *(UNCHANGED,) * 15, str(error)
        sizes = panel_sizes(trained)
        size = next(name for name, each in sizes.items() if each == entry.size)
        editor = self.editor(Image.open(entry.person), Image.open(entry.mask))
        return (
            str(entry.lora), self.about(entry.lora), editor, entry.garment, entry.category,
            gr.Dropdown(list(sizes), value=size), far_enough(entry.steps, MOST_STEPS),
            far_enough(entry.guidance, MOST_GUIDANCE), len(entry.seeds), entry.seeds[0], False, None, *shown(entry),
            words(entry),
        )  # fmt: skip

    def show_example(self, event: gr.SelectData) -> tuple:
        """Person, garment and category of the example; no mask is made yet."""
        example = self.examples[event.index]
        person, garment = Image.open(example.person), Image.open(example.garment)
        return self.editor(person, None), self.file(garment), example.category, None


def shown(entry: Entry) -> tuple:
    """The slider between before and after, the results where there are several, and what they are of."""
    results = [(result, str(seed)) for result, seed in zip(entry.results, entry.seeds, strict=True)]
    return (entry.person, entry.results[0]), gr.Gallery(results, visible=len(results) > 1), entry
