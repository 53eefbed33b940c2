"""Pictures as the page has them: which can be used."""

from typing import Any

from PIL import Image

from tryon.data.sample import LARGE, upright_rgb

Editor = dict[str, Any]  # of Gradio: {"background": picture or None, "layers": [RGBA of its size], "composite": ...}


def usable(what: str, picture: Image.Image | None) -> Image.Image:
    """The picture, RGB and upright. Raises ValueError where there is none, or one that cannot be used."""
    if picture is None:
        raise ValueError(f"Give a picture of the {what} first.")
    if picture.width * picture.height > LARGE:
        raise ValueError(f"The picture of the {what} has more than {LARGE / 10**6:.0f} megapixels: make it smaller.")
    try:
        return upright_rgb(picture)
    except ValueError as error:
        raise ValueError(f"The picture of the {what} cannot be used, as {error}.") from error


def usable_file(what: str, file: str | None) -> Image.Image:
    """The picture of a file, as `usable` gives it."""
    return usable(what, Image.open(file) if file else None)


def person_of(editor: Editor | None) -> Image.Image:
    """The editor's picture, RGB. Raises ValueError where there is none, or one that cannot be used."""
    return usable("person", editor and editor["background"])
