"""A page in the browser on which a person is dressed with a LoRA that was trained here.

    python app_lora.py --lora runs/<run>

It answers on this machine alone (127.0.0.1), and neither the page nor the server needs a network.
"""

import logging
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tryon.config import TryOnConfig, mistakes, parse_flags, setting
from tryon.entry import run_script

if TYPE_CHECKING:
    import gradio as gr
    from PIL import Image

    from tryon.lora import LoraFacts
    from tryon.pipeline import TryOnModel
    from tryon.sample import Category

    HideWorn = Callable[[Image.Image, Image.Image, Category], Image.Image]  # person, what it wears -> mask

logger = logging.getLogger(__name__)

SEEDS = 2**31  # a seed is below; large enough to be unlike the last one, small enough to be typed
MASK_COLOUR = ("#ff2d9b", 0.7)  # what is painted over still shows
PAINTED = 64  # alpha, of 255, from which a pixel counts as painted: a stroke's soft edge is left out
BRUSH_RADIUS = 32  # pixels of the person's picture
PAINT_IS_WORN = "what the person wears now"
PAINT_IS_MASK = "exactly what is repainted"
LARGEST_UPLOAD = "32mb"
LONGEST_QUEUE = 8  # try-ons that wait; whoever comes later is told
FONTS = ("system-ui", "sans-serif")  # the system's: nothing is fetched


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """How the page is served, and what it shows at first."""

    port: int = setting(7860, "port on this machine that the page is served at", 1, 65535)
    steps: int = setting(30, "denoising steps that the page begins with", 1, 100)
    guidance_scale: float = setting(30.0, "guidance that the page begins with", 0, 100)


def read_settings(argv: list[str]) -> tuple[TryOnConfig, PageConfig]:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    description = "Serves a page on which a person is dressed with a trained LoRA."
    given, of_page = parse_flags(argv, "python app_lora.py", description, TryOnConfig, PageConfig)
    config, page = TryOnConfig(**given), PageConfig(**of_page)
    problems = ["--lora is missing"] if config.lora is None else []
    problems += [*mistakes(config), *mistakes(page)]
    if problems:
        raise ValueError("; ".join(problems))
    return config, page


def dress(
    model: "TryOnModel",
    size: tuple[int, int],
    hide: "HideWorn | None",
    editor: dict[str, Any] | None,
    garment: "Image.Image | None",
    category: "Category",
    paint: str,
    steps: int,
    guidance: float,
    seed: int | None,
    is_random: bool,
) -> tuple["Image.Image", int]:
    """The dressed person, and the seed of its noise. What is on the page comes as Gradio gives it.

    size: the panel's height and width. hide: makes the mask where what is worn was painted. Raises ValueError, in words
    for the page, for what is missing or wrong.
    """
    from tryon.pipeline import try_on
    from tryon.sample import sample_of_pictures, upright_rgb

    if editor is None or editor["background"] is None:
        raise ValueError("Give a picture of the person first.")
    if garment is None:
        raise ValueError("Give a picture of the garment first.")
    if is_random:
        seed = secrets.randbelow(SEEDS)
    elif seed is None or not 0 <= seed < SEEDS:
        raise ValueError(f"The seed must be a whole number from 0 to {SEEDS - 1}.")
    mask = painted_mask(editor["background"].size, editor["layers"])
    if mask.getbbox() is None:
        raise ValueError("Paint over the part of the person that is to be dressed.")
    person = upright_rgb(editor["background"])
    if paint == PAINT_IS_WORN:
        mask = hide(person, mask, category)
    sample = sample_of_pictures(garment, person, mask, category, *size)
    prompt = model.prompts[category]
    return try_on(model.pipeline, sample, prompt, steps=steps, guidance=guidance, seed=seed), seed


def load_rule(facts: "LoraFacts | None", hub_cache: str | None) -> "HideWorn | None":
    """What makes the mask of a person and the region of what it wears, as in the LoRA's training; None where nobody
    here can: the data had masks, or label maps, of its own."""
    import torch

    from tryon.parsing import hide_worn, load_parser
    from tryon.pipeline import trained_rule

    if facts is not None and facts.mask_rule == "given":
        return None
    rule = trained_rule(facts)
    if rule.name != "rectangle" and rule.parser is None:
        return None
    parser = load_parser(rule.parser, hub_cache, torch.device("cpu")) if rule.parser else None
    return partial(hide_worn, rule=rule, parser=parser)


