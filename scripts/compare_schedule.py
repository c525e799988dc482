"""Run units in worker processes: each as soon as what it needs is complete, the longest first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from compare_units import Unit

import ncu_hf
from ncu_hf.errors import TrainingStopped

# -P: python would look for modules in the folder where the user stands first.
WORKER = (sys.executable, "-P", "-m", "ncu_hf.worker")
# Where this process has the package from, so that the workers run the same code.
PACKAGES = str(Path(ncu_hf.__file__).resolve().parent.parent)


class Ended(NamedTuple):
    """How a unit ended: `error` in one line, if it failed."""

    unit: Unit
    seconds: float
    error: str | None


class Schedule:
    """Which unit is next. Safe to use from several threads.

    Args:
        units (`list[Unit]`): All of them; those that are complete are not run.
    """

    def __init__(self, units: list[Unit]):
        self._pending = sorted((unit for unit in units if not unit.complete), key=lambda unit: -unit.cost)
        self._unfinished = {unit.folder for unit in self._pending}
        self._failed: set[Path] = set()
        self._changed = threading.Condition()
        self._stopped = False
        self.skipped: list[Unit] = []
        self.cost = sum(unit.cost for unit in self._pending)

    def __len__(self) -> int:
        return len(self._pending)

    def next(self) -> Unit | None:
        """The next unit, as soon as there is one; `None` where there will be none."""
        with self._changed:
            while self._pending and not self._stopped:
                self._skip()
                for unit in self._pending:
                    if self._unfinished.isdisjoint(unit.needs):
                        self._pending.remove(unit)
                        return unit
                if self._pending:
                    self._changed.wait()
            return None

    def _skip(self) -> None:
        """Leave out what needs a unit that failed."""
        for unit in [unit for unit in self._pending if not self._failed.isdisjoint(unit.needs)]:
            self._pending.remove(unit)
            self._failed.add(unit.folder)
            self.skipped.append(unit)

    def end(self, unit: Unit, failed: bool) -> None:
        """Tell that a unit has ended."""
        with self._changed:
            (self._failed.add if failed else self._unfinished.discard)(unit.folder)
            self._changed.notify_all()

    def stop(self) -> None:
        """Give no further unit."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Worker:
    """A process that runs units; another one is started when it has died.

    Args:
        slot (`int`): Its number; on a machine of several GPUs it gets one of them.
        threads (`int`): Of torch.
        gpus (`int`): Of this machine.
    """

    def __init__(self, slot: int, threads: int, gpus: int):
        self._command = [*WORKER, str(threads)]
        path = os.pathsep.join(filter(None, (PACKAGES, os.environ.get("PYTHONPATH"))))
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        if gpus > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
            self._environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
        self._process: subprocess.Popen | None = None

    def run(self, unit: Unit) -> Ended:
        """Run a unit and wait for its end."""
        started = time.perf_counter()
        unit.folder.parent.mkdir(parents=True, exist_ok=True)
        task = {"argv": unit.argv(), "log": str(unit.log)}
        if unit.weights:
            models = [str(folder) for folder in unit.needs]
            task["mixtures"] = {"folder": str(unit.folder), "models": models, "weights": unit.weights}
        answer = self._ask(task)
        if answer is None:
            code = self._process.wait()
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            answer = {"error": f"its process {ended}", "seconds": time.perf_counter() - started}
        error = answer["error"]
        return Ended(unit, answer["seconds"], None if error is None else f"{error} (log: {unit.log})")

    def _ask(self, task: dict[str, Any]) -> dict[str, Any] | None:
        """The answer of the process; `None` if it ended without one."""
        if self._process is None or self._process.poll() is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            self._process = subprocess.Popen(self._command, env=self._environment, **pipes)
        try:
            print(json.dumps(task), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except (OSError, ValueError):  # the pipe is broken, or was closed by `close`
            return None
        return json.loads(line) if line else None

    def close(self) -> None:
        """End the process, in the middle of a unit too; the unit can be resumed."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def run_units(schedule: Schedule, jobs: int, cores: int, gpus: int, tell: Callable[[Ended], None]) -> list[Ended]:
    """Run all units of a schedule.

    Args:
        schedule (`Schedule`): The units.
        jobs (`int`): Processes.
        cores, gpus (`int`): Of this machine, shared by them.
        tell (`Callable[[Ended], None]`): Called at the end of each unit, from one thread at a time.

    Returns:
        `list[Ended]`: those that failed.

    Raises:
        TrainingStopped: SIGTERM or SIGINT; all processes have ended by then.
    """
    workers = [Worker(slot, max(cores // jobs, 1), gpus) for slot in range(min(jobs, max(len(schedule), 1)))]
    failed: list[Ended] = []
    lock, stopped = threading.Lock(), threading.Event()

    def work(worker: Worker) -> None:
        while (unit := schedule.next()) is not None:
            ended = worker.run(unit)
            schedule.end(unit, ended.error is not None)
            with lock:
                if stopped.is_set():
                    return
                if ended.error is not None:
                    failed.append(ended)
                tell(ended)

    def stop(*_: Any) -> None:
        stopped.set()
        schedule.stop()
        for worker in workers:
            worker.close()

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # so that a signal is handled in between
    finally:
        for worker in workers:
            worker.close()
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if stopped.is_set():
        raise TrainingStopped("interrupted. What is complete stays; the same command goes on.")
    return failed
