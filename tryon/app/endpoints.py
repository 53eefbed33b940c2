"""What programs call on the page of app_lora.py: /info, and /try_on with pictures as files."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from tryon.app.pictures import readable, usable_file
from tryon.app.session import Session, TryOnRequest, error_text
from tryon.data.category import CATEGORIES, Category
from tryon.data.sample import open_picture
from tryon.flux.lora_header import denoising, read_facts
from tryon.inference.pipeline import usable_rule
from tryon.runs import lora_name

logger = logging.getLogger(__name__)

PROGRESS = gr.Progress()  # as a default Gradio gives a handler one of its own


def add_endpoints(session: Session, dress: Callable[[TryOnRequest, gr.Progress], TryOnRequest]) -> None:
    """Adds the endpoints to the page that is being laid out. dress: returns a request with its results; raises
    ValueError for what cannot be used."""

    def info() -> list[dict[str, Any]]:
        """The LoRAs that can be chosen, the newest first, and what each was trained for."""
        return [facts_of(session, name, Path(file)) for name, file in session.loras()]

    def try_on(
        person: str | None,
        garment: str | None,
        mask: str | None = None,
        category: Category | None = None,
        lora: str | None = None,
        size: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        count: int = 1,
        seed: int | None = None,
        strength: float | None = None,
        give_back: bool = False,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The results, and the settings that they were made with. Without a mask one is made; without a LoRA the page's
        first one is used; without a size, steps or guidance they are as it was trained; without a seed it is random."""
        try:
            called = Path(person or "").stem, Path(garment or "").stem
            person, garment = usable_file("person", person), usable_file("garment", garment)
            if category not in CATEGORIES:
                raise ValueError(f"Give a category, one of {', '.join(CATEGORIES)}.")
            file = session.chosen(lora or session.usual())
            facts = read_facts(file)
            if mask is None:
                painted = session.make_mask(file, person, None, category, usable_rule(facts))
            else:
                with readable("mask"):
                    painted = open_picture(Path(mask))
                    painted.load()
            steps, guidance = denoising(facts, steps, guidance)
            asked = session.request(
                lora=file, strength=session.config.lora_scale if strength is None else strength, person=person,
                garment=garment, mask=painted, category=category, size=size, steps=steps, guidance=guidance,
                count=count, seed=seed, called=called, give_back=bool(give_back),
            )  # fmt: skip
            return dress(asked, progress).results, {
                "lora": lora_name(asked.lora), "strength": asked.strength, "category": asked.category,
                "height": asked.size[0], "width": asked.size[1], "steps": asked.steps, "guidance": asked.guidance,
                "seeds": list(asked.seeds), "give_back": asked.give_back,
            }  # fmt: skip
        except (ValueError, torch.OutOfMemoryError) as error:
            logger.warning("%s", error)
            raise gr.Error(error_text(error), print_exception=False) from None

    pictures = ("Person", "Garment", "Mask")  # as files: Gradio would fail without a word at one that is no picture
    names = (f"{what}, by the name that the page shows" for what in ("LoRA", "Size"))
    given = [
        *(gr.File(label=what, visible=False) for what in pictures),
        *(gr.Textbox(None, label=what, visible=False) for what in (f"Category: {', '.join(CATEGORIES)}", *names)),
        gr.Number(None, label="Steps", precision=0, visible=False),
        gr.Number(None, label="Guidance", visible=False),
        gr.Number(1, label="Results", precision=0, visible=False),
        gr.Number(None, label="Seed", precision=0, visible=False),
        gr.Number(None, label="Strength of the LoRA", visible=False),
        gr.Checkbox(False, label="Give back what the mask hid for nothing", visible=False),
    ]
    results = gr.Gallery(label="Results", format="png", visible=False)
    settings = gr.JSON(label="Settings that they were made with", visible=False)
    gr.Button(visible=False).click(try_on, given, [results, settings], api_name="try_on")
    loras = gr.JSON(label="LoRAs, the newest first", visible=False)
    gr.Button(visible=False).click(info, None, loras, api_name="info")


def facts_of(session: Session, name: str, lora: Path) -> dict[str, Any]:
    """What /info says of a LoRA. name: the page's for it."""
    facts, (steps, guidance) = read_facts(lora), session.denoising(lora)
    return {
        "name": name, "profile": facts.profile, "step": facts.step, "sizes": list(session.sizes(lora)),
        "steps": steps, "guidance": guidance, "mask_rule": facts.mask_rule, "takes_off": bool(facts.try_off_prompt),
        "base_categories": facts.base_categories,
    }  # fmt: skip
