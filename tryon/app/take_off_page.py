"""The tab "Take off" of app_lora.py, and /take_off for programs: the product picture of what a person wears."""

import logging
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from tryon.app.layout import CLEANED_EVERY
from tryon.app.page import Page
from tryon.app.pictures import usable_file
from tryon.app.session import KEPT_SECONDS, Session, error_text
from tryon.data.category import CATEGORIES, Category
from tryon.runs import lora_name

logger = logging.getLogger(__name__)

PROGRESS = gr.Progress()  # as a default Gradio gives a handler one of its own


class TakeOffPage:
    """The tab's content, `blocks`. Its LoRAs are those of the session that have learnt it."""

    def __init__(self, session: Session):
        self.session = session
        with gr.Blocks(analytics_enabled=False, delete_cache=(CLEANED_EVERY, KEPT_SECONDS)) as self.blocks:
            with gr.Row(equal_height=False):
                with gr.Column(min_width=320):
                    shown = gr.Image(label="Person", sources=["upload", "clipboard"], height=420, elem_id="dressed")
                    person = gr.File(label="Person", visible="hidden")  # Gradio opens no file: take_off does
                with gr.Column(min_width=320):
                    category = gr.Radio(list(CATEGORIES), value=CATEGORIES[0], label="Garment", elem_id="worn")
                    lora = gr.Dropdown(session.loras_for_try_off(), label="LoRA")
                    seed = gr.Number(0, label="Seed, another one for another picture", precision=0)
                    button = gr.Button("Take off", variant="primary", elem_id="take-off")
                with gr.Column(min_width=320):
                    result = gr.Image(
                        label="Garment as a product", format="png", interactive=False, height=420, elem_id="taken-off",
                        buttons=["download", "fullscreen"],
                    )  # fmt: skip
                    made_with = gr.JSON(label="Made with", open=True)
            button.click(None, shown, person, js="(picture) => picture", api_visibility="private").then(
                self.take_off, [person, category, lora, seed], [result, made_with], api_name="take_off",
                show_progress_on=result,
            )  # fmt: skip
            self.blocks.load(self.refresh, None, lora, api_visibility="private", show_progress="hidden")

    def refresh(self) -> gr.Dropdown:
        """Lists the LoRAs again when the page is opened."""
        return gr.Dropdown(self.session.loras_for_try_off())

    def take_off(
        self,
        person: str | None,
        category: Category | None = None,
        lora: str | None = None,
        seed: int | None = None,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[str, dict[str, Any]]:
        """The product picture of the garment of a category that the person wears, and the settings that it was made
        with. Without a LoRA the newest one is used that has learnt it; without a seed it is random."""
        try:
            picture = usable_file("person", person)
            if category not in CATEGORIES:
                raise ValueError(f"Give a category, one of {', '.join(CATEGORIES)}.")
            able = self.session.loras_for_try_off()
            file = self.session.chosen(lora or (able[0][1] if able else self.session.usual()))
            steps, guidance = self.session.denoising(file)

            def each_step(done: int) -> None:
                progress((done, steps), desc="taking off" if done else "preparing")

            called = Path(person).stem
            result, seed = self.session.take_off(file, picture, category, seed, called, each_step)
        except (ValueError, torch.OutOfMemoryError) as error:
            logger.warning("%s", error)
            raise gr.Error(error_text(error), print_exception=False) from None
        said = {"lora": lora_name(file), "category": category, "steps": steps, "guidance": guidance, "seed": seed}
        return result, said


def in_tabs(try_on: Page, take_off: TakeOffPage) -> gr.Blocks:
    """A page with both in a tab each."""
    with (
        gr.Blocks(title="Try-on", analytics_enabled=False, delete_cache=(CLEANED_EVERY, KEPT_SECONDS)) as blocks,
        gr.Tabs(),
    ):
        for name, tab in (("Try on", try_on), ("Take off", take_off)):
            with gr.Tab(name):
                tab.blocks.render()
    return blocks
