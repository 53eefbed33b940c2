"""Labelled grids of pictures: which samples they show, and how they are drawn."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from tryon.data.category import CATEGORIES, Category

LABEL_HEIGHT = 24  # pixels, as are the margin and the size of the labels' letters, which shrink to fit
MARGIN = 4
FONT_SIZE = 15


def pick_for_grid(categories: Sequence[Category], count: int) -> list[int]:
    """Indices of up to `count` samples, the categories taking turns, so that none is missing from the grid."""
    queues = [[i for i, category in enumerate(categories) if category == each] for each in CATEGORIES]
    picked = [queue[turn] for turn in range(len(categories)) for queue in queues if turn < len(queue)]
    return picked[:count]


def draw_grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Pictures of one size under the columns' names, each row with its label at its left."""
    width, height = rows[0][1][0].size
    side = LABEL_HEIGHT
    size = (side + len(columns) * (width + MARGIN), LABEL_HEIGHT + len(rows) * (height + MARGIN))
    grid = Image.new("RGB", size, "white")
    for column, label in enumerate(columns):
        grid.paste(_label(label, width), (side + column * (width + MARGIN), 0))
    for row, (label, pictures) in enumerate(rows):
        top = LABEL_HEIGHT + row * (height + MARGIN)
        grid.paste(_label(label, height).rotate(90, expand=True), (0, top))
        for column, picture in enumerate(pictures):
            grid.paste(picture, (side + column * (width + MARGIN), top))
    return grid


def _label(text: str, width: int) -> Image.Image:
    label = Image.new("RGB", (width, LABEL_HEIGHT), "white")
    size = FONT_SIZE
    while (font := ImageFont.load_default(size)).getlength(text) > width - MARGIN and size > 1:
        size -= 1
    ImageDraw.Draw(label).text((width / 2, LABEL_HEIGHT / 2), text, fill="black", font=font, anchor="mm")
    return label
