"""The data of a run: what the flags name, opened by all processes of a run as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ncu_hf.config import DataArguments
from ncu_hf.data import Noise, PairSource, RemoteData, StreamSource, check_readable, find_remote, open_pairs
from ncu_hf.data.files import expand, public_address
from ncu_hf.data.sources.locate import is_url
from ncu_hf.distributed import gather_json, local_first, world
from ncu_hf.errors import InputError, TrainingStopped
from ncu_hf.evaluation import EvaluationSet
from ncu_hf.evaluation.sets.captioned import captioned_set
from ncu_hf.evaluation.sets.check import check_usable
from ncu_hf.evaluation.sets.open import find_suite, open_suite
from ncu_hf.evaluation.sets.pair_columns import Pairs
from ncu_hf.reporting.results import HELD_OUT


def open_training_pairs(
    data: DataArguments, device: torch.device, *, revision: str | None = None
) -> PairSource | StreamSource:
    """Open the pairs to train on, and read the first ones. A collective.

    The first process alone asks the Hub, or a server, which files there are: hundreds of processes that do would be
    refused, and could be told different commits. It alone reads the first pairs of a stream.

    Args:
        data (`DataArguments`): What to open.
        device (`torch.device`): For the exchange between processes.
        revision (`str`, *optional*): Commit of a Hub data set, instead of `data.data_revision`.

    Raises:
        InputError: nothing is named, or it cannot be read (see [`open_pairs`]).
        TrainingStopped: a server does not answer.
    """
    if data.train_data is None:
        raise InputError("Give the pairs to train on: --train_data.")
    Noise(data.noise_share, data.noise_seed, data.noise_kind, data.noise_class_column)  # before a server is asked
    place = {
        "split": data.split,
        "revision": revision or data.data_revision,
        "config": data.data_config,
        "data_format": data.data_format,
        "streaming": data.streaming,
        "timeout": data.data_timeout,
    }
    remote = _on_first(lambda: (found := find_remote(data.train_data, **place)) and found.to_json(), device)
    with local_first():
        source = open_pairs(
            data.train_data,
            image_column=data.image_column,
            caption_column=data.caption_column,
            delimiter=data.delimiter,
            image_root=data.image_root,
            **place,
            remote=remote and RemoteData.from_json(remote),
            limit=data.train_limit,
            subset=data.train_subset,
            subset_seed=data.subset_seed,
            total_rows=data.train_pairs,
            noise_share=data.noise_share,
            noise_seed=data.noise_seed,
            noise_kind=data.noise_kind,
            noise_class_column=data.noise_class_column,
            drop_mismatched=data.drop_mismatched,
            caption_tokenizer=data.caption_tokenizer,
        )
    if isinstance(source, StreamSource):
        _on_first(partial(check_readable, source), device)
    else:
        check_readable(source)
    return source


def open_evaluation_sets(data: DataArguments, *, plan: bool = False) -> list[EvaluationSet]:
    """Open what to measure on: the pairs of `--eval_data`, named `HELD_OUT`, and the sets of `--eval_sets`.

    A collective: the first process of each machine downloads what is not there yet.

    Args:
        data (`DataArguments`): What to open.
        plan (`bool`, *optional*): Only find out whether the sets of `--eval_sets` exist: a plan downloads none.

    Raises:
        InputError: one of them cannot be read, or has a name that another one has.
    """
    with local_first():
        sets: list[EvaluationSet] = []
        if data.eval_data is not None:
            pairs = captioned_set(_open_evaluation_pairs(data), data.eval_limit)
            check_usable(pairs)
            sets.append(dataclasses.replace(pairs, origin=dataclasses.replace(pairs.origin, name=HELD_OUT)))
        if data.eval_sets is not None:
            specs = [spec.strip() for spec in data.eval_sets.split(",") if spec.strip()]
            if plan:
                find_suite(specs)
            else:
                further = open_suite(specs, _evaluation_pairs(data))
                for one in further:
                    check_usable(one)
                sets += further
    return sets


def _open_evaluation_pairs(data: DataArguments) -> PairSource:
    if is_url(data.eval_data):
        raise InputError(f"--eval_data {public_address(data.eval_data)}: is only read as a stream. Download the files.")
    place = {"split": data.eval_split, "data_format": data.data_format, "streaming": False}
    if data.eval_data == data.train_data:  # a commit of one data set is none of another
        place |= {"revision": data.data_revision, "config": data.data_config}
        place |= {"caption_tokenizer": data.caption_tokenizer}
    stored = _evaluation_pairs(data).options(next(iter(expand(data.eval_data)), None))
    source = open_pairs(data.eval_data, **place, **stored)
    check_readable(source)
    return source


def _evaluation_pairs(data: DataArguments) -> Pairs:
    """How pairs to measure on are stored: as the training pairs, if nothing else is said or found."""
    return Pairs(
        data.eval_image_column,
        data.eval_caption_column,
        data.image_root,
        delimiter=None if data.delimiter == DataArguments.delimiter else data.delimiter,
        likely=(data.image_column, data.caption_column),
    )


def _on_first(ask: Callable[[], Any], device: torch.device) -> Any:
    """What `ask` gives on the first process (JSON-able), for all; an error of it is raised by all."""
    answer: dict[str, Any] = {}
    if world()[0] == 0:
        try:
            answer = {"value": ask()}
        except (InputError, TrainingStopped) as error:
            answer = {"error": str(error), "stopped": isinstance(error, TrainingStopped)}
    answer = gather_json(answer, device)[0]
    if "error" in answer:
        raise (TrainingStopped if answer["stopped"] else InputError)(answer["error"])
    return answer["value"]
