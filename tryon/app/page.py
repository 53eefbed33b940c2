"""What happens when something on the page of app_lora.py is used; what is seen of it is in layout.py.

Handlers get what components hold as {component: value}, and return what is to change in the same form.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio.components import Component
from PIL import Image

from tryon.app.endpoints import add_endpoints
from tryon.app.layout import Example, Layout
from tryon.app.mask_layers import (
    PAINTED,
    MaskLayers,
    MaskSource,
    alpha_of,
    alpha_of_paint,
    as_paint,
    drawn,
)
from tryon.app.pictures import NO_PICTURE, person_of, usable_file
from tryon.app.session import MOST_GUIDANCE, MOST_STEPS, NO_LORA, Session, TryOnRequest, error_text
from tryon.data.category import CATEGORIES
from tryon.data.sample import UNREADABLE, read_photograph
from tryon.flux.lora_header import LoraFacts, read_facts
from tryon.inference.pipeline import usable_rule
from tryon.inference.recipe import read_recipe

logger = logging.getLogger(__name__)

LONGEST_HISTORY = 24
NUMBERS = ("steps", "guidance_scale", "seed", "lora_scale")  # in every recipe of a result
LONGEST_UNDO = 50  # changes of the mask
SHOWN_LATELY = 3  # masks, one of which the editor shows while it loads the last
PROGRESS = gr.Progress()  # as a default Gradio gives a handler one of its own
NO_MASK = "There is no mask: *Dress* makes one where you paint none."
READY = "Person and garment are there: press *Dress*. It makes the mask where you paint none."
PRIVATE = {"api_visibility": "private"}
QUIETLY = {**PRIVATE, "show_progress": "hidden"}  # the editor's own sign of progress may stay when all is done
# The editor opens a file in the browser, and throws this where it cannot.
TELL_OF_UNREADABLE = """() => window.addEventListener("unhandledrejection", (event) => {
  if (String(event.reason).includes("could not be decoded")) document.querySelector("#unreadable").click();
})"""
# The editor forgets what the person's file was called; a picture that is pasted has no name.
REMEMBER_NAME = """() => {
  const remember = (files) => { if (files?.length) window.uploadedName = files[0].name; };
  const person = document.querySelector("#person");
  person.addEventListener("change", (event) => remember(event.target.files), true);
  person.addEventListener("drop", (event) => remember(event.dataTransfer.files), true);
  window.addEventListener("paste", () => { window.uploadedName = ""; }, true);
}"""
UPLOADED_NAME = "() => window.uploadedName ?? ''"
# The browser takes a picture that cannot be read away, as another may have been given since the server looked at it.
TAKE_AWAY = "(unreadable, garment) => garment && garment.path === unreadable ? null : garment"
# Says what to do next, by what was given or taken away, where the line says nothing else. The browser says it: the
# editor's picture takes seconds to be read and sent, and the garment may be another one by then.
GUIDE = f"""(person, garment, said) => {{
  if (!said.startsWith("Give ") && said !== "{READY}") return said;
  const missing = [...(person ? [] : ["a person"]), ...(garment ? [] : ["a garment"])];
  return missing.length ? `Give ${{missing.join(" and ")}}, or press an example.` : "{READY}";
}}"""
# A slider changes at each of its steps: the mask follows when all of them rest, and when it has followed before, as the
# editor's paint takes a while to be read.
FOLLOW = """() => {
  const follow = () => {
    if (window.following) return rest();
    window.following = true;
    document.querySelector("#again").click();
  };
  const rest = () => { clearTimeout(window.resting); window.resting = setTimeout(follow, 300); };
  rest();
}"""
FOLLOWED = "() => { window.following = false; }"
# A stroke is undone by the editor, which forgets its strokes when it is given a mask; all else by the page.
UNDO = """() => window.editor?.command_manager.history.command?.name === "Draw"
  ? window.editor.undo() : document.querySelector("#step-back").click()"""
Values = dict[Component, Any]
Row = tuple[TryOnRequest, ...]  # made of the same pictures with the same seeds, each with another LoRA or strength


class Stopped(Exception):
    """A try-on that the user stopped."""


def describe_results(row: Row) -> str:
    """A line about a row's results."""
    with Image.open(row[0].results[0]) as result:
        width, height = result.size
    seeds = row[0].seeds
    which = f"Seed {seeds[0]}" if len(seeds) == 1 else f"Seeds {seeds[0]} to {seeds[-1]}"
    press = " Press a result to see it large." if len(results_of(row)) > 1 else ""
    return f"{which}; {height} x {width} pixels (height x width).{press}"


