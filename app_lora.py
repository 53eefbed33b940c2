"""A page in the browser that dresses people in garments with LoRAs that were trained here; with --train it trains them.

    python app_lora.py --lora runs/

It answers on this machine alone (127.0.0.1) by default, and neither the page nor the server needs a network.
"""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tryon.cli import parse, run_script
from tryon.config import TOY_NOTICE, TryOnConfig, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.files import full_path
from tryon.flux.lora_header import LoraFacts, is_for_toy, lora_on_disk, panel_size, read_facts
from tryon.runs import all_loras, run_of, runs_folder

if TYPE_CHECKING:
    from tryon.inference.pipeline import TryOnModel

logger = logging.getLogger(__name__)

LARGEST_UPLOAD = "32mb"
LONGEST_QUEUE = 8  # try-ons that wait; a later one is refused
LOOPBACK = "127.0.0.1"
THIS_MACHINE = (LOOPBACK, "localhost", "::1")
FONTS = ("system-ui", "sans-serif")  # the system's: nothing is fetched


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """How the page is served, and what it shows at first."""

    host: str = setting(LOOPBACK, "address that the page is served at; 0.0.0.0 answers the whole network")
    port: int = setting(7860, "port that the page is served at", 1, 65535)
    share: bool = setting(False, "serve the page at a public address too, through Gradio's servers, for a week")
    train: bool = setting(
        False, "a second tab that trains; --lora may then be left out, and a page that others can reach needs --auth"
    )
    auth: str | None = setting(None, "file with a line name:password for each user of the page")
    parser: str | None = setting(
        None, "SegFormer with ATR labels that finds what people wear, by hub name or folder; as trained if not given"
    )
    steps: int | None = setting(
        None, "denoising steps that the page begins with; as the LoRA was trained for, else 30, if not given", 1, 100
    )
    guidance_scale: float | None = setting(
        None, "guidance that the page begins with; as the LoRA was trained for, else 30, if not given", 0, 100
    )


def read_settings(argv: list[str]) -> tuple[TryOnConfig, PageConfig]:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    description = "Serves a page that dresses people with trained LoRAs. --lora may also be a folder of runs."
    if "--train" in argv and not any(flag.partition("=")[0] == "--lora" for flag in argv):
        argv = [*argv, "--lora", str(runs_folder())]
    return parse(argv, "python app_lora.py", description, TryOnConfig, PageConfig, problems=training_for_anyone)


def is_shared(page: PageConfig) -> bool:
    """Whether the page can be reached from other machines."""
    return page.share or page.host not in THIS_MACHINE


def training_for_anyone(_: TryOnConfig, page: PageConfig) -> Iterator[str]:
    """A clause where people without a password could start programs on this machine."""
    if page.train and is_shared(page) and not page.auth:
        where = "--share" if page.share else f"--host {page.host}"
        yield f"--train lets everybody who reaches the page start programs on this machine: with {where} give --auth"


