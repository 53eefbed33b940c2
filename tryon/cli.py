"""What every script shares: its command line, made from the fields of dataclasses; errors in plain words; exit codes.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import argparse
import dataclasses
import difflib
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from tryon import signals
from tryon.config import PROJECT, mistakes
from tryon.console import MODEL_LIBRARIES, load_libraries
from tryon.profiles import PROFILES

MEMORY_ADVICE = (
    "give --quantization nf4, in training --gradient_checkpointing full and --train_batch_size 1, smaller panels with "
    "--height and --width, or --offload"
)
# Takes the instances of the dataclasses and gives a clause for each mistake that no single field shows.
Problems = Callable[..., Iterable[str]]
PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe")


def run_script(main: Callable[[list[str]], None]) -> NoReturn:
    """Calls main with the command line's arguments and leaves the process.

    Exit codes: 0 done; 128 + n stopped by signal n; 1 for an error: one sentence for a ValueError of this project, a
    traceback for anything else.
    """
    signals.listen()
    try:
        main(sys.argv[1:])
        code = 0
    except BaseException as error:
        signals.ignore()
        code = _exit_code(error)
    sys.stdout.flush()
    signals.leave(code)
    sys.exit(code)


def check_first(read_settings: Callable[[list[str]], object]) -> None:
    """Reads the settings from the command line and leaves the process where they are wrong, or after --help; then loads
    the model's libraries, with a word. For a script whose imports are heavy: call it between light and heavy ones."""
    try:
        read_settings(sys.argv[1:])
    except ValueError as error:
        sys.exit(_exit_code(error))
    load_libraries(*MODEL_LIBRARIES)


def parse(
    argv: Sequence[str], command: str, description: str, *shapes: type, problems: Problems | None = None
) -> tuple[Any, ...]:
    """The command line as one instance per dataclass, checked: see `parse_flags` and `checked`."""
    return checked(shapes, parse_flags(argv, command, description, *shapes), problems)


def checked(
    shapes: Sequence[type], given: Sequence[dict[str, Any]], problems: Problems | None = None
) -> tuple[Any, ...]:
    """An instance per dataclass, of what was given for it. Raises ValueError with all that is missing or wrong."""
    settings = tuple(shape(**values) for shape, values in zip(shapes, given, strict=True))
    found = [
        f"--{each.name} is missing: give {each.metadata['help']}"
        for fields, instance in zip(_own_fields(shapes), settings, strict=True)
        for each in fields
        if each.metadata["needed"] and not getattr(instance, each.name)
    ]
    found += [clause for instance in settings for clause in mistakes(instance)]
    found += problems(*settings) if problems else []
    if found:
        raise ValueError("; ".join(found))
    return settings


class _Parser(argparse.ArgumentParser):
    """argparse that raises ValueError instead of printing its usage and leaving."""

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(message.removeprefix("argument "))


def parse_flags(argv: Sequence[str], command: str, description: str, *shapes: type) -> list[dict[str, Any]]:
    """Reads `--name value` flags made from the dataclasses' fields; returns what was given, a dictionary per dataclass.

    A field named `profile` becomes one switch per profile. A tuple's flag takes one value or more, and those of all its
    repetitions. Where several dataclasses have a field of one name, the flag is the last one's. command: what the user
    types, for `--help`, after which it exits 0. Raises ValueError that names every unknown flag, or the first value of
    a wrong kind.
    """
    parser = _Parser(
        usage=f"{command} [flags]", description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    own, flags = _own_fields(shapes), []
    for shape, fields in zip(shapes, own, strict=True):
        hints = typing.get_type_hints(shape)
        for each in fields:
            flags += _add_flag(parser, each, hints[each.name])
    given, extras = parser.parse_known_args(argv)
    if extras:
        raise ValueError(_unknown(extras, flags))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()}
    return [{each.name: values[each.name] for each in fields if each.name in values} for fields in own]


def _own_fields(shapes: Sequence[type]) -> list[list[dataclasses.Field]]:
    """The fields of each dataclass that are its flags: where several have a field of one name, the flag is the last
    one's."""
    owner = {each.name: shape for shape in shapes for each in dataclasses.fields(shape)}
    return [[each for each in dataclasses.fields(shape) if owner[each.name] is shape] for shape in shapes]


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
        several = {"nargs": "*"} if typing.get_origin(hint) is tuple else {}
        parser.add_argument(each.name, help=each.metadata["help"], **several)
        return []
    flag = f"--{each.name}"
    default = "" if each.default in (None, ()) else f" (default {each.default})"
    text = (each.metadata["help"] + default + ("; needed" if each.metadata["needed"] else "")).replace("%", "%%")
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
        parser.add_argument(flag, action="extend", type=of, nargs="+", metavar=of.__name__.upper(), help=text)
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


def _exit_code(error: BaseException) -> int:
    """Says in plain words why the script ends; its exit code."""
    if number := signals.stopped_by(error):
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
        return 128 + number
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    said, worker = str(error), "DataLoader worker"  # torch's words, and its traceback as text
    if isinstance(error, ValueError) and _raised_by_project(error):
        words = said
    elif isinstance(error, ValueError) and said.startswith(f"Caught ValueError in {worker}"):
        words = said.strip().splitlines()[-1].removeprefix("ValueError: ")
    elif isinstance(error, RuntimeError) and said.startswith(worker):
        words = (
            f"a process that reads data was ended from outside ({said.splitlines()[0]}), most likely for want of "
            "memory: resume or start again, perhaps with fewer --dataloader_num_workers"
        )
    elif isinstance(error, RuntimeError) and any(each in said for each in PEER_IS_GONE):
        words = f"another process of this training is gone ({said.splitlines()[0]})"
    elif type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        words = f"the GPU's memory is full ({said.split('. ')[0]}): {MEMORY_ADVICE}"
    else:
        traceback.print_exception(error)
        return 1
    print(f"error: {words}", file=sys.stderr)
    return 1


def _raised_by_project(error: BaseException) -> bool:
    """Whether the error was raised in a file of this project: a library's ValueError deserves its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    path = Path(frames[-1].filename).resolve() if frames else PROJECT
    return path.is_relative_to(PROJECT) and "site-packages" not in path.parts
