"""Labelled grids of pictures: which samples they show, and how they are drawn."""

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from tryon.data.category import CATEGORIES, Category

LABEL_HEIGHT = 24  # pixels at least, as are the margin and the size of letters, which shrink to fit
MARGIN = 4
FONT_SIZE = 15
READABLE = 11  # smaller letters come only where a word is too long: before that a label is broken into lines
WORD = re.compile(r"[^ _-]+[ _-]*")


def pick_for_grid(categories: Sequence[Category], count: int) -> list[int]:
    """Indices of up to `count` samples, the categories taking turns, so that none is missing from the grid."""
    queues = [[i for i, category in enumerate(categories) if category == each] for each in CATEGORIES]
    picked = [queue[turn] for turn in range(len(categories)) for queue in queues if turn < len(queue)]
    return picked[:count]


def draw_grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Pictures of one size under the columns' names, each row with its label at its left."""
    width, height = rows[0][1][0].size
    heads = [_label(label, width) for label in columns]
    labels = [_label(label, height) for label, _ in rows]
    head, side = (max(label.height for label in each) for each in (heads, labels))
    size = (side + len(columns) * (width + MARGIN), head + len(rows) * (height + MARGIN))
    grid = Image.new("RGB", size, "white")
    for column, label in enumerate(heads):
        grid.paste(label, (side + column * (width + MARGIN), head - label.height))
    for row, (_, pictures) in enumerate(rows):
        top = head + row * (height + MARGIN)
        grid.paste(labels[row].rotate(90, expand=True), (side - labels[row].height, top))
        for column, picture in enumerate(pictures):
            grid.paste(picture, (side + column * (width + MARGIN), top))
    return grid


def _label(text: str, width: int) -> Image.Image:
    """The text in one line where it can be read so, else broken after spaces, dashes and underscores."""
    for size in range(FONT_SIZE, 0, -1):
        font = ImageFont.load_default(size)
        lines = _broken(text, font, width - MARGIN) if size <= READABLE else [text]
        if max(map(font.getlength, lines)) <= width - MARGIN:
            break
    height = LABEL_HEIGHT + (len(lines) - 1) * (size + MARGIN)
    label = Image.new("RGB", (width, height), "white")
    place = width / 2, height / 2
    ImageDraw.Draw(label).text(place, "\n".join(lines), fill="black", font=font, anchor="mm", align="center")
    return label


def _broken(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in WORD.findall(text):
        if lines[-1] and font.getlength(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]
