"""`benchmark.py scaling`: steps and losses on several processes of this machine."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from benchmark_step import add_setting_flags
from benchmark_timing import Benchmark, Row, Tables

from ncu_hf.errors import InputError

_WORKER = Path(__file__).with_name("benchmark_scaling_worker.py")
_GIB = 2**30


def _flags(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes, W")
    parser.add_argument("--rows", type=int, default=256, help="pairs of a process (weak), of all of them (strong)")
    parser.add_argument("--chunk", type=int, help="rows of a chunk; all of a process by default")
    parser.add_argument("--n", type=int, nargs="+", default=[2048], help="N of the losses alone (default: 2048)")
    parser.add_argument("--large_n", type=int, default=32_768, help="N that memory is extrapolated to")
    parser.add_argument("--large_processes", type=int, default=8, help="W that memory is extrapolated to")


def benchmark_scaling(options: argparse.Namespace) -> Tables:
    """Weak scaling (as many pairs a process), strong scaling (as many in all), and the losses of phase 2 alone."""
    for processes in options.processes:
        if options.rows % processes or any(n % (2 * processes) for n in options.n):
            sizes = ", ".join(str(n) for n in options.n)
            raise InputError(f"--rows {options.rows} and half of --n {sizes} must be multiples of {processes}.")
    weak = [_step(processes, options.rows, options) for processes in options.processes]
    strong = [_step(processes, options.rows // processes, options) for processes in options.processes]
    launched = {
        (processes, n): _launch(processes, "losses", n // processes, options)
        for processes in options.processes
        for n in sorted({*options.n, *(n // 2 for n in options.n)})
    }
    losses: list[Row] = []
    for n in sorted(options.n):
        losses += _related([_losses(processes, n, launched) for processes in options.processes], shared=True)
    return {
        "weak": _related(weak),
        "strong": _related(strong, shared=True),
        "losses": losses,
        "losses_extrapolated": [_extrapolated(losses[-1], options)],
    }


def _step(processes: int, rows: int, options: argparse.Namespace) -> Row:
    found = _launch(processes, "step", rows, options)
    exchange = found["ms"] - found["without_gradient_exchange_ms"]
    return {
        "processes": processes,
        "rows_a_process": rows,
        "ms": found["ms"],
        "samples_a_second": 1e3 * processes * rows / found["ms"],
        "gradient_exchange_ms": exchange,
        "collectives_of_losses_ms": found["collectives_ms"],
        "communication_share": max(0.0, exchange + found["collectives_ms"]) / found["ms"],
        "gradient_all_reduces": found["gradient_all_reduces"],
    }


def _losses(processes: int, n: int, launched: dict[tuple[int, int], Row]) -> Row:
    """Time and memory at N, and the two coefficients of memory: of N²/W floats, and of N floats."""
    large, small = launched[processes, n], launched[processes, n // 2]
    peak = large["peak_bytes"]
    square = (peak - 2 * small["peak_bytes"]) * 2 * processes / (4 * n * n)  # peak(n) = square n²/W + line n
    return {
        "processes": processes,
        "n": n,
        "ms": large["ms"],
        "collectives_ms": large["collectives_ms"],
        "peak_mib": peak / 2**20,
        "floats_a_cell": square,
        "floats_a_row": (peak / 4 - square * n * n / processes) / n,
    }


def _related(rows: list[Row], shared: bool = False) -> list[Row]:
    """With efficiency: 1 for W times the work in the same time or, if `shared`, for the same work in 1/W of it."""
    for row in rows:
        share = row["processes"] / rows[0]["processes"] if shared else 1
        row["efficiency"] = rows[0]["ms"] / (share * row["ms"])
    return rows


def _extrapolated(measured: Row, options: argparse.Namespace) -> Row:
    """Memory at a large N; of the reference, which has nothing but matrices, from the smallest N."""
    n, small = options.large_n, min(options.n)
    cells = n * n / options.large_processes
    reference = _launch(1, "reference", small, options)["peak_bytes"] / (4 * small**2)
    return {
        "n": n,
        "processes": options.large_processes,
        "ours_gib_a_process": 4 * (measured["floats_a_cell"] * cells + measured["floats_a_row"] * n) / _GIB,
        "reference_gib_a_process": 4 * reference * n * n / _GIB,
        "reference_floats_a_cell": reference,
    }


def _launch(processes: int, part: str, rows: int, options: argparse.Namespace) -> Row:
    """What the first of W workers measures."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        settings = {**vars(options), "part": part, "rows": rows, "report": str(report)}
        settings = {key: value for key, value in settings.items() if isinstance(value, str | int | float | None)}
        settings["device"] = options.device.type
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        # As many for each process of every row of the tables, so that they compare.
        threads = options.threads or max(1, torch.get_num_threads() // max(options.processes))
        done = subprocess.run(
            [*command, str(_WORKER), json.dumps(settings)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if re.match(r"\[rank\d+\]: \S*Error", line)]
            raise InputError(f"{part} on {processes} processes failed: {said[0] if said else done.stderr[-500:]}")
        return json.loads(report.read_text())


SCALING = Benchmark("steps and losses on several processes of this machine", _flags, benchmark_scaling)
