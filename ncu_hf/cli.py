"""Command line -> arguments. Flags override the YAML of `--config`, YAML overrides a recipe's defaults."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
import yaml
from transformers import HfArgumentParser

from ncu_hf.config import DataArguments, MethodArguments, ModelArguments, NCUTrainingArguments
from ncu_hf.distributed import leave
from ncu_hf.errors import InputError, TrainingStopped, nearest, one_line

STOPPED, BAD_INPUT = 1, 2
# Seconds after which another process than the first reports its error: where all have the same one, the launcher has
# ended the others by then, and it is read once.
_PATIENCE = 10
# What gloo says when another process has ended.
_PEER_ENDED = ("Connection closed by peer", "Connection reset by peer")


class Arguments(NamedTuple):
    """All settings of one run."""

    model: ModelArguments
    data: DataArguments
    method: MethodArguments
    training: NCUTrainingArguments


class OneLineParser(HfArgumentParser):
    """Raises `InputError` where argparse would print its usage, which for these many flags fills a screen."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists all flags)")


def script_parser(description: str | None) -> OneLineParser:
    """For the few flags of a script, whose docstring is printed as it is."""
    formatter = argparse.RawDescriptionHelpFormatter
    return OneLineParser([], description=description, formatter_class=formatter, allow_abbrev=False)


def usable_device(name: str) -> torch.device:
    """The device that `--device` names.

    Raises:
        InputError: there is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: cannot be used here ({one_line(error)}).") from error


def parse_arguments(
    argv: Sequence[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    description: str | None = None,
    extra: type | None = None,
) -> tuple[Arguments, Any]:
    """Parse flags and the YAML file that `--config` names.

    Args:
        argv (`Sequence[str]`, *optional*): Flags; the command line's if not given.
        defaults (`Mapping[str, Any]`, *optional*): A recipe's own defaults, by flag name.
        description (`str`, *optional*): First lines of `--help`.
        extra (`type`, *optional*): A further dataclass of flags that belong to one recipe alone.

    Returns:
        `tuple[Arguments, Any]`: the arguments and, where `extra` is given, its instance.

    Raises:
        InputError: unknown flag or key (with the nearest known one), wrong type, value out of range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    classes = [ModelArguments, DataArguments, MethodArguments, NCUTrainingArguments, *([extra] if extra else [])]
    parser = OneLineParser(classes, description=description, allow_abbrev=False)
    parser.add_argument("--config", default=None, help="YAML file of flag: value; flags given here override it.")
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    parser.set_defaults(**(defaults or {}))
    parser.set_defaults(**_read_yaml(_config_file(argv), known))
    try:
        *parsed, _, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(one_line(error)) from error
    if unknown:
        flag = unknown[0].split("=")[0]
        raise InputError(f"unknown flag {flag!r}.{nearest(flag.lstrip('-'), known)} --help lists all flags.")
    return Arguments(*parsed[:4]), parsed[4] if extra else None


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; wrong input ends it with one line on stderr and exit code 2, a stopped run with 1."""
    try:
        main()
        leave()
    except InputError as error:
        _exit(f"error: {error}", BAD_INPUT)
    except TrainingStopped as error:
        _exit(f"stopped: {error}", STOPPED)
    except KeyboardInterrupt:
        _exit("stopped: interrupted. What was written stays; training goes on by --resume_from_checkpoint true.", 130)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _PEER_ENDED):
            raise
        _exit("stopped: another process of this run has ended; its own line says why.", STOPPED)


def _exit(message: str, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_PATIENCE)
    print(" ".join(message.splitlines()), file=sys.stderr, flush=True)
    sys.exit(code)


def _config_file(argv: list[str]) -> str | None:
    for position, word in enumerate(argv):
        if word == "--config" and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith("--config="):
            return word.split("=", 1)[1]
    return None


def _read_yaml(path: str | None, known: set[str]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: cannot be read ({one_line(error)}).") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected lines of 'flag: value'.")
    for key in values:
        if key not in known:
            raise InputError(f"--config {path}: unknown key {key!r}.{nearest(str(key), known)}")
    # argparse checks the type of a default that is text, and takes any other as it is.
    return {key: str(value) if type(value) in (int, float) else value for key, value in values.items()}
