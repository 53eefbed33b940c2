"""The tab "Train" of app_lora.py: what is seen on it, and what happens when something on it is used."""

import shlex
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import pandas as pd
from PIL import Image

from tryon.app import training
from tryon.app.layout import CLEANED_EVERY
from tryon.app.page import PRIVATE, QUIETLY, Page, Values, refusal, refusing
from tryon.app.session import KEPT_SECONDS
from tryon.app.take_off_page import TakeOffPage
from tryon.app.training import RunFacts, Source, TrainingRequest
from tryon.data.layout import LAYOUTS
from tryon.profiles import PROFILES
from tryon.report import REPORT
from tryon.runs import process_of
from tryon.units import gigabytes, plural

LOOKED_EVERY = 2  # seconds between two looks at the runs
SOURCES: dict[str, Source] = {
    "drawn people (toy)": "toy",
    "a folder of photographs": "folder",
    "from the hub": "hub",
}
# What is asked of each source but the toy, and what it may be.
ASKED: dict[Source, tuple[str, str]] = {
    "folder": ("Folder", f"Laid out as {LAYOUTS}; or with a table of its pictures, or parquet files (docs/data.md)."),
    "hub": ("Name on the hub", "user/name"),
}
PROFILE_INFO = "full: for a GPU of 24 GB or more; h100: for 80 GB; quick test: does all work? Without a GPU on a toy."
SHORTEST_AXIS = 15  # steps: a shorter one would be marked at halves
COLUMNS = ["Run", "Data", "State", "Step", "Profile", "Lowest validation loss", "PSNR over base, dB", "Size", "Note"]
STARTING = "**Starting**"
NO_RUN = "There is no run yet."
MORE_STEPS = "give a larger number as Steps and press *Go on*, or "
GO_FURTHER = (
    "All steps are done. To train its LoRA further, {}start another run with `--init_lora {}` in Further flags."
)
STYLE = """
#plan, #runs { contain: inline-size; overflow-x: auto !important; }
#plan .html-container, #runs .html-container { padding: 0; }
#plan table, #runs table { width: 100%; margin: 0; border: 0; }
#plan tr, #runs tr { border: 0; border-top: 1px solid var(--border-color-primary); }
#plan td, #runs td { border: 0; padding: 2px 12px 2px 0; vertical-align: top; }
#plan td:not(:empty) { min-width: 4em; }
#plan summary { padding: 2px 0; cursor: pointer; }
#runs td { white-space: nowrap; }
#runs tr:first-child td { font-weight: bold; white-space: normal; vertical-align: bottom; }
@media (max-width: 640px) {
  #runs td { white-space: normal; padding-right: 6px; font-size: 13px; }
  #runs td:first-child, #runs td:last-child { overflow-wrap: anywhere; min-width: 4em; }
  #runs td:first-child { min-width: 7em; }
  #runs td:nth-child(2), #runs td:nth-child(4), #runs td:nth-child(5), #runs td:nth-child(8) { display: none; }
}
#run-state code { white-space: normal; }
#plan td:last-child, #train-said, #run-state code, #question { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Seen:
    """What was found at the last look. run: the one that is shown; grid: its newest validation picture."""

    run: Path | None = None
    runs: tuple[Path, ...] = ()
    grid: Path | None = None
    marks: tuple[Any, ...] = ()


def describe(run: Path, facts: RunFacts, left: float | None) -> str:
    """How a run stands, in words. left: seconds that its other steps will take, where that is known."""
    steps = f", step {facts.step:,}" + (f" of {facts.steps:,}" if facts.steps else "") if facts.step else ""
    lasts = facts.state == "running" and left
    more = f"; about {timedelta(seconds=round(left))} of steps left, validation and scores aside" if lasts else ""
    said = f"\n\n`{facts.said}`" if facts.said else ""
    more_steps = MORE_STEPS if facts.resumable else ""
    further = f"\n\n{GO_FURTHER.format(more_steps, shlex.quote(str(run)))}" if facts.state == "finished" else ""
    report = f"\n\nIts report, to open in a browser: `{run / REPORT}`" if (run / REPORT).is_file() else ""
    return f"**{facts.state.capitalize()}**{steps}{more}.{said}{further}{report}"


def describe_grid(grid: Path) -> str:
    """What the newest validation picture shows."""
    step = int(grid.stem.removeprefix("step-"))
    return f"Validation pictures of step {step:,}:" if step else "Validation pictures of step 0, before the training:"


def overview(facts: RunFacts) -> list[str]:
    """The run's cells in the table of all runs."""
    profile, size = facts.profile.replace("_", " "), gigabytes(facts.size)
    return [facts.name, facts.data, facts.state, f"{facts.step:,}", profile, facts.loss, facts.psnr, size, facts.note]


