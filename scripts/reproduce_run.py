"""Run steps one after the other: skip what is complete, go on with what was killed, stop at what fails."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reproduce_steps import Step

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.errors import InputError, TrainingStopped


def show(steps: list[Step], output: Path) -> None:
    """Print the commands, as a shell script; those that would be skipped as comments."""
    for number, step in enumerate(steps, start=1):
        complete = is_complete(step, output)
        print(f"# step {number} of {len(steps)}: {step.does}{' (complete)' * complete}")
        print(*(f"{'# ' * complete}{line}" for line in step.shell()), sep="\n")


def run(steps: list[Step], output: Path) -> None:
    """Run all steps that are not complete.

    Raises:
        InputError: another reproduction writes to `output`, or a step was run there with other settings.
        TrainingStopped: a step failed; names its command and exit code.
    """
    for step in steps:
        is_complete(step, output)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output) as lock:
        for number, step in enumerate(steps, start=1):
            place = f"Step {number} of {len(steps)}"
            if is_complete(step, output):
                print(f"{place} is complete: {step.does}", flush=True)
                continue
            resumed, command = ", going on where it stopped" * step.started, step.command()
            print(f"\n{place}: {step.does}{resumed}\n{shlex.join(command)}\n", flush=True)
            if step.folder is not None:
                step.folder.mkdir(parents=True, exist_ok=True)
            if code := execute(command, lock):
                ended = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
                raise TrainingStopped(f"{place} {ended}: {shlex.join(command)}. The same reproduction goes on there.")
            _record(output, step).parent.mkdir(exist_ok=True)
            write_json(_record(output, step), {"arguments": list(step.arguments)})


def is_complete(step: Step, output: Path) -> bool:
    """Whether the step was run to its end, and its result is still there.

    Raises:
        InputError: it was, but with other arguments.
    """
    record = _record(output, step)
    if not record.is_file() or not step.result.exists():
        return False
    earlier = read_json(record)["arguments"]
    if earlier != list(step.arguments):
        raise InputError(
            f"{step.result} was made by other arguments ({shlex.join(earlier)}); give another --output_dir, or delete "
            f"{record}, and what that command wrote."
        )
    return True


def _record(output: Path, step: Step) -> Path:
    return output / "steps" / f"{step.name}.json"


def execute(command: list[str], lock: int) -> int:
    """Run a command, with this interpreter's programs first, and wait for its end; returns its exit code.

    A signal that ends this process reaches the command, so that nothing goes on training unseen.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        process = subprocess.Popen(command, env=os.environ | {"PATH": path}, pass_fds=[lock])
    except OSError as error:
        raise InputError(f"{command[0]}: cannot be run ({error.strerror}); install the requirements.") from error
    # Ctrl-C reaches all processes of a terminal: the command ends by itself.
    handlers = {signal.SIGTERM: lambda number, frame: process.send_signal(number), signal.SIGINT: lambda *_: None}
    earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def locked(output: Path) -> Iterator[int]:
    """Keep other reproductions away: two of them would train the same model into the same folder.

    The commands inherit the lock: one that outlives this process keeps it.
    """
    with open(output / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"--output_dir {output}: another reproduction is at work there.") from error
        yield file.fileno()
