"""The command line, made from the fields of dataclasses.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tryon.config import PROFILES


class _Parser(argparse.ArgumentParser):
    """argparse that raises ValueError instead of printing its usage and leaving."""

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(message.removeprefix("argument "))


def parse_flags(argv: Sequence[str], command: str, description: str, *shapes: type) -> list[dict[str, Any]]:
    """Reads `--name value` flags made from the dataclasses' fields; returns what was given, a dictionary per dataclass.

    A field named `profile` becomes one switch per profile, and a tuple's flag takes one value or more. Where several
    dataclasses have a field of one name, the flag is the last one's. command: what the user types, for `--help`, after
    which it exits 0. Raises ValueError that names every unknown flag, or the first value of a wrong kind.
    """
    parser = _Parser(
        usage=f"{command} [flags]", description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    owner = {each.name: shape for shape in shapes for each in dataclasses.fields(shape)}
    names = [[each.name for each in dataclasses.fields(shape) if owner[each.name] is shape] for shape in shapes]
    flags = []
    for shape in shapes:
        hints = typing.get_type_hints(shape)
        for each in dataclasses.fields(shape):
            if owner[each.name] is shape:
                flags += _add_flag(parser, each, hints[each.name])
    given, extras = parser.parse_known_args(argv)
    if extras:
        raise ValueError(_unknown(extras, flags))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()}
    return [{name: values[name] for name in group if name in values} for group in names]


def _add_flag(parser: argparse.ArgumentParser, each: dataclasses.Field, hint: Any) -> list[str]:
    """Adds the field's flags and returns them."""
    if each.name == "profile":
        group = parser.add_mutually_exclusive_group()
        switches = {f"--{name.replace('_', '-')}": name for name in PROFILES}
        for switch, name in switches.items():
            text = (PROFILES[name].__doc__ or "").splitlines()[0]
            group.add_argument(switch, dest=each.name, action="store_const", const=name, help=text)
        return list(switches)
    if each.metadata["positional"]:
        parser.add_argument(each.name, help=each.metadata["help"])
        return []
    flag = f"--{each.name}"
    default = "" if each.default in (None, ()) else f" (default {each.default})"
    text = (each.metadata["help"] + default).replace("%", "%%")
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    optional = types.NoneType in typing.get_args(hint)
    kind = kinds[0] if optional else hint
    if kind is bool:
        parser.add_argument(flag, action="store_true", help=text)
        if each.default is True:
            parser.add_argument(off := f"--no_{each.name}", dest=each.name, action="store_false", help=f"not {flag}")
            return [flag, off]
    elif typing.get_origin(kind) is tuple:
        of = typing.get_args(kind)[0]
        parser.add_argument(flag, type=of, nargs="+", metavar=of.__name__.upper(), help=text)
    elif typing.get_origin(kind) is Literal:
        parser.add_argument(flag, choices=typing.get_args(kind), help=text)
    else:
        read = _optional(kind) if optional else kind
        parser.add_argument(flag, type=read, metavar=kind.__name__.upper(), help=text)
    return [flag]


def _optional(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return read


def _unknown(extras: list[str], flags: list[str]) -> str:
    known = {flag.lstrip("-").replace("-", "_"): flag for flag in flags}
    clauses = []
    for extra in [extra.split("=")[0] for extra in extras if extra.startswith("-")] or extras:
        close = difflib.get_close_matches(extra.lstrip("-").replace("-", "_"), known, n=1)
        what = "flag" if extra.startswith("-") else "argument"
        clauses.append(f"unknown {what} {extra}" + (f" (did you mean {known[close[0]]}?)" if close else ""))
    return "; ".join(clauses)
