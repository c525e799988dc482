"""Time and memory of the parts of the project, measured on this machine.

    python scripts/benchmark.py transport --n 2048 --repeats 5 --json transport.json
    python scripts/benchmark.py data --sizes 500 2000 --workers 0 1 2 --memory_samples 100000 --json data.json
    python scripts/benchmark.py text --batch 256 --words 10 --json text.json

Every subcommand alternates the variants that it compares within one process, after a warm-up, and prints medians and
ratios. A new one is a function that takes the parsed options and returns tables, and a line in `BENCHMARKS`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import PIL
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark_data import DATA  # noqa: E402
from benchmark_memory import MEMORY  # noqa: E402
from benchmark_objective import OBJECTIVE  # noqa: E402
from benchmark_scaling import SCALING  # noqa: E402
from benchmark_step import STEP  # noqa: E402
from benchmark_text import TEXT  # noqa: E402
from benchmark_timing import Row, Tables  # noqa: E402
from benchmark_transport import TRANSPORT  # noqa: E402

from ncu_hf.cli import run_main, script_parser, usable_device  # noqa: E402
from ncu_hf.environment import commit  # noqa: E402
from ncu_hf.reporting.audit import refuse_existing  # noqa: E402

BENCHMARKS = {
    **{"transport": TRANSPORT, "objective": OBJECTIVE, "data": DATA, "text": TEXT},
    **{"step": STEP, "memory": MEMORY, "scaling": SCALING},
}


def machine() -> Row:
    """What the numbers were measured on."""
    model = platform.processor()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "machine": {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__},
        "commit": commit(),
    }


def show(tables: Tables) -> None:
    """One line a value, one column a case."""
    for name, rows in tables.items():
        if len(tables) > 1:
            print(f"\n{name}")
        for key in rows[0] if rows else ():
            values = [f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for row in rows]
            print(f"{key:32}" + "".join(f"{value:>14}" for value in values))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.summary, description=benchmark.summary)
        command.add_argument("--repeats", type=int, default=5, help="timed rounds after the warm-up (default: 5)")
        command.add_argument("--threads", type=int, help="CPU threads of torch (default: its own choice)")
        command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
        command.add_argument("--json", type=Path, metavar="FILE", help="write results, machine, versions, commit here")
        command.add_argument("--overwrite", action="store_true", help="replace an existing file")
        benchmark.add_flags(command)
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    options.device = usable_device(options.device)
    if options.json:
        refuse_existing({options.json: "--json"}, options.overwrite)
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    tables = BENCHMARKS[options.command].run(options)
    show(tables)
    if options.json:
        words = sys.argv[1:] if arguments is None else arguments
        flags = {
            key: value if isinstance(value, int | float | None) else str(value) for key, value in vars(options).items()
        }
        report = {"command": words, "options": flags, **machine(), **tables}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
