"""Pictures as the page's editor has them: which can be used, and masks as paint."""

from typing import Any

from PIL import Image, ImageChops, ImageColor

from tryon.data.sample import LARGE, upright_rgb

MASK_COLOUR, MASK_OPACITY = "#ff2d9b", 0.6  # the picture still shows through the paint
PAINTED = 64  # alpha, of 255, from which a pixel counts as painted: a stroke's soft edge does not
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


def person_of(editor: Editor | None) -> Image.Image:
    """The editor's picture, RGB. Raises ValueError where there is none, or one that cannot be used."""
    return usable("person", editor and editor["background"])


def painted_mask(editor: Editor) -> Image.Image:
    """ "L" of 0 and 255 at the size of the editor's picture: 255 wherever one of its layers has paint."""
    mask = Image.new("L", editor["background"].size)
    for layer in editor["layers"]:
        paint = layer.getchannel("A").resize(mask.size).point(lambda alpha: 255 if alpha >= PAINTED else 0)
        mask = ImageChops.lighter(mask, paint)
    return mask


def as_paint(mask: Image.Image) -> Image.Image:
    """A mask, "L" of 0 and 255, as a layer of the editor: paint, which can be erased."""
    layer = Image.new("RGBA", mask.size, ImageColor.getrgb(MASK_COLOUR))
    layer.putalpha(mask.point(lambda value: round(value * MASK_OPACITY)))
    return layer