def results_of(row: Row) -> list[tuple[str, str]]:
    """A row's results, each with what it was made with."""
    return [
        (result, f"{made.version}, seed {seed}")
        for made in row
        for result, seed in zip(made.results, made.seeds, strict=True)
    ]


def refusal(page: "Page", error: Exception) -> dict:
    """Says on the page what was wrong."""
    logger.warning("%s", error)
    gr.Warning(error_text(error))
    return {page.said: error_text(error)}


def refusing(handler: Callable[..., dict]) -> Callable[..., dict]:
    """The handler, which says on the page what was wrong where it raises ValueError."""

    @wraps(handler)
    def answer(page: "Page", *given: Any) -> dict:
        try:
            return handler(page, *given)
        except (ValueError, torch.OutOfMemoryError) as error:
            return refusal(page, error)

    return answer


def editor_of(person: str, layers: list[str]) -> dict:
    """What the editor is given to show: files."""
    return {"background": person, "layers": layers, "composite": None}


def slider_to(value: float, most: float) -> gr.Slider:
    """A slider at a value, which may lie beyond its usual end."""
    return gr.Slider(value=value, maximum=max(value, most))


class Page(Layout):
    """The page with its handlers; `_connect` says which one each component calls."""

    def __init__(self, session: Session, examples: list[Example], notice: Callable[[LoraFacts], str]):
        super().__init__(session, examples, notice)
        self.stops: dict[str, threading.Event] = {}  # by browser session, while it waits for a try-on
        with self.blocks:
            self._connect()
            add_endpoints(session, self._dress_for_program)

    def _connect(self) -> None:
        of_lora = {self.about, self.size, self.steps, self.guidance, *self.offsets.values(), self.said}
        self.chosen = {self.lora, self.others}
        self.listed = self.chosen | of_lora
        self.blocks.load(self.list_loras, self.chosen, self.listed, **QUIETLY)

        of_mask = {self.lora, self.person, self.category, self.masks, *self.offsets.values()}
        masked = {self.person, self.masks, self.said}
        self.find.click(self.mask_of_person, of_mask, masked, **QUIETLY)
        self.grow.click(self.mask_of_paint, of_mask, masked, **QUIETLY)
        changes = [each.change for each in (self.category, *self.offsets.values())]
        gr.on(changes, None, js=FOLLOW, **PRIVATE)
        self.again.click(self.mask_again, of_mask, masked, **QUIETLY).then(None, js=FOLLOWED, **PRIVATE)
        self.lora.input(self.choose_lora, {self.lora}, of_lora, **PRIVATE).then(
            self.mask_again, of_mask, masked, **QUIETLY
        )
        self.undo_button.click(js=UNDO, **PRIVATE)
        stepped = {*masked, self.category, *self.offsets.values()}
        self.step_back.click(self.undo, {self.person, self.masks}, stepped, **QUIETLY)
        self.start_over_button.click(self.start_over, {self.person, self.masks}, masked, **QUIETLY)

        undecoded = gr.Button(visible="hidden", elem_id="unreadable")
        undecoded.click(lambda: gr.Warning(f"This file {NO_PICTURE}"), **PRIVATE)
        for script in (TELL_OF_UNREADABLE, REMEMBER_NAME):
            self.blocks.load(js=script, **PRIVATE)
        # Not through the queue, whose answers may be late, and the last of several uploads always: none goes unchecked.
        self.garment.upload(
            self.check_garment, {self.garment}, {self.unreadable, self.garment_said},
            preprocess=False, queue=False, trigger_mode="always_last", **QUIETLY,
        ).then(None, [self.unreadable, self.garment], self.garment, js=TAKE_AWAY, **QUIETLY)  # fmt: skip
        self.person.upload(None, None, self.has_person, js="() => true", **QUIETLY)
        self.person.clear(None, None, self.has_person, js="() => false", **QUIETLY)
        given = [self.has_person, self.garment, self.said]
        gr.on([self.has_person.change, self.garment.change], None, given, self.said, js=GUIDE, **QUIETLY)

        settings = {
            self.category, self.size, self.steps, self.guidance, self.count, self.seed, self.is_random, self.strength,
            self.base, self.others, self.give_back,
        }  # fmt: skip
        buttons = {self.button, self.stop_button}
        results = {self.slider, self.shown, self.all_button, self.results}
        compared = {*results, self.compared, self.said}
        dressing = (
            self.button.click(None, None, self.uploaded, js=UPLOADED_NAME, **PRIVATE)
            .then(self.begin, outputs=buttons, queue=False, **PRIVATE)
            .then(
                self.dress,
                {self.garment, self.history, self.names, self.uploaded, *of_mask, *settings},
                {self.seed, self.history, self.past, self.earlier, self.names, *masked, *compared},
                show_progress_on=[self.slider, self.results],
                **PRIVATE,
            )
        )
        dressing.then(self.end, outputs=buttons, queue=False, **PRIVATE)
        self.stop_button.click(self.stop, queue=False, **PRIVATE)
        self.results.select(self.show_result, {self.compared}, results, **PRIVATE)
        self.all_button.click(self.show_results, {self.compared}, results, **PRIVATE)
        restored = {self.lora, self.about, self.person, self.garment, self.masks, *settings, *compared}
        self.past.select(self.restore, {self.history, self.person, self.masks}, restored, **QUIETLY)
        taken = {self.lora, self.about, self.said, *settings - {self.base, self.others}}
        self.made.upload(self.take_settings, {self.made, self.lora}, taken, **QUIETLY)
        begun = {self.person, self.has_person, self.garment, self.category, self.masks, self.names, self.said}
        self.shelf.select(self.show_example, {self.person, self.masks, self.names}, begun, **QUIETLY)
        self.blocks.unload(self.leave)

    def list_loras(self, values: Values) -> dict:
        """When the page or its tab is opened: offers the LoRAs that are there now, and chooses one where there was none
        or the chosen one is gone."""
        loras = self.session.labelled_loras()
        files = [file for _, file in loras]
        compared = [file for file in values[self.others] if file in files]
        others = {self.others: gr.Dropdown(loras, value=compared, multiselect=True, visible=len(loras) > 1)}
        if values[self.lora] in files:
            return {self.lora: gr.Dropdown(loras), **others}
        usual = self.session.usual()
        facts = self.choose_lora({self.lora: usual}) if usual else {self.about: NO_LORA}
        return {**facts, self.lora: gr.Dropdown(loras, value=usual or None), **others}

    @refusing
    def choose_lora(self, values: Values) -> dict:
        """Shows what the LoRA was trained for: its sizes, steps and guidance, and the mask's offsets."""
        lora = self.session.chosen(values[self.lora])
        sizes, (steps, guidance) = list(self.session.sizes(lora)), self.session.denoising(lora)
        rule = usable_rule(read_facts(lora))
        return {
            self.about: self.describe_lora(lora),
            self.size: gr.Dropdown(sizes, value=sizes[0]),
            self.steps: slider_to(steps, MOST_STEPS),
            self.guidance: slider_to(guidance, MOST_GUIDANCE),
            **{slider: 100 * getattr(rule, side) for side, slider in self.offsets.items()},
        }

    @refusing
    def mask_of_person(self, values: Values) -> dict:
        """Computes the mask from what the parser finds."""
        return self._computed(values, self._masks(values), None)

    @refusing
    def mask_of_paint(self, values: Values) -> dict:
        """Computes the mask from what is painted over."""
        masks = self._masks(values)
        painted = masks[-1].read(masks[-1].strokes) == PAINTED
        if not painted.any():
            raise ValueError("Paint over all of the garment that the person wears first.")
        return self._computed(values, masks, self.session.file(Image.fromarray(painted)))

    @refusing
    def mask_again(self, values: Values) -> dict:
        """Computes the mask again for another LoRA, category or other offsets, from what it was computed from."""
        if not values[self.masks]:
            return gr.skip()
        masks = self._masks(values)
        shown = self._computed(values, masks, masks[-1].source.worn) if masks[-1].source else {self.masks: masks}
        return gr.skip() if shown[self.masks] == values[self.masks] else shown

    @refusing
    def undo(self, values: Values) -> dict:
        """Shows the mask as it was before its last change, and the settings that it was computed with; the last one
        where the picture was taken away."""
        has_person = values[self.person] and values[self.person]["background"]
        masks = self._masks(values)[:-1] if has_person else values[self.masks]
        if not masks:
            raise ValueError("There is nothing to undo.")
        source = masks[-1].source
        offsets = {slider: 100 * getattr(source.rule, side) for side, slider in self.offsets.items()} if source else {}
        return self._shown(masks) | offsets | ({self.category: source.category} if source else {})

    @refusing
    def start_over(self, values: Values) -> dict:
        """Takes the mask away, and what was painted and erased."""
        masks = self._masks(values)
        return self._shown((*masks, MaskLayers(masks[-1].person)))

    def _masks(self, values: Values) -> tuple[MaskLayers, ...]:
        """The masks of the page, the newest last, which has all that was painted and erased until now. Raises
        ValueError where there is no person, or none that can be used."""
        masks, editor = values[self.masks], values[self.person]
        person = person_of(editor)
        file = self.session.file(person)
        if not masks or masks[-1].person != file:
            masks = (*masks, MaskLayers(file))
        lately = [alpha_of_paint(mask.mask) for mask in masks[-SHOWN_LATELY:] if mask.person == file]
        strokes = drawn(masks[-1].read(masks[-1].strokes), [np.zeros_like(lately[0]), *lately], alpha_of(editor))
        newest = replace(masks[-1], strokes=self.session.file(Image.fromarray(strokes)) if strokes.any() else None)
        return masks if newest == masks[-1] else (*masks, newest)

    def _computed(self, values: Values, masks: tuple[MaskLayers, ...], worn: str | None) -> dict:
        """Computes the mask by the page's settings, under what is painted and erased. worn: as of MaskSource."""
        person, lora = Image.open(masks[-1].person), self.session.chosen(values[self.lora])
        offsets = {side: values[slider] / 100 for side, slider in self.offsets.items()}
        source = MaskSource(worn, values[self.category], replace(usable_rule(read_facts(lora)), **offsets))
        mask = self.session.make_mask(lora, person, worn and Image.open(worn), source.category, source.rule)
        newest = replace(masks[-1], computed=self.session.file(mask), source=source)
        return self._shown(masks if newest == masks[-1] else (*masks, newest))

    def _shown(self, masks: tuple[MaskLayers, ...]) -> dict:
        """Shows the newest mask on its person."""
        mask = masks[-1].mask
        share = f"The pink area will be repainted: {np.mean(mask > 0):.0%} of the picture."
        return {
            self.person: editor_of(masks[-1].person, [self.session.file(as_paint(mask))]),
            self.masks: masks[-LONGEST_UNDO:],
            self.said: share if mask.any() else NO_MASK,
        }

    def _kept(self, values: Values) -> tuple[MaskLayers, ...]:
        """The masks before another person takes the place of the one on the page."""
        try:
            return self._masks(values)
        except ValueError:  # there is none
            return values[self.masks]

    def check_garment(self, values: Values) -> dict:
        """Says of a garment's file that it cannot be read, and names it for TAKE_AWAY."""
        path = values[self.garment] and values[self.garment]["path"]
        try:
            if path:
                read_photograph(Path(path))
        except UNREADABLE:
            return {self.unreadable: path, self.garment_said: gr.Markdown(f"This file {NO_PICTURE}", visible=True)}
        return {self.unreadable: "", self.garment_said: gr.Markdown(visible=False)}

    def begin(self, request: gr.Request) -> dict:
        self.stops[request.session_hash] = threading.Event()
        button = gr.Button("Dressing ...", interactive=False)
        return {self.button: button, self.stop_button: gr.Button(interactive=True)}

    def stop(self, request: gr.Request) -> None:
        """Asks the try-on to stop. `dress` says when it has: words from here might arrive after those."""
        if stop := self.stops.get(request.session_hash):
            stop.set()

    def end(self, request: gr.Request) -> dict:
        self.stops.pop(request.session_hash, None)
        return {self.button: gr.Button("Dress", interactive=True), self.stop_button: gr.Button(interactive=False)}

    def leave(self, request: gr.Request) -> None:
        """Stops the try-on of a page that was closed."""
        if stop := self.stops.pop(request.session_hash, None):
            stop.set()

    def dress(self, values: Values, request: gr.Request, progress: gr.Progress = PROGRESS) -> Iterator[dict]:
        """Makes what the page asks for, and puts it into the history; a mask first where nothing is painted."""
        try:
            masks, garment = self._masks(values), usable_file("garment", values[self.garment])
            if not values[self.is_random] and values[self.seed] is None:
                raise ValueError("Give a seed, or let it be new each time.")
            if not masks[-1].mask.any():
                made = self._computed(values, masks, None)
                masks = made[self.masks]
                yield made  # now, as the person may paint while they wait
            yield self._dressed(values, masks[-1], garment, request, progress)
        except (ValueError, torch.OutOfMemoryError) as error:
            yield refusal(self, error)

    def _dressed(
        self, values: Values, mask: MaskLayers, garment: Image.Image, request: gr.Request, progress: gr.Progress
    ) -> dict:
        """A row of try-ons by the page's settings, shown and put into the history."""
        names = {mask.person: Path(values[self.uploaded]).stem or "person", **values[self.names]}
        pictures = {"person": Image.open(mask.person), "garment": garment, "mask": Image.fromarray(mask.mask)}
        called = names[mask.person], Path(values[self.garment]).stem
        seed = None if values[self.is_random] else values[self.seed]
        versions, asked = self._versions(values), []
        for lora, strength in versions:
            size = values[self.size] if values[self.size] in self.session.sizes(lora) else None
            asked += [
                self.session.request(
                    lora=lora,
                    strength=strength,
                    **pictures,
                    category=values[self.category],
                    size=size,
                    steps=values[self.steps],
                    guidance=values[self.guidance],
                    count=1 if len(versions) > 1 else values[self.count],
                    seed=asked[0].seeds[0] if asked else seed,
                    called=called,
                    give_back=values[self.give_back],
                )  # fmt: skip
            ]
        doubts = self._doubts(asked[0])
        try:
            row = tuple(self._dress(each, self.stops.get(request.session_hash), progress) for each in asked)
        except Stopped:
            return {self.said: "Stopped: nothing was made."}
        history = [row, *values[self.history]][:LONGEST_HISTORY]
        past = [(first.results[0], str(first.seeds[0])) for first, *_ in history]
        return {
            **self._compared(row),
            self.said: describe_results(row) + (f" But {'; '.join(doubts)}." if doubts else ""),
            self.seed: row[0].seeds[0],
            self.history: history,
            self.past: gr.Gallery(past, selected_index=None),
            self.earlier: gr.Column(visible=True),
            self.names: names,
        }

    def _versions(self, values: Values) -> list[tuple[Path, float]]:
        """The LoRAs that are compared, the chosen one first, each with its strength; the base has none."""
        lora, strength = self.session.chosen(values[self.lora]), values[self.strength]
        base = [(lora, 0)] if values[self.base] else []
        others = [(self.session.chosen(other), strength or 1) for other in values[self.others]]
        return list(dict.fromkeys([(lora, strength), *base, *others]))

    def _doubts(self, asked: TryOnRequest) -> list[str]:
        """Why the request's mask is hardly one that was meant, which is also said at once: a try-on takes its time."""
        doubts = [*self.session.doubts_about_mask(asked)]
        for doubt in doubts:
            logger.warning("%s", doubt)
            gr.Warning(doubt)
        return doubts

    def _dress_for_program(self, asked: TryOnRequest, progress: gr.Progress) -> TryOnRequest:
        self._doubts(asked)
        return self._dress(asked, None, progress)

    def _dress(self, asked: TryOnRequest, stop: threading.Event | None, progress: gr.Progress) -> TryOnRequest:
        """The request with its results. Raises Stopped once `stop` is set, and ValueError as Session.dress."""

        def each_step(done: int) -> None:
            if stop and stop.is_set():
                raise Stopped
            progress((done, asked.steps), desc=f"dressing, {asked.version}" if done else "preparing")

        return self.session.dress(asked, each_step)

    def _compared(self, row: Row) -> dict:
        """Shows a row's results: one over the person, several beside one another."""
        shown = self._beside(row) if len(results_of(row)) > 1 else self._large(row, 0)
        return {**shown, self.compared: row, self.said: describe_results(row)}

    def show_result(self, values: Values, event: gr.SelectData) -> dict:
        """Shows the pressed result large."""
        return self._large(values[self.compared], event.index)

    def show_results(self, values: Values) -> dict:
        """Shows all results again."""
        return self._beside(values[self.compared])

    def _large(self, row: Row, index: int) -> dict:
        """One of a row's results over the person, and what it was made with."""
        results = results_of(row)
        result, made_with = results[index]
        return {
            self.slider: gr.ImageSlider((row[0].person, result), visible=True),
            self.shown: gr.Markdown(f"After: {made_with}", visible=True),
            self.all_button: gr.Button(visible=len(results) > 1),
            self.results: gr.Gallery(visible=False),
        }

    def _beside(self, row: Row) -> dict:
        """A row's results beside one another, in as many rows as columns."""
        results = results_of(row)
        columns = math.ceil(math.sqrt(len(results)))
        hidden = {self.slider: gr.ImageSlider, self.shown: gr.Markdown, self.all_button: gr.Button}
        return {
            **{component: kind(visible=False) for component, kind in hidden.items()},
            self.results: gr.Gallery(results, columns=columns, visible=True, selected_index=None),
        }

    @refusing
    def restore(self, values: Values, event: gr.SelectData) -> dict:
        """Shows everything as it was when a picture of the history was made; the next one would be the same."""
        row = values[self.history][event.index]
        made, *others = row
        sizes = self.session.sizes(self.session.chosen(str(made.lora)))
        if not all(
            Path(file).exists() for each in row for file in (each.person, each.garment, each.mask, *each.results)
        ):
            raise ValueError("The pictures of this one are older than a day and were removed.")
        return {
            **self._shown((*self._kept(values), MaskLayers(made.person, made.mask))),
            **self._compared(row),
            self.lora: str(made.lora),
            self.about: self.describe_lora(made.lora),
            self.garment: made.garment,
            self.category: made.category,
            self.size: gr.Dropdown(list(sizes), value=next(name for name, size in sizes.items() if size == made.size)),
            self.steps: slider_to(made.steps, MOST_STEPS),
            self.guidance: slider_to(made.guidance, MOST_GUIDANCE),
            self.count: len(made.seeds),
            self.seed: made.seeds[0],
            self.is_random: False,
            self.strength: made.strength,
            self.give_back: made.give_back,
            self.base: any(each.strength == 0 for each in others),
            self.others: [str(each.lora) for each in others if each.strength],
        }

    @refusing
    def take_settings(self, values: Values) -> dict:
        """Sets everything but the pictures as it was when a result was made, here or by tryon_inference_lora.py."""
        recipe = read_recipe(Path(values[self.made]))
        if recipe is None or not all(isinstance(recipe.flags.get(name), int | float) for name in NUMBERS):
            raise ValueError("This picture does not say how it was made: give a result of this page.")
        flags, name = recipe.flags, recipe.loras[0]
        found = next((file for called, file in self.session.loras() if called == name), None)
        lora = self.session.chosen(found or values[self.lora])
        sizes = self.session.sizes(lora)
        as_made = [size for size in sizes if sizes[size] == (flags.get("height"), flags.get("width"))]
        category = {self.category: flags["category"]} if flags.get("category") in CATEGORIES else {}
        return category | {
            self.lora: str(lora),
            self.about: self.describe_lora(lora),
            self.size: gr.Dropdown(list(sizes), value=(as_made or list(sizes))[0]),
            self.steps: slider_to(flags["steps"], MOST_STEPS),
            self.guidance: slider_to(flags["guidance_scale"], MOST_GUIDANCE),
            self.count: 1,
            self.seed: flags["seed"],
            self.is_random: False,
            self.strength: flags["lora_scale"],
            self.give_back: flags.get("give_back", False) is True,
            self.said: "All settings are as for that picture; person, garment and mask are yours to give."
            + ("" if found else f" Its LoRA, {name}, is not here."),
        }

    def show_example(self, values: Values, event: gr.SelectData) -> dict:
        """Shows person, garment and category of the example; the mask is not made yet."""
        person, garment, category = self.examples[event.index]
        file = self.session.file(Image.open(person).convert("RGB"))
        return {
            self.person: editor_of(file, []),
            self.has_person: True,  # the garment's change may come before the editor says so
            self.names: {**values[self.names], file: person.stem},
            self.masks: self._kept(values),
            self.garment: str(garment),
            self.category: category,
            self.said: READY,
        }
