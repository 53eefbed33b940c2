"""The categories of garments. Imports nothing heavy."""

from typing import Literal, get_args

Category = Literal["upper", "lower", "full"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
