"""HTML pages made of jinja2 templates. A page is one file, pictures included, and needs no network."""

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from PIL import Image

TEMPLATES = Path(__file__).parent / "templates"


def render(template: Path, **values: Any) -> str:
    """The page that a template makes of these values, which it escapes. It may extend page.html.j2.

    Raises jinja2.UndefinedError for a value that the template names and that is not given.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["flags"] = unbroken_flags
    return environment.get_template(template.name).render(values)


def unbroken_flags(text: str) -> Markup:
    """A text whose flags, such as --lora, browsers break into no two lines. In templates: the filter `flags`."""
    return Markup(re.sub(r"(?<!\S)--?\w+", r'<span class="flag">\g<0></span>', str(escape(text))))


def data_url(picture: bytes, kind: str) -> str:
    """An address that holds the picture itself, for `<img src>`. kind: "png" or "jpeg", as the file is encoded."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def jpeg_url(picture: "Image.Image", quality: int = 92) -> str:
    """As `data_url`, of an RGB picture in memory."""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    return data_url(encoded.getvalue(), "jpeg")
