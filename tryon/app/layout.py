"""What is seen on the page of app_lora.py; page.py says what happens when something on it is used."""

from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image

from tryon.app.mask_layers import MASK_COLOUR, MASK_OPACITY
from tryon.app.session import KEPT_SECONDS, MOST_GUIDANCE, MOST_RESULTS, MOST_STEPS, Session
from tryon.data.category import CATEGORIES, Category
from tryon.flux.lora_header import LoraFacts, read_facts
from tryon.inference.pipeline import usable_rule

CLEANED_EVERY = 60 * 60  # seconds
GALLERY = {"show_label": False, "format": "png", "object_fit": "contain", "interactive": False, "allow_preview": False}
STYLE = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; }
#title h1 { margin: 0; }
#history .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
#find, #grow { padding-left: 4px; padding-right: 4px; white-space: nowrap; }
#lora input { padding-right: 28px; text-overflow: ellipsis; }
#person:has(.empty) .zoom-number { display: none; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  #go { order: 1; }
  #examples .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
  #examples, #examples .grid-wrap { height: auto !important; max-height: none !important; }
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
    return f"Profile {facts.profile}, step {facts.step}; {pixels}; {masks}."


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
            self.history = gr.State([], time_to_live=KEPT_SECONDS)  # TryOnRequests, the newest first
            self.compared = gr.State(None, time_to_live=KEPT_SECONDS)  # the one whose results are shown
            self.masks = gr.State((), time_to_live=KEPT_SECONDS)  # MaskLayers, the newest last
            with gr.Row(equal_height=False):
                self._show_loras()
            with gr.Row(equal_height=False):
                with gr.Column(min_width=320, scale=5):
                    self._show_person()
                with gr.Column(min_width=320, scale=4):
                    self._show_garment()
                    self._show_settings()
                with gr.Column(min_width=320, scale=5):
                    self._show_results()
            gr.Markdown("#### Drawn examples")
            shown = [(thumbnail(example), example[-1]) for example in examples]
            self.shelf = gr.Gallery(shown, columns=6, height=260, elem_id="examples", **GALLERY)

    def _show_loras(self) -> None:
        gr.Markdown("# Try-on", elem_id="title")
        with gr.Column(scale=3):
            first = self.session.first
            self.lora = gr.Dropdown(self.session.loras(), value=str(first), label="LoRA", elem_id="lora")
            self.about = gr.Markdown(self.describe_lora(first), elem_id="about")

    def _show_person(self) -> None:
        gr.Markdown("### 1. Person and mask")
        brush = gr.Brush(colors=[(MASK_COLOUR, MASK_OPACITY)], color_mode="fixed")
        self.person = gr.ImageEditor(
            label="Person", type="pil", format="png", sources=["upload", "clipboard"], brush=brush, transforms=[],
            layers=False, height=520, elem_id="person",
            canvas_size=(16, 16),  # one larger than the picture would draw the mask beside its place
        )  # fmt: skip
        self.category = gr.Radio(list(CATEGORIES), value=CATEGORIES[0], label="Category", elem_id="category")
        with gr.Row():
            self.find = gr.Button("Make a mask", elem_id="find")
            self.grow = gr.Button("Mask from my paint", elem_id="grow")
        with gr.Row():
            self.undo_button = gr.Button("Undo", elem_id="undo")
            self.start_over_button = gr.Button("Start over", elem_id="start-over")
        self.step_back = gr.Button(visible="hidden", elem_id="step-back")
        gr.Markdown(
            "The pink area will be repainted. Change it with brush and eraser; it should reach well beyond the old "
            "garment. You can also paint over just the garment: *Mask from my paint* then makes a mask of the same "
            "kind as in training."
        )
        rule, sides = usable_rule(read_facts(self.session.first)), {}
        with gr.Accordion("Extend the mask, in % of the picture", open=False):
            for side, label in (("top", "Up"), ("bottom", "Down"), ("left", "Left"), ("right", "Right")):
                share = 100 * getattr(rule, side)
                sides[side] = gr.Slider(0, 50, value=share, step=1, label=label, elem_id=f"further-{label.lower()}")
        self.offsets = sides  # by the names of MaskRule's fields

    def _show_garment(self) -> None:
        gr.Markdown("### 2. Garment")
        self.garment = gr.Image(
            label="Garment", type="pil", sources=["upload", "clipboard"], height=320, elem_id="garment",
            image_mode=None,  # with another one transparent pixels would come black
        )  # fmt: skip
        self.garment_said = gr.Markdown(visible=False, elem_id="garment-said")
        self.unreadable = gr.Textbox(visible="hidden")

    def _show_settings(self) -> None:
        first = self.session.first
        sizes, (steps, guidance) = list(self.session.sizes(first)), self.session.denoising(first)
        most_steps, most_guidance = max(steps, MOST_STEPS), max(guidance, MOST_GUIDANCE)
        with gr.Row(elem_id="go"):
            self.button = gr.Button("Dress", variant="primary", elem_id="dress", scale=2)
            self.stop_button = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
        self.count = gr.Slider(1, MOST_RESULTS, value=1, step=1, label="Results", elem_id="count")
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
            self.is_random = gr.Checkbox(True, label="New each time", elem_id="random")
        with gr.Accordion("More settings", open=False):
            self.size = gr.Dropdown(sizes, value=sizes[0], label="Size of the repainted panel", elem_id="size")
            self.steps = gr.Slider(1, most_steps, value=steps, step=1, label="Steps", elem_id="steps")
            self.guidance = gr.Slider(0, most_guidance, value=guidance, step=0.5, label="Guidance", elem_id="guidance")

    def _show_results(self) -> None:
        gr.Markdown("### 3. Result")
        shown = {"format": "png", "interactive": False, "max_height": 520}
        self.slider = gr.ImageSlider(label="Before and after", elem_id="result", **shown)
        self.said = gr.Markdown("Give a person and a garment, or press an example below.", elem_id="said")
        self.results = gr.Gallery(columns=MOST_RESULTS, height=220, visible=False, elem_id="results", **GALLERY)
        gr.Markdown("#### Earlier results: press one to restore its pictures and settings")
        self.past = gr.Gallery(columns=3, height=300, elem_id="history", **GALLERY)

    def describe_lora(self, lora: Path) -> str:
        facts, (size, *_) = read_facts(lora), self.session.sizes(lora).values()
        return f"{self.notice(facts)} {describe(facts, size)}".strip()
