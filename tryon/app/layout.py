"""What is seen on the page of app_lora.py; page.py says what happens when something on it is used."""

from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image

from tryon.app.mask_layers import MASK_COLOUR, MASK_OPACITY
from tryon.app.session import (
    KEPT_SECONDS,
    MOST_GUIDANCE,
    MOST_RESULTS,
    MOST_STEPS,
    MOST_STRENGTH,
    NO_LORA,
    Session,
)
from tryon.data.category import CATEGORIES, Category, left_to_base
from tryon.flux.lora_header import LoraFacts
from tryon.inference.pipeline import usable_rule

CLEANED_EVERY = 60 * 60  # seconds
STRIP = {
    "show_label": False, "format": "png", "object_fit": "contain", "interactive": False, "allow_preview": False,
    "buttons": [], "fit_columns": False, "elem_classes": "strip",
}  # fmt: skip
STYLE = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; }
.gradio-container .main, .gradio-container main { padding: 4px 8px !important; }
.gradio-container .column { gap: 10px; }
#title { flex: none !important; width: auto !important; min-width: 0 !important; }
#title h1 { margin: 0; }
#about p, #shown p { font-size: 13px; }
#lora input { padding-right: 28px; text-overflow: ellipsis; }
#person:has(.empty) .zoom-number, #person .empty .or, #person .empty .or + div { display: none; }
#mask button { padding-left: 4px; padding-right: 4px; white-space: nowrap; }
.strip .grid-wrap { min-height: 0 !important; }
.strip .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important; }
.strip .caption-label {
  max-width: 100%; padding: 0 4px; font-size: 12px; white-space: normal; overflow-wrap: anywhere;
}
#results .grid-wrap { max-height: none; }
#results .thumbnail-item { display: flex; flex-direction: column; aspect-ratio: auto; }
#results .thumbnail-item img { flex: none; height: auto; max-height: calc(100vh - 200px); }
#results:has(.thumbnail-item:nth-child(3)) img { max-height: calc(50vh - 110px); }
#results .caption-label { position: static; border: 0; background: none; }
#examples .thumbnail-item { aspect-ratio: 3 / 2; }
@media (max-width: 640px) {
  #history .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
}
"""
Example = tuple[Path, Path, Category]  # pictures of a person and of a garment to begin with


def describe(facts: LoraFacts, size: tuple[int, int]) -> str:
    """A line about a LoRA. size: height and width of the panel."""
    pixels = f"panels of {size[0]} x {size[1]} pixels (height x width)"
    if not facts.known:
        return f"This LoRA does not say how it was trained; {pixels}."
    masks = {
        "rectangle": "trained with roomy rectangles as masks",
        "given": "trained with the masks of its data set; this page makes rectangles",
    }.get(facts.mask_rule, f"trained with masks by the rule {facts.mask_rule}")
    worn = "takes photographs of people as garment pictures" if facts.worn_reference_share else ""
    told = f"Profile {facts.profile}, step {facts.step}", pixels, masks, worn, left_to_base(facts.base_categories)
    return "; ".join(filter(None, told)) + "."


def thumbnail(example: Example) -> Image.Image:
    """Person and garment of an example, side by side."""
    both = Image.new("RGB", (288, 192))
    person, garment, _ = example
    for left, path in ((0, person), (144, garment)):
        both.paste(Image.open(path).convert("RGB").resize((144, 192)), (left, 0))
    return both


class Layout:
    """The components of the page, whose `blocks` Gradio serves. notice: what the page says of the models that a LoRA
    needs; may be empty."""

    def __init__(self, session: Session, examples: list[Example], notice: Callable[[LoraFacts], str]):
        self.session, self.examples, self.notice = session, examples, notice
        cleaned = (CLEANED_EVERY, KEPT_SECONDS)
        with gr.Blocks(title="Try-on", analytics_enabled=False, delete_cache=cleaned) as self.blocks:
            self.history = gr.State([], time_to_live=KEPT_SECONDS)  # rows of TryOnRequests, the newest first
            self.compared = gr.State((), time_to_live=KEPT_SECONDS)  # the row whose results are shown
            self.masks = gr.State((), time_to_live=KEPT_SECONDS)  # MaskLayers, the newest last
            self.names = gr.State({}, time_to_live=KEPT_SECONDS)  # what pictures of persons are called, by their file
            self.uploaded = gr.Textbox("", visible="hidden")  # the name of the person that was uploaded last
            self._show_loras()
            with gr.Row(equal_height=False):
                with gr.Column(min_width=320, scale=5):
                    self._show_person()
                with gr.Column(min_width=320, scale=4):
                    self._show_garment()
                    self._show_mask()
                    self._show_settings()
                with gr.Column(min_width=320, scale=5):
                    self._show_results()

    def _show_loras(self) -> None:
        first, loras = self.session.first, self.session.labelled_loras()
        with gr.Row(equal_height=False):
            gr.Markdown("# Try-on", elem_id="title")
            self.lora = gr.Dropdown(
                loras, value=first and str(first), label="LoRA", show_label=False, container=False, scale=7,
                elem_id="lora",
            )  # fmt: skip
        self.about = gr.Markdown(self.describe_lora(first), elem_id="about")

    def _show_person(self) -> None:
        brush = gr.Brush(colors=[(MASK_COLOUR, MASK_OPACITY)], color_mode="fixed")
        self.person = gr.ImageEditor(
            label="1. Person", type="pil", format="png", sources=["upload", "clipboard"], brush=brush, transforms=[],
            layers=False, height=420, elem_id="person",
            canvas_size=(16, 16),  # one larger than the picture would draw the mask beside its place
        )  # fmt: skip
        shown = [(thumbnail(example), example[-1]) for example in self.examples]
        gr.Markdown("Or begin with an example:")
        self.shelf = gr.Gallery(shown, columns=3, elem_id="examples", **STRIP)

    def _show_garment(self) -> None:
        self.garment = gr.Image(
            label="2. Garment", type="filepath", sources=["upload", "clipboard"], height=210, elem_id="garment",
            image_mode=None,  # with another one transparent pixels would come black
        )  # fmt: skip
        self.garment_said = gr.Markdown(visible=False, elem_id="garment-said")
        self.unreadable, self.has_person = gr.Textbox(visible="hidden"), gr.Checkbox(visible="hidden")

    def _show_mask(self) -> None:
        self.category = gr.Radio(list(CATEGORIES), value=CATEGORIES[0], label="3. Mask for", elem_id="category")
        with gr.Row(elem_id="mask"):
            self.find = gr.Button("Make a mask", size="md", min_width=0, scale=4, elem_id="find")
            self.undo_button = gr.Button("Undo", size="md", min_width=0, scale=2, elem_id="undo")
            self.start_over_button = gr.Button("Start over", size="md", min_width=0, scale=3, elem_id="start-over")
        self.step_back = gr.Button(visible="hidden", elem_id="step-back")
        self.again = gr.Button(visible="hidden", elem_id="again")
        rule, sides = usable_rule(self.session.facts(self.session.first)), {}
        with gr.Accordion("Change the mask", open=False, elem_id="change"):
            gr.Markdown(
                "The pink area will be repainted; it should reach well beyond the old garment. Change it with brush "
                "and eraser, or let it reach further, in % of the picture:"
            )
            for side, label in (("top", "Up"), ("bottom", "Down"), ("left", "Left"), ("right", "Right")):
                share = 100 * getattr(rule, side)
                sides[side] = gr.Slider(0, 50, value=share, step=1, label=label, elem_id=f"further-{label.lower()}")
            gr.Markdown("Or paint over just the garment that is worn; the mask is then made around it, as in training:")
            self.grow = gr.Button("Mask from my paint", elem_id="grow")
        self.offsets = sides  # by the names of MaskRule's fields

    def _show_settings(self) -> None:
        first, strength = self.session.first, self.session.config.lora_scale
        sizes, (steps, guidance) = list(self.session.sizes(first)), self.session.denoising(first)
        most_steps, most_guidance = max(steps, MOST_STEPS), max(guidance, MOST_GUIDANCE)
        with gr.Row(elem_id="go"):
            self.button = gr.Button("Dress", variant="primary", min_width=0, scale=2, elem_id="dress")
            self.stop_button = gr.Button("Stop", variant="stop", interactive=False, min_width=0, elem_id="stop")
        self.said = gr.Markdown("Give a person and a garment, or press an example.", elem_id="said")
        self.base = gr.Checkbox(False, label="Also without the LoRA", elem_id="base")
        loras = self.session.labelled_loras()
        self.others = gr.Dropdown(
            loras, multiselect=True, max_choices=MOST_RESULTS - 1, visible=len(loras) > 1, elem_id="others",
            label="Also with other LoRAs",
        )  # fmt: skip
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.count = gr.Slider(1, MOST_RESULTS, value=1, step=1, label="Results", elem_id="count")
            with gr.Row():
                self.seed = gr.Number(0, label="Seed", precision=0, min_width=120, elem_id="seed")
                self.is_random = gr.Checkbox(True, label="New each time", min_width=120, elem_id="random")
            self.strength = gr.Slider(
                0, max(strength, MOST_STRENGTH), value=strength, step=0.05, label="Strength of the LoRA",
                info="0 is the model without it", elem_id="strength",
            )  # fmt: skip
            self.size = gr.Dropdown(sizes, value=sizes[0], label="Size of the repainted panel", elem_id="size")
            self.steps = gr.Slider(1, most_steps, value=steps, step=1, label="Steps", elem_id="steps")
            self.guidance = gr.Slider(0, most_guidance, value=guidance, step=0.5, label="Guidance", elem_id="guidance")
            self.give_back = gr.Checkbox(
                False, label="Give back what the mask hid for nothing", elem_id="give-back",
                info="background, limbs and other garments that are in their place before and after",
            )  # fmt: skip
            self.made = gr.File(label="All as for a result: drop it here", file_types=["image"], height=170)

    def _show_results(self) -> None:
        self.slider = gr.ImageSlider(
            label="4. Before and after", format="png", interactive=False, height=420, max_height=420, elem_id="result"
        )
        self.shown = gr.Markdown(visible=False, elem_id="shown")
        self.all_button = gr.Button("All results", size="md", visible=False, elem_id="all-results")
        self.results = gr.Gallery(visible=False, elem_id="results", **STRIP)
        with gr.Column(visible=False) as self.earlier:
            gr.Markdown("Earlier results: press one to go back to it.")
            self.past = gr.Gallery(columns=6, elem_id="history", **STRIP)

    def describe_lora(self, lora: Path | None) -> str:
        if lora is None:
            return NO_LORA
        facts, (size, *_) = self.session.facts(lora), self.session.sizes(lora).values()
        return f"{self.notice(facts)} {describe(facts, size)}".strip()