def read_users(file: str) -> list[tuple[str, str]]:
    """Names and passwords of a file with a line name:password each. Raises ValueError where it has another form. They
    are no flags, as flags end up in logs and in the list of processes."""
    try:
        lines = [line.strip() for line in Path(file).expanduser().read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--auth {file} cannot be read ({error}): name a file with lines of name:password") from error
    users = [tuple(line.split(":", 1)) for line in lines]
    if not users or any(len(user) != 2 or not all(user) for user in users):
        raise ValueError(f"--auth {file} has to hold a line name:password for each user of the page")
    return users


def check_port(host: str, port: int) -> None:
    """Raises ValueError where the page cannot be served there: before the models are loaded."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ValueError(
            f"port {port} of {host} cannot be used ({error.strerror}): give another with --port or --host"
        ) from error


def first_lora(config: TryOnConfig, train: bool = False) -> tuple[Path | None, Path]:
    """The LoRA that the page begins with, in a folder of runs the newest, and the folder of runs whose LoRAs it offers
    besides. train: the folder that trainings are kept in need not have one yet. Raises ValueError where there is
    none."""
    runs = runs_folder()
    if train and full_path(config.lora) == runs and not all_loras(runs):
        return None, runs
    file = full_path(lora_on_disk(config.lora, config.cache_dir))
    return file, run.parent if (run := run_of(file)) else runs


def main(argv: list[str]) -> None:
    config, page = read_settings(argv)
    users = read_users(page.auth) if page.auth else None
    check_port(page.host, page.port)
    set_up_logging(is_main_process=True)
    lora, runs = first_lora(config, page.train)
    if lora:
        panel_size(config, read_facts(lora))  # a file that is no LoRA is refused before anything is loaded

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
    for name in ("no_proxy", "NO_PROXY"):  # Gradio looks for its own page, which no proxy can see
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), LOOPBACK, page.host]))
    load_libraries("gradio", *MODEL_LIBRARIES)
    import gradio as gr
    from starlette.requests import ClientDisconnect

    from tryon.app.layout import STYLE
    from tryon.app.page import Page
    from tryon.app.session import Session
    from tryon.app.take_off_page import TakeOffPage, in_tabs
    from tryon.app.train_page import STYLE as TRAIN_STYLE
    from tryon.app.train_page import TrainPage
    from tryon.inference.pipeline import load_try_on
    from tryon.toy.draw import write_pictures
    from tryon.toy.model import parser_for_try_on, use_toy_model_for_try_on

    def is_worth_a_line(record: logging.LogRecord) -> bool:
        """Not an upload that was broken off, for which the server would write a traceback of fifty lines."""
        return not (record.exc_info and isinstance(record.exc_info[1], ClientDisconnect))

    logging.getLogger("uvicorn.error").addFilter(is_worth_a_line)

    def parser(facts: LoraFacts) -> str | None:
        return page.parser or parser_for_try_on(config, facts)

    def notice(facts: LoraFacts) -> str:
        return f"**Toy model**: {TOY_NOTICE}." if is_for_toy(config, facts) else ""

    def load(lora: Path, strength: float) -> "TryOnModel":
        models = use_toy_model_for_try_on(replace(config, lora_scale=strength), read_facts(lora))
        return load_try_on(models, lora, fold=True)

    with tempfile.TemporaryDirectory() as name:  # uploads and results are removed when the app ends
        os.environ["GRADIO_TEMP_DIR"] = name
        shown = Path(name) / "shown"
        shown.mkdir()
        session = Session(config, load, parser, lora, runs, shown, page.steps, page.guidance_scale)
        if not page.train:  # the GPU may be a training's, and is until somebody is dressed
            session.take(lora, config.lora_scale)
        try_on = Page(session, write_pictures(Path(name) / "examples"), notice)
        take_off = TakeOffPage(session) if session.loras_for_try_off() else None
        kept = {name: getattr(config, name) for name in ("data_cache_dir", "cache_dir")}
        flags = [f"--{name}={full_path(place)}" for name, place in kept.items() if place]
        if page.train:
            blocks = TrainPage(try_on, runs, flags, take_off).blocks
        else:
            blocks = in_tabs(try_on, take_off) if take_off else try_on.blocks
        blocks.queue(max_size=LONGEST_QUEUE)
        _, _, public = blocks.launch(
            server_name=page.host, server_port=page.port, share=page.share, auth=users, quiet=True,
            max_file_size=LARGEST_UPLOAD, prevent_thread_lock=True, footer_links=[], css=STYLE + TRAIN_STYLE,
            theme=gr.themes.Default(font=FONTS, font_mono="monospace"),
            run_history=False,  # pictures stay in the session
            i18n=gr.I18n(en={"common.complete": "Done"}),  # read aloud by screen readers; Gradio's own words lack it
        )  # fmt: skip
        if page.share and not public:
            raise ValueError("no public address could be had from Gradio's servers: leave --share out, or go online")
        if is_shared(page) and not users:
            logger.warning("anyone who finds this page can use it: --auth asks for a name and a password")
        if public:
            logger.info("public address: %s", public)
        logger.info("serving: open http://%s:%d in a browser; Ctrl-C ends it", page.host, page.port)
        try:
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)


if __name__ == "__main__":
    run_script(main)
