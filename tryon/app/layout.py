"""What is seen of the page of app_lora.py, and which of page.py's methods each part of it calls."""

import gradio as gr
from PIL import Image

from tryon.app.page import (
    KEPT_SECONDS,
    MASK_COLOUR,
    MASK_OPACITY,
    MOST_GUIDANCE,
    MOST_RESULTS,
    MOST_STEPS,
    Example,
    Page,
    panel_sizes,
)
from tryon.data.category import CATEGORIES
from tryon.flux.lora_header import denoising, read_facts
from tryon.inference.pipeline import usable_rule

CLEANED_EVERY = 60 * 60  # seconds
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
# The editor opens a file in the browser, and where it cannot says nothing but this.
TELL_OF_UNREADABLE = """() => window.addEventListener("unhandledrejection", (event) => {
  if (String(event.reason).includes("could not be decoded")) document.querySelector("#unreadable").click();
})"""


def thumbnail(example: Example) -> Image.Image:
    """Person and garment of an example, side by side."""
    person, garment = (Image.open(path).convert("RGB").resize((144, 192)) for path in (example.person, example.garment))
    both = Image.new("RGB", (288, 192))
    both.paste(person, (0, 0))
    both.paste(garment, (144, 0))
    return both


def build_page(page: Page) -> gr.Blocks:
    """The page, for Gradio to launch."""
    facts, size = read_facts(page.first), page.trained_size(page.first)
    sizes, offsets = list(panel_sizes(size)), usable_rule(facts).offsets
    steps, guidance = denoising(facts, page.steps, page.guidance)
    kept = {"time_to_live": KEPT_SECONDS}
    private = {"api_visibility": "private"}
    quietly = {**private, "show_progress": "hidden"}  # the editor's own sign of progress may stay when all is done
    with gr.Blocks(title="Try-on", analytics_enabled=False, delete_cache=(CLEANED_EVERY, KEPT_SECONDS)) as blocks:
        history, entry = gr.State([], **kept), gr.State(None, **kept)
        made = gr.State(None, **kept)
        with gr.Row(equal_height=False):
            gr.Markdown("# Try-on", elem_id="title")
            with gr.Column(scale=3):
                lora = gr.Dropdown(page.loras(), value=str(page.first), label="LoRA", elem_id="lora")
                about = gr.Markdown(page.about(page.first), elem_id="about")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320, scale=5):
                gr.Markdown("### 1. Who is dressed, and where")
                person = gr.ImageEditor(
                    label="Person",
                    type="pil",
                    format="png",
                    sources=["upload", "clipboard"],
                    brush=gr.Brush(colors=[(MASK_COLOUR, MASK_OPACITY)], color_mode="fixed"),
                    transforms=[],
                    layers=False,
                    canvas_size=(16, 16),  # a larger one than the picture would draw its mask beside its place
                    height=520,
                    elem_id="person",
                )
                category = gr.Radio(list(CATEGORIES), value=CATEGORIES[0], label="Part of the body", elem_id="category")
                with gr.Row():
                    find = gr.Button("Make a mask", elem_id="find")
                    grow = gr.Button("Mask from my paint", elem_id="grow")
                gr.Markdown(
                    "Pink is repainted; brush and eraser change it. Let it reach well beyond the old garment. If you "
                    "paint over that alone, *Mask from my paint* makes it as roomy as in training."
                )
                with gr.Accordion("Mask reaches further, in %", open=False):
                    sliders = [
                        gr.Slider(0, 50, value=100 * share, step=1, label=label, elem_id=f"further-{label.lower()}")
                        for label, share in zip(("Up", "Down", "Left", "Right"), offsets, strict=True)
                    ]
            with gr.Column(min_width=320, scale=4):
                gr.Markdown("### 2. In what")
                garment = gr.Image(
                    label="Garment",
                    type="pil",
                    image_mode=None,  # or what is transparent would come black
                    sources=["upload", "clipboard"],
                    height=320,
                    elem_id="garment",
                )
                with gr.Row(elem_id="go"):
                    button = gr.Button("Dress", variant="primary", elem_id="dress", scale=2)
                    stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
                count = gr.Slider(1, MOST_RESULTS, value=1, step=1, label="Results", elem_id="count")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                    is_random = gr.Checkbox(True, label="New each time", elem_id="random")
                with gr.Accordion("More settings", open=False):
                    size_name = gr.Dropdown(sizes, value=sizes[0], label="Size of what is painted", elem_id="size")
                    steps_taken = gr.Slider(
                        1, max(steps, MOST_STEPS), value=steps, step=1, label="Steps", elem_id="steps"
                    )
                    strength = gr.Slider(
                        0, max(guidance, MOST_GUIDANCE), value=guidance, step=0.5, label="Guidance", elem_id="guidance"
                    )
            with gr.Column(min_width=320, scale=5):
                gr.Markdown("### 3. Before and after")
                slider = gr.ImageSlider(
                    label="Before and after", format="png", interactive=False, max_height=520, elem_id="result"
                )
                said = gr.Markdown("Give a person and a garment, or press an example below.", elem_id="said")
                results = gr.Gallery(
                    show_label=False, format="png", columns=MOST_RESULTS, height=220, object_fit="contain",
                    visible=False, interactive=False, allow_preview=False, elem_id="results",
                )  # fmt: skip
                gr.Markdown("#### What you made: press one to go back to it")
                past = gr.Gallery(
                    show_label=False, format="png", columns=3, height=300,
                    object_fit="contain", interactive=False, allow_preview=False, elem_id="history",
                )  # fmt: skip
        gr.Markdown("#### Drawn examples")
        shelf = gr.Gallery(
            [(thumbnail(example), example.category) for example in page.examples], show_label=False, columns=6,
            height=260, object_fit="contain", interactive=False, allow_preview=False, elem_id="examples", format="png",
        )  # fmt: skip

        settings = [category, size_name, steps_taken, strength, count, seed, is_random]
        of_lora = [about, size_name, steps_taken, strength, *sliders]
        blocks.load(page.refresh, outputs=[lora, *of_lora], **private)
        lora.input(page.choose_lora, lora, of_lora, **private)
        masks = [lora, person, category, *sliders]
        find.click(page.mask_of_person, masks, [person, made, said], **quietly)
        grow.click(page.mask_of_paint, masks, [person, made, said], **quietly)
        for event in (category.change, *(each.change for each in sliders)):
            event(page.mask_anew, [made, *masks], [person, made, said], trigger_mode="always_last", **quietly)
        unreadable = gr.Button(visible="hidden", elem_id="unreadable")
        unreadable.click(page.tell_of_unreadable, **private)
        blocks.load(js=TELL_OF_UNREADABLE, **private)
        garment.upload(page.refuse_unreadable, garment, garment, preprocess=False, **private)
        dressing = button.click(page.begin, outputs=[button, stop], queue=False, **private).then(
            page.dress,
            [history, lora, person, garment, *settings],
            [slider, results, entry, seed, history, past, said],
            show_progress_on=slider,
            **private,
        )
        dressing.then(page.end, outputs=[button, stop], queue=False, **private)
        stop.click(page.stop, queue=False, **private)
        results.select(page.compare, entry, slider, **private)
        past.select(
            page.restore,
            history,
            [lora, about, person, garment, category, size_name, steps_taken, strength, count, seed, is_random, made,
             slider, results, entry, said],
            **quietly,
        )  # fmt: skip
        shelf.select(page.show_example, outputs=[person, garment, category, made], **quietly)
        blocks.unload(page.leave)

        # What a program calls, with pictures as files: /try_on.
        sent = [
            *(
                gr.Image(label=what, type="pil", image_mode=None, visible=False)
                for what in ("Person", "Garment", "Mask")
            ),
            gr.Textbox(None, label=f"Category: {', '.join(CATEGORIES)}", visible=False),
            gr.Textbox(None, label="LoRA, by the name that the page shows", visible=False),
            gr.Textbox(None, label="Size, by the name that the page shows", visible=False),
            gr.Number(None, label="Steps", precision=0, visible=False),
            gr.Number(None, label="Guidance", visible=False),
            gr.Number(1, label="Results", precision=0, visible=False),
            gr.Number(None, label="Seed", precision=0, visible=False),
        ]
        returned = gr.Gallery(label="Results", format="png", visible=False)
        first_seed = gr.Number(label="Seed of the first", precision=0, visible=False)
        gr.Button(visible=False).click(page.try_on, sent, [returned, first_seed], api_name="try_on")
    return blocks
