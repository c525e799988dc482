"""A process that does one task after the other, so that libraries are imported once: `python -m ncu_hf.worker THREADS`.

A task is a JSON line: `argv` (flags of a recipe), `log` (file that its output goes to) and, for a measurement of
mixtures instead of a run, `mixtures`: `folder`, `models`, `weights` (see `ncu_hf.mixtures`). So is the answer: `error`
(one line, or null) and `seconds`. The process ends when its standard input is closed, in the middle of a task too: what
it does is wanted by the process that started it alone.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import torch

from ncu_hf.cli import parse_arguments
from ncu_hf.errors import InputError, TrainingStopped
from ncu_hf.mixtures import measure_mixtures
from ncu_hf.recipe import run, set_up_logging


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    torch.set_num_threads(int(sys.argv[1]))
    tasks: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=read_tasks, args=(tasks,), daemon=True).start()
    while True:
        answer(tasks.get(), answers)


def read_tasks(tasks: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os._exit(0)


def answer(task: dict[str, Any], answers: TextIO) -> None:
    """Run a unit with its output in its log; tell how it ended."""
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    started, error = time.perf_counter(), None
    try:
        perform(task)
    except (InputError, TrainingStopped) as stopped:
        error = str(stopped)
    except Exception as crash:  # one unit that crashes must not take the others with it; its log has all of it
        traceback.print_exc()
        error = f"{type(crash).__name__}: {' '.join(str(crash).split())[:300]}"
    if error is not None:
        logging.getLogger("ncu_hf").error("%s", error)
    sys.stdout.flush()
    print(json.dumps({"error": error, "seconds": time.perf_counter() - started}), file=answers)


def perform(task: dict[str, Any]) -> None:
    sys.argv[1:] = task["argv"]  # what the card of a run gives as its command
    arguments, _ = parse_arguments(task["argv"])
    set_up_logging(arguments.training)
    if mixtures := task.get("mixtures"):
        measure_mixtures(arguments, Path(mixtures["folder"]), mixtures["models"], mixtures["weights"])
    else:
        run(arguments)


if __name__ == "__main__":
    main()
