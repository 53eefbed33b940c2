"""Pictures as the page has them: which can be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tryon.data.sample import LARGE, open_picture, upright_rgb

NO_PICTURE = "is no picture that can be read: give a PNG, JPEG or WebP."

Editor = dict[str, Any]  # of Gradio: {"background": picture or None, "layers": [RGBA of its size], "composite": ...}


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Raises ValueError, in a sentence for the user, where a picture is found to be unreadable. what: it is."""
    try:
        yield
    except (OSError, SyntaxError) as error:
        raise ValueError(f"The file of the {what} {NO_PICTURE}") from error
    except ValueError as error:
        raise ValueError(f"The picture of the {what} cannot be used, as {error}.") from error


def usable(what: str, picture: Image.Image | None) -> Image.Image:
    """The picture, RGB and upright. Raises ValueError where there is none, or one that cannot be used."""
    if picture is None:
        raise ValueError(f"Give a picture of the {what} first.")
    if picture.width * picture.height > LARGE:
        raise ValueError(f"The picture of the {what} has more than {LARGE / 10**6:.0f} megapixels: make it smaller.")
    with readable(what):
        return upright_rgb(picture)


def usable_file(what: str, file: str | None) -> Image.Image:
    """The picture of a file, as `usable` gives it."""
    with readable(what):
        picture = open_picture(Path(file)) if file else None
    return usable(what, picture)


def person_of(editor: Editor | None) -> Image.Image:
    """The editor's picture, RGB. Raises ValueError where there is none, or one that cannot be used."""
    return usable("person", editor and editor["background"])
