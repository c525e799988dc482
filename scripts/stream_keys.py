"""Print which process gets which sample in which step, with the loader that training uses.

    python scripts/stream_keys.py 'shards/{0000..0016}.tar' --processes 3 --workers 2 --batch_size 32 --epochs 2

prints `epoch step rank key` for every sample that a training step would consume, and a summary on stderr. The flags
for data are those of the recipes. A run can be stopped and go on, also with other numbers of processes and workers:

    python scripts/stream_keys.py DATA --processes 4 --workers 2 --stop_after_steps 100 --save_state position.json
    python scripts/stream_keys.py DATA --processes 3 --workers 1 --resume_from position.json
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.cli import BAD_INPUT, STOPPED, OneLineParser, run_main
from ncu_hf.config import DataArguments
from ncu_hf.data import DataHealth, ImageTransform, PairCollator, PairLoader, PairSource, StreamSource
from ncu_hf.data.mixing import measure_mixing
from ncu_hf.data.records import Skipped
from ncu_hf.data.shards.base import BEGINNING
from ncu_hf.distributed import gather_json
from ncu_hf.errors import InputError
from ncu_hf.opening import open_training_pairs
from ncu_hf.reference import train_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class KeyArguments:
    """What is run."""

    processes: int = field(default=1, metadata={"help": "W, processes that share the data."})
    workers: int = field(default=0, metadata={"help": "K, data workers of each process."})
    batch_size: int = field(default=32, metadata={"help": "B, samples a process takes in a step."})
    epochs: int = field(default=1, metadata={"help": "Stop when so many epochs of the data are complete."})
    seed: int = field(default=0, metadata={"help": "Of the order."})
    stop_after_steps: int | None = field(default=None, metadata={"help": "Stop after so many steps of this call."})
    save_state: str | None = field(default=None, metadata={"help": "Write the position at the end to this new file."})
    resume_from: str | None = field(default=None, metadata={"help": "Go on from a position that was written."})
    mixing: bool = field(
        default=False, metadata={"help": "Compare each epoch with a full permutation; reads the data once more."}
    )

    def __post_init__(self):
        for name in ("processes", "batch_size", "epochs", "stop_after_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}.")
        if self.save_state is not None and Path(self.save_state).exists():
            raise InputError(f"--save_state {self.save_state}: exists already; give a new file.")
        if self.save_state is not None and not os.access(Path(self.save_state).absolute().parent, os.W_OK | os.X_OK):
            raise InputError(f"--save_state {self.save_state}: its folder cannot be written to, or is not there.")
        if self.resume_from is not None and not Path(self.resume_from).is_file():
            raise InputError(f"--resume_from {self.resume_from}: no such file.")


def parse() -> tuple[DataArguments, KeyArguments]:
    parser = OneLineParser([DataArguments, KeyArguments], description=__doc__, allow_abbrev=False)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("source", help="what --train_data of a recipe takes")
    data, keys, rest, unknown = parser.parse_args_into_dataclasses(
        look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        raise InputError(f"unknown flag {unknown[0]!r}. --help lists all flags.")
    data.train_data = rest.source
    return data, keys


def make_collator() -> PairCollator:
    """Everything that training does to a record, for an image size of 224; the words of a caption play no part."""
    tokenizer = train_tokenizer(["a"], vocab_size=514, context=77)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    return PairCollator(tokenizer, ImageTransform(processor, train=True), context_length=77)


def read_state(path: str | None) -> dict[str, Any]:
    """A position that an earlier call wrote."""
    if path is None:
        return {"step": 0, "data": None}
    try:
        state = read_json(Path(path))
        return {"step": int(state["step"]), "data": dict(state["data"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"--resume_from {path}: is not a position that --save_state wrote.") from error


class Summary:
    """What the first process counts: samples of each epoch, in order, and records that were left out."""

    def __init__(self, source: PairSource | StreamSource):
        self.health = DataHealth(1.0, source.problems)
        self.keys: dict[int, list[str]] = {}
        self.steps: dict[int, int] = {}

    def add(self, step: int, parts: list[dict[str, Any]]) -> None:
        """Count and print one step of all processes."""
        for rank, part in enumerate(parts):
            self.health.merge([part["health"]])
            self.keys.setdefault(part["epoch"], []).extend(part["keys"])
            for key in part["keys"]:
                print(part["epoch"], step, rank, key)
        self.steps[parts[0]["epoch"]] = self.steps.get(parts[0]["epoch"], 0) + 1

    def print(self, source: PairSource | StreamSource, options: KeyArguments, seconds: float) -> None:
        """Tell what was counted."""
        for epoch, keys in self.keys.items():
            line = f"epoch {epoch}: {self.steps[epoch]} steps, {len(keys)} samples, {len(set(keys))} different keys"
            if options.mixing:
                mixing = measure_mixing(stored_places(source, keys), options.batch_size * options.processes)
                line += f", displacement {mixing.displacement:.3f} and entropy {mixing.entropy:.3f} of a permutation's"
            print(line, file=sys.stderr)
        rate = sum(map(len, self.keys.values())) / seconds
        print(f"{rate:.0f} samples/s from the first batch on\n{self.health.summary_table()}", file=sys.stderr)


def stored_places(source: PairSource | StreamSource, keys: list[str]) -> np.ndarray:
    """Place of each key in the stored order."""
    if isinstance(source, StreamSource):
        rows = (row for shard in source.shards for row in shard.read(BEGINNING, 0, []))
        stored = (row.record.key for row in rows)
    else:
        stored = (source[i].key for i in range(len(source)))
    place = {key: number for number, key in enumerate(stored)}
    return np.array([place[key] for key in keys])


def run_process(rank: int, data: DataArguments, options: KeyArguments, rendezvous: str) -> None:
    """What each process does."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if rank == 0 else logging.ERROR)
    if options.processes > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=options.processes)
    gather = partial(gather_json, device=torch.device("cpu"))
    source = open_training_pairs(data, torch.device("cpu"))
    start = read_state(options.resume_from)
    loader = PairLoader(
        source,
        make_collator(),
        batch_size=options.batch_size,
        rank=rank,
        world_size=options.processes,
        seed=options.seed,
        num_workers=options.workers,
        state=start["data"],
        epochs=options.epochs,
        gather=gather,
    )
    summary, step, started = Summary(source), start["step"], time.perf_counter()
    for step, batch in enumerate(islice(loader, options.stop_after_steps), start=start["step"] + 1):
        health = DataHealth(1.0)
        health.update(batch)
        parts = gather({"epoch": batch["epoch"], "keys": batch["keys"], "health": health.state_dict()})
        if rank == 0:
            summary.add(step, parts)
            sys.stdout.flush()
    position = loader.state_dict()
    if rank == 0:
        summary.health.add_problems(Skipped(*problem) for problem in position.get("problems", ()))
        summary.print(source, options, time.perf_counter() - started)
        if options.save_state is not None:
            write_json(Path(options.save_state), {"step": step, "data": position})


def guarded(*arguments: Any) -> None:
    """`run_process` in a process of its own."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    run_main(partial(run_process, *arguments))


def end_with_parent() -> None:
    """A process must not outlive a command that was killed."""
    multiprocessing.parent_process().join()
    os._exit(STOPPED)


def main() -> None:
    data, options = parse()
    if options.processes == 1:
        run_process(0, data, options, "")
        return
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        # Not daemons: those may not have data workers.
        started = [
            context.Process(target=guarded, args=(rank, data, options, rendezvous), daemon=False)
            for rank in range(options.processes)
        ]
        for process in started:
            process.start()
        wait_for(started)


def wait_for(started: list[multiprocessing.Process]) -> None:
    """Wait for all processes; one that fails takes the others with it."""
    while any(process.is_alive() for process in started):
        if any(process.exitcode for process in started):
            for process in started:
                process.join(5)
                process.terminate()
        time.sleep(0.05)
    codes = {process.exitcode for process in started}
    if codes & {BAD_INPUT}:
        sys.exit(BAD_INPUT)
    if codes != {0}:
        sys.exit(STOPPED)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the script without a traceback
    run_main(main)