def build_page(
    model: "TryOnModel",
    facts: "LoraFacts | None",
    size: tuple[int, int],
    hide: "HideWorn | None",
    page: PageConfig,
) -> "gr.Blocks":
    """The page: pictures and settings on the left, the result on the right. size: the panel's height and width."""
    import gradio as gr
    import torch

    from tryon.sample import CATEGORIES

    per_category = facts is not None and facts.prompt == "category"

    def answer(*asked: Any) -> tuple["Image.Image", int, str]:
        try:
            picture, seed = dress(model, size, hide, *asked)
        except (ValueError, torch.OutOfMemoryError) as error:  # said on the page, where the user is
            logger.warning("%s", error)
            gr.Warning(str(error))
            return gr.skip(), gr.skip(), str(error)
        return picture, seed, f"Seed {seed}, {picture.height} x {picture.width} pixels (height x width)."

    with gr.Blocks(title="Try-on", analytics_enabled=False) as blocks:
        gr.Markdown(f"# Try-on\n{describe(facts, size)}")
        with gr.Row():
            with gr.Column():
                gr.Markdown("1. Give a picture of the person and paint over all of the garment it wears.")
                person = gr.ImageEditor(
                    label="Person",
                    type="pil",
                    image_mode="RGBA",
                    sources=["upload"],
                    brush=gr.Brush(default_size=BRUSH_RADIUS, colors=[MASK_COLOUR], color_mode="fixed"),
                    transforms=[],
                    layers=False,
                    height=560,
                    elem_id="person",
                )
                paint = gr.Radio(
                    [PAINT_IS_WORN, PAINT_IS_MASK], value=PAINT_IS_WORN if hide else PAINT_IS_MASK,
                    label="The paint shows", visible=hide is not None, elem_id="paint",
                    info="From what is worn the mask is made that the LoRA learnt with: roomier than the garment.",
                )  # fmt: skip
            with gr.Column():
                gr.Markdown("2. Give a picture of the garment.")
                garment = gr.Image(label="Garment", type="pil", sources=["upload"], height=280, elem_id="garment")
                category = gr.Radio(
                    list(CATEGORIES), value=CATEGORIES[0], label="The garment is for this part of the body",
                    visible=per_category or hide is not None, elem_id="category",
                )  # fmt: skip
                steps = gr.Slider(1, 100, value=page.steps, step=1, label="Steps")
                guidance = gr.Slider(0, 100, value=page.guidance_scale, step=0.5, label="Guidance")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                    is_random = gr.Checkbox(True, label="A new seed each time", elem_id="random")
                button = gr.Button("Dress", variant="primary", elem_id="dress")
            with gr.Column():
                gr.Markdown("3. Dress.")
                result = gr.Image(
                    label="Result",
                    type="pil",
                    format="png",
                    interactive=False,
                    height=560,
                    buttons=["download", "fullscreen"],
                    elem_id="result",
                )
                words = gr.Markdown(elem_id="words")
        button.click(
            answer,
            inputs=[person, garment, category, paint, steps, guidance, seed, is_random],
            outputs=[result, seed, words],
        )
    return blocks


def painted_mask(size: tuple[int, int], layers: list["Image.Image"]) -> "Image.Image":
    """ "L" of 0 and 255 at `size` (width, height): 255 wherever any layer of the editor has paint."""
    from PIL import Image, ImageChops

    mask = Image.new("L", size)
    for layer in layers:
        paint = layer.getchannel("A").resize(size).point(lambda alpha: 255 if alpha >= PAINTED else 0)
        mask = ImageChops.lighter(mask, paint)
    return mask


def describe(facts: "LoraFacts | None", size: tuple[int, int]) -> str:
    """One line about the LoRA."""
    pixels = f"{size[0]} x {size[1]} pixels (height x width)"
    if facts is None:
        return f"The LoRA does not say how it was trained; pictures of {pixels}."
    return f"LoRA of the {facts.profile} profile at step {facts.step}; pictures of {pixels}."


def check_port(port: int) -> None:
    """Raises ValueError where the page cannot be served at the port: before the models are loaded."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise ValueError(f"port {port} cannot be used ({error.strerror}): give another with --port") from error


def main(argv: list[str]) -> None:
    config, page = read_settings(argv)
    check_port(page.port)

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
    for name in ("no_proxy", "NO_PROXY"):  # Gradio looks for its own page, which no proxy can see
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    import gradio as gr

    from tryon.lora import read_facts
    from tryon.pipeline import load_try_on, lora_on_disk, panel_size
    from tryon.toy.model import use_toy_model_for_try_on
    from tryon.tracking import set_up_logging

    set_up_logging(is_main_process=True)
    lora = lora_on_disk(config.lora, config.cache_dir)
    facts = read_facts(lora)
    model = load_try_on(use_toy_model_for_try_on(config, facts), lora)
    hide = load_rule(facts, config.cache_dir)
    blocks = build_page(model, facts, panel_size(config, facts), hide, page)
    blocks.queue(max_size=LONGEST_QUEUE)
    blocks.launch(
        max_file_size=LARGEST_UPLOAD,
        prevent_thread_lock=True,
        server_name="127.0.0.1",
        server_port=page.port,
        share=False,
        quiet=True,
        footer_links=[],
        theme=gr.themes.Default(font=FONTS, font_mono="monospace"),
    )
    logger.info("serving: open http://127.0.0.1:%d in a browser; Ctrl-C ends it", page.port)
    blocks.block_thread()


if __name__ == "__main__":
    run_script(main)
