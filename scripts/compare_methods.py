"""Compare methods: from one reference a noise share and seed, each with as many steps, on the same data.

    python scripts/study_data.py scenes studies/scenes
    python scripts/compare_methods.py scripts/studies/scenes_small.yaml --output_dir outputs/scenes_small
    python scripts/compare_methods.py scripts/studies/scenes_small.yaml --output_dir outputs/scenes_small --report_only

The file says what is compared (see compare_config.py). Runs share the machine: --jobs processes, each with its part of
the cores. What is complete is skipped, what was killed goes on: run the same command again. A run that fails is told,
the others go on, and the exit code is 1.

    comparison.json .md .csv     all numbers; tables; a line a number
    plots/                       curves, differences, detection, shares of the data, interpolation
    runs/<noise>/<seed>/<entry>  the output of each run, and <entry>.log beside it
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from compare_collect import MEAN_RECALL, metrics
from compare_config import REFERENCE, read_comparison
from compare_report import write_report
from compare_schedule import Ended, Schedule, run_units
from compare_units import RESULTS_FILE, Unit, check_units, plan
from study_writer import StudyFiles
from tqdm import tqdm

from ncu_hf.checkpoint import read_json
from ncu_hf.cli import run_main, script_parser
from ncu_hf.errors import InputError, TrainingStopped, one_of

LOG_FILE = "comparison.log"
# A small model leaves most of a GPU idle; memory is what bounds them.
JOBS_A_GPU = 2


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("comparison", type=Path, metavar="FILE", help="YAML file that says what is compared")
    parser.add_argument("--study", type=Path, metavar="FOLDER", help="data, instead of those that the file names")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="where everything is written")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes; one a core, or two a GPU by default")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="only these seeds of the file")
    parser.add_argument("--noise_shares", type=float, nargs="+", metavar="SHARE", help="only these noise shares")
    parser.add_argument("--entries", nargs="+", metavar="ENTRY", help="only these entries, and what they start from")
    parser.add_argument("--report_only", action="store_true", help="run nothing; write anew what is complete")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and write nothing")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {arguments.jobs}.")
    comparison = read_comparison(arguments.comparison)
    folder = arguments.study or comparison.study
    if folder is None:
        raise InputError(f"{arguments.comparison}: names no study, and --study is not given.")
    study = StudyFiles.open(folder)
    output = Path(os.path.abspath(arguments.output_dir))
    units = plan(comparison, study, output)
    if not arguments.report_only:  # what was run on a GPU is told on any machine
        check_units(units)
    if arguments.dry_run:
        print(*(f"{unit.name}{' (complete)' * unit.complete}" for unit in chosen(units, arguments)), sep="\n")
        return
    output.mkdir(parents=True, exist_ok=True)
    failed = 0
    with locked(output):
        try:
            if not arguments.report_only:
                failed = run(chosen(units, arguments), output, arguments.jobs)
        finally:  # what is complete is told when the rest was interrupted
            write_report(comparison, study, units, output)
    print(f"Written: {output / 'comparison.md'}, comparison.json, comparison.csv, plots/")
    if failed:
        raise TrainingStopped(f"{failed} of {len(units)} runs failed; their lines above and their logs say why.")


def chosen(units: list[Unit], arguments: argparse.Namespace) -> list[Unit]:
    """Units of the seeds, noise shares and entries that were asked for."""
    for name in arguments.entries or ():
        one_of("--entries", name, {unit.entry for unit in units} - {REFERENCE})
    for name, known in (("seeds", {unit.seed for unit in units}), ("noise_shares", {u.noise_share for u in units})):
        for value in getattr(arguments, name) or ():
            if value not in known:
                raise InputError(f"--{name} {value:g}: none of {', '.join(f'{one:g}' for one in sorted(known))}.")
    return [
        unit
        for unit in units
        if (arguments.seeds is None or unit.seed in arguments.seeds)
        and (arguments.noise_shares is None or unit.noise_share in arguments.noise_shares)
        and (arguments.entries is None or unit.entry in (*arguments.entries, REFERENCE))
    ]


def run(units: list[Unit], output: Path, jobs: int | None) -> int:
    """Run what is not complete; returns how many failed, those that need a failed one included."""
    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    schedule = Schedule(units)
    total = len(schedule)
    jobs = min(jobs or (JOBS_A_GPU * gpus if gpus else cores), max(total, 1))
    with (output / LOG_FILE).open("a", encoding="utf-8") as log, Progress(schedule, jobs, log) as progress:
        progress.say(f"{len(units) - total} of {len(units)} runs are complete; {total} to do, {jobs} at a time.")
        failed = run_units(schedule, jobs, cores, gpus, progress.tell) if total else []
        for unit in schedule.skipped:
            progress.say(f"{unit.name}: not run, what it starts from failed")
    return len(failed) + len(schedule.skipped)


class Progress:
    """A bar on a terminal, a line a unit everywhere else, and in the log."""

    def __init__(self, schedule: Schedule, jobs: int, log):
        self.log, self.cost, self.done_cost, self.started = log, schedule.cost, 0.0, time.perf_counter()
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(total=len(schedule), unit="run", disable=hidden, smoothing=0, dynamic_ncols=True)
        self.total, self.done = len(schedule), 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def tell(self, ended: Ended) -> None:
        """A unit has ended."""
        self.done += 1
        self.done_cost += ended.unit.cost
        passed = time.perf_counter() - self.started
        left = passed / self.done_cost * max(self.cost - self.done_cost, 0)
        outcome = ended.error if ended.error is not None else main_number(ended.unit)
        place = f"{self.done}/{self.total} {ended.unit.name}"
        self.say(f"{place}: {outcome}, {ended.seconds:.0f} s; {left / 60:.0f} min left")
        self.bar.update()

    def say(self, line: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=self.log, flush=True)
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def main_number(unit: Unit) -> str:
    if unit.weights:
        return f"{len(unit.weights)} mixtures measured"
    results = read_json(unit.folder / RESULTS_FILE)
    sides = {group: results.get(group, {}) for group in ("retrieval", "zero_shot")}
    values = metrics({group: {name: one["after"] for name, one in sets.items()} for group, sets in sides.items()})
    return f"mean recall {100 * values[MEAN_RECALL]:.1f}" if MEAN_RECALL in values else "trained"


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep other comparisons away: two of them would train the same model into the same folder."""
    with open(output / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"--output_dir {output}: another comparison is at work there.") from error
        yield


if __name__ == "__main__":
    run_main(main)