def table(rows: list[list[str]]) -> str:
    """Rows of cells as HTML; the last cell of a short row is as wide as the cells that it lacks."""
    widest = max(map(len, rows), default=0)
    lines = []
    for *cells, last in rows:
        start = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr>{start}<td colspan="{widest - len(cells)}">{escape(last)}</td></tr>')
    return f"<table>{''.join(lines)}</table>"


def check_table(rows: list[list[str]]) -> str:
    """The rows of a check as HTML; those that are right are folded, as they are many."""
    right = [row for row in rows if row[-1] == "right"]
    folded = f"<details><summary>{plural(len(right), 'part')} right</summary>{table(right)}</details>" if right else ""
    return table([row for row in rows if row[-1] != "right"]) + folded


class TrainPage:
    """The page with its tabs, whose `blocks` Gradio serves.

    try_on: the first tab. runs: the folder of runs. flags: of every training. take_off: the tab between, where a LoRA
    has learnt it.
    """

    def __init__(self, try_on: Page, runs: Path, flags: list[str], take_off: TakeOffPage | None = None):
        self.try_on, self.runs, self.flags = try_on, runs, flags
        cleaned = (CLEANED_EVERY, KEPT_SECONDS)
        with gr.Blocks(title="Try-on", analytics_enabled=False, delete_cache=cleaned) as self.blocks:
            with gr.Tabs(selected="try-on" if try_on.session.loras() else "train"):
                with gr.Tab("Try on", id="try-on") as self.other_tab:
                    try_on.blocks.render()
                if take_off:
                    with gr.Tab("Take off", id="take-off"):
                        take_off.blocks.render()
                with gr.Tab("Train", id="train"):
                    self._show()
            self._connect()

    def _show(self) -> None:
        self.seen = gr.State(time_to_live=KEPT_SECONDS)
        self.doomed = gr.State(time_to_live=KEPT_SECONDS)  # the run that may be deleted
        self.clock = gr.Timer(LOOKED_EVERY)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320, scale=4):
                self._show_request()
            with gr.Column(min_width=320, scale=6):
                self._show_run()
        gr.Markdown("### 3. All runs")
        self.table = gr.HTML(elem_id="runs", padding=False)

    def _show_request(self) -> None:
        gr.Markdown("### 1. Train a LoRA")
        self.source = gr.Radio(list(SOURCES), value=next(iter(SOURCES)), label="Data", elem_id="source")
        self.data = gr.Textbox("", visible=False, elem_id="data")
        profiles = [(name.replace("_", " "), name) for name in PROFILES]
        self.profile = gr.Radio(profiles, value="quick_test", label="Profile", info=PROFILE_INFO, elem_id="profile")
        with gr.Row():
            of_a_line = {"max_lines": 1, "min_width": 120}
            self.name = gr.Textbox("", label="Name", placeholder="no spaces", elem_id="name", **of_a_line)
            self.steps = gr.Textbox("", label="Steps", placeholder="the profile's", elem_id="train-steps", **of_a_line)
        self.note = gr.Textbox("", label="Note", placeholder="what is tried", elem_id="note")
        with gr.Accordion("Further flags", open=False):
            self.more = gr.Textbox("", label="As in a terminal", placeholder="--lora_rank 32 --seed 1", elem_id="more")
        with gr.Row():
            self.start_button = gr.Button("Start", variant="primary", elem_id="start", min_width=80)
            self.plan_button = gr.Button("Plan", elem_id="plan-button", min_width=80)
            self.check_button = gr.Button("Check", elem_id="check-button", min_width=80)
        self.said = gr.Markdown(
            "*Plan* says what the run needs and takes, *Check* whether this machine computes right.",
            elem_id="train-said",
        )
        self.plan = gr.HTML(elem_id="plan", padding=False)

    def _show_run(self) -> None:
        gr.Markdown("### 2. Watch it")
        # A look that is under way names a run that is just deleted: Gradio would refuse it with a traceback.
        self.run = gr.Dropdown([], label="Run", show_label=False, allow_custom_value=True, elem_id="run")
        self.state = gr.Markdown(NO_RUN, elem_id="run-state")
        with gr.Row():
            self.stop_button = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop-run", min_width=80)
            self.resume_button = gr.Button("Go on", interactive=False, elem_id="resume", min_width=80)
            self.delete_button = gr.Button("Delete", interactive=False, elem_id="delete", min_width=80)
        with gr.Column(visible=False) as self.confirmation:
            self.question = gr.Markdown(elem_id="question")
            with gr.Row():
                self.yes = gr.Button("Delete it", variant="stop", elem_id="yes", min_width=80)
                self.no = gr.Button("Keep it", min_width=80)
        with gr.Row():
            self.plots = [
                gr.LinePlot(
                    x="step", y="loss", title=f"{what} loss", height=190, visible=False, elem_id=what, buttons=[]
                )
                for what in ("training", "validation")
            ]
        self.grid_said = gr.Markdown(visible=False, elem_id="grid-said")
        self.grid = gr.Image(show_label=False, interactive=False, visible=False, buttons=["fullscreen"], elem_id="grid")

    def _connect(self) -> None:
        of_request = {self.source, self.data, self.profile, self.name, self.steps, self.note, self.more}
        watched = {self.run, self.state, *self.plots, self.grid_said, self.grid, self.table, self.seen}
        watched |= {self.stop_button, self.resume_button, self.delete_button}
        shown = {self.run, self.seen}
        directly = {"queue": False, **QUIETLY}
        self.source.change(self.name_data, {self.source}, {self.data}, **directly)
        # Said at once, as the launcher takes seconds to answer. A plan that is shown may be another training's.
        starting, resuming = {self.said: STARTING, self.plan: ""}, {self.state: STARTING}
        started = self.start_button.click(lambda: starting, outputs={*starting}, **directly).then(
            self.start, of_request, {self.said, self.run}, **PRIVATE
        )
        resumed = self.resume_button.click(lambda: resuming, outputs={*resuming}, **directly).then(
            self.resume, {self.run, self.steps}, {self.said}, **PRIVATE
        )
        asked = {"outputs": {self.said, self.plan}, "show_progress_on": self.plan, **PRIVATE}
        self.plan_button.click(self.ask_plan, of_request, **asked)
        self.check_button.click(self.ask_check, of_request, **asked)
        changed = [
            started,
            resumed,
            self.stop_button.click(self.stop, {self.run}, {self.said}, **directly),
            self.yes.click(self.delete, {self.doomed}, {self.said, self.confirmation, self.run}, **directly),
        ]
        confirming = {self.said, self.question, self.confirmation, self.doomed}
        self.delete_button.click(self.confirm, {self.run}, confirming, **directly)
        self.no.click(lambda: {self.confirmation: gr.Column(visible=False)}, outputs={self.confirmation}, **directly)
        for event in changed:
            event.then(lambda values: self.look({**values, self.seen: None}), shown, watched, **directly)
        for look in (self.blocks.load, self.clock.tick, self.run.input):
            look(self.look, shown, watched, **directly)
        self.other_tab.select(self.try_on.list_loras, self.try_on.chosen, self.try_on.listed, **directly)

    def _request(self, values: Values) -> TrainingRequest:
        return TrainingRequest(
            SOURCES[values[self.source]], values[self.data], values[self.profile], values[self.name],
            values[self.steps], f"{shlex.join(self.flags)} {values[self.more]}",
        )  # fmt: skip

    def _chosen(self, name: str | None) -> Path:
        """The folder of a run. Raises ValueError where there is none of this name."""
        run = next((run for run in training.all_runs(self.runs) if run.name == name), None)
        if run is None:
            raise ValueError(f"There is no run {name}." if name else "Choose a run first.")
        return run

    def name_data(self, values: Values) -> dict:
        """Asks for the data's place, but for the toy's."""
        label, info = ASKED.get(SOURCES[values[self.source]], ("", ""))
        return {self.data: gr.Textbox(label=label, info=info, visible=bool(label))}

    @refusing
    def start(self, values: Values) -> dict:
        """Starts a training as the page asks for it, and shows it. It gets the GPU; the next try-on loads its models
        again."""
        self.try_on.session.release()
        run = training.start(self._request(values), self.runs)
        if values[self.note]:
            (run / training.NOTE).write_text(values[self.note])
        return {self.said: f"Started: {run.name}. It goes on where this page is closed.", self.run: self._choice(run)}

    def ask_plan(self, values: Values) -> Iterator[dict]:
        """Shows what the run needs and takes."""
        yield from self._ask(values, "--plan")

    def ask_check(self, values: Values) -> Iterator[dict]:
        """Shows whether this machine computes right at the run's settings."""
        self.try_on.session.release()
        rows = yield from self._ask(values, "--check")
        if rows:
            yield self.conclude_check(rows)

    def conclude_check(self, rows: list[list[str]]) -> dict:
        """Shows the verdict, which comes last, by the buttons instead of below the table."""
        return {self.said: " ".join(rows[-1]), self.plan: check_table(rows[:-1])}

    def _ask(self, values: Values, flag: Literal["--plan", "--check"]) -> Generator[dict, None, list[list[str]]]:
        """Shows the launcher's answer as it comes, and returns its rows; none where it refuses."""
        yield {self.said: "", self.plan: table([["Looking; this takes seconds for a plan, and minutes for a check."]])}
        rows = []
        try:
            for row in training.ask(self._request(values), flag, self.runs):
                rows.append(row)
                yield {self.plan: (check_table if flag == "--check" else table)(rows)}
        except ValueError as error:
            yield {**refusal(self, error), self.plan: ""}
            return []
        return rows

    @refusing
    def stop(self, values: Values) -> dict:
        """Asks the run to save and to end."""
        training.stop(self._chosen(values[self.run]))
        return {self.said: ""}

    @refusing
    def resume(self, values: Values) -> dict:
        """Lets the run go on, to the steps of the page where these are more than its own."""
        self.try_on.session.release()
        run = self._chosen(values[self.run])
        steps = training.more_steps(run, values[self.steps])
        training.resume(run, steps)
        return {self.said: f"{run.name} goes on to step {steps}." if steps else ""}

    @refusing
    def confirm(self, values: Values) -> dict:
        """Asks before a run is deleted."""
        run = self._chosen(values[self.run])
        size = gigabytes(training.read_run(run).size)
        question = f"Delete {run.name} with all its LoRAs, {size}? It cannot be brought back."
        return {self.question: question, self.confirmation: gr.Column(visible=True), self.doomed: run.name}

    @refusing
    def delete(self, values: Values) -> dict:
        """Deletes the run that was asked about."""
        training.delete(self._chosen(values[self.doomed]))
        rest = training.all_runs(self.runs)
        return {
            self.said: "",
            self.confirmation: gr.Column(visible=False),
            self.run: self._choice(rest[0] if rest else None),
        }

    def _choice(self, run: Path | None) -> gr.Dropdown:
        return gr.Dropdown([each.name for each in training.all_runs(self.runs)], value=run.name if run else None)

    def look(self, values: Values) -> dict:
        """Shows how the chosen run stands, and all others in the table, where anything has changed since the last
        look."""
        runs = training.all_runs(self.runs)
        newest = next((each for each in runs if process_of(each) is not None), runs[0] if runs else None)
        run = next((each for each in runs if each.name == values[self.run]), newest)
        grid, was = run and training.newest_grid(run), values[self.seen] or Seen()
        seen = Seen(run, tuple(sorted(runs)), grid, training.marks(runs))
        if seen == was:
            return gr.skip()
        facts = {each: training.read_run(each) for each in runs}
        changed = {self.seen: seen, self.table: table([COLUMNS, *map(overview, facts.values())])}
        if (seen.run, seen.runs) != (was.run, was.runs):
            changed[self.run] = self._choice(run)
        if (seen.run, seen.grid) != (was.run, was.grid):
            changed[self.grid_said] = gr.Markdown(grid and describe_grid(grid), visible=bool(grid))
            changed[self.grid] = gr.Image(grid and Image.open(grid), visible=bool(grid))
        if run is None:
            hidden = {plot: gr.LinePlot(visible=False) for plot in self.plots}
            return {**changed, **hidden, self.state: NO_RUN}
        rows, of_run = training.read_metrics(run), facts[run]
        return {
            **changed,
            self.state: describe(run, of_run, training.seconds_left(of_run, rows)),
            **{
                plot: gr.LinePlot(
                    pd.DataFrame(points, columns=["step", "loss"]),
                    visible=len(points) > 1,
                    x_lim=[0, max(of_run.step, SHORTEST_AXIS)],
                )  # fmt: skip
                for plot, points in zip(self.plots, training.loss_curves(rows), strict=True)
            },
            self.stop_button: gr.Button(interactive=of_run.state in ("starting", "loading", "running")),
            self.resume_button: gr.Button(interactive=of_run.resumable),
            self.delete_button: gr.Button(interactive=of_run.state in ("finished", "stopped", "failed")),
        }
