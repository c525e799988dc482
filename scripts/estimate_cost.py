"""Hours that NCU takes on the paper's data sets, from the rates that `benchmark.py step` measured.

    python scripts/benchmark.py step --device cuda --precision bf16 --phase negative_prompt --json phase1.json
    python scripts/benchmark.py step --device cuda --precision bf16 --json phase2.json
    python scripts/estimate_cost.py phase1.json phase2.json --gpus 1 8 16

    hours = pairs x (epochs_1 / rate_1 + epochs_2 / rate_2) / (GPUs x efficiency) / 3600

The rates are samples a second of `ours` (--variant names another one) on one GPU. Where none was at hand, --peak_tflops
and --mfu take the place of the rates: rate = peak x MFU / operations a sample. What is printed says which of the two it
is. Loading is not part of it: `benchmark.py data` tells how many CPU cores keep up.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ncu_hf.cli import run_main, script_parser
from ncu_hf.errors import InputError
from ncu_hf.reporting.markdown import table

# What the Hub's copies hold; of YFCC15M-R about that many.
PAIRS = {"CC3M": 2_905_954, "CC12M": 10_968_539, "YFCC15M-R": 15_000_000}
EPOCHS = (2, 8)
PHASES = ("negative_prompt", "unlearning")


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("reports", type=Path, nargs=2, metavar="FILE", help="of phase 1 and of phase 2")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 16], help="numbers of GPUs (default: 1 8 16)")
    parser.add_argument("--variant", default="ours", help="whose rate counts, e.g. ours_chunk_256 (default: ours)")
    parser.add_argument(
        "--efficiency", type=float, default=1.0, help="of several GPUs, as `benchmark.py scaling` tells"
    )
    parser.add_argument("--epochs", type=float, nargs=2, default=EPOCHS, help="of each phase (paper: 2 and 8)")
    parser.add_argument("--pairs", type=int, help="of your data, instead of the paper's sets")
    parser.add_argument("--peak_tflops", type=float, help="of the GPU, with --mfu, where no GPU was measured")
    parser.add_argument("--mfu", type=float, help="share of the peak that is assumed, between 0 and 1")
    options = parser.parse_args()
    if (options.mfu is None) != (options.peak_tflops is None):
        raise InputError("--mfu and --peak_tflops belong together: give both, or neither.")
    if not 0 < options.efficiency <= 1 or not 0 < (options.mfu or 1) <= 1:
        raise InputError("--efficiency and --mfu are shares in (0, 1].")
    if min(options.gpus) < 1:
        raise InputError(f"--gpus must be at least 1, got {min(options.gpus)}.")
    rates = [rate(path, phase, options) for path, phase in zip(options.reports, PHASES, strict=True)]
    print(source(rates, options))
    print()
    print(table(*costs(rates, options)))


def rate(path: Path, phase: str, options: argparse.Namespace) -> float:
    """Samples a second on one GPU in a phase, measured or assumed."""
    row, batch, gpu = read_step(path, options.variant, phase)
    if options.mfu is not None:
        if row["tflop"] is None:
            raise InputError(f"{path}: no operations were counted for {options.variant}.")
        return 1e12 * options.peak_tflops * options.mfu / (1e12 * row["tflop"] / batch)
    if gpu is None:
        raise InputError(f"{path}: was measured on a CPU; measure on a GPU, or give --peak_tflops and --mfu.")
    if row["samples_a_second"] is None:
        raise InputError(f"{path}: {options.variant} did not fit into the memory of the GPU.")
    return row["samples_a_second"]


def read_step(path: Path, variant: str, phase: str) -> tuple[dict, int, str | None]:
    """The row of a variant, the batch, and the GPU of a report of `benchmark.py step` on a phase.

    Raises:
        InputError: no such file, another kind of file, another phase, or no such variant.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["variant"]: row for row in report["step"]}
        batch, gpu, measured = report["options"]["batch"], report["gpu"], report["options"]["phase"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no report of `benchmark.py step --json` ({type(error).__name__}).") from error
    if measured != phase:
        raise InputError(f"{path}: is of phase {measured}, not {phase}; name the report of phase 1 first.")
    if variant not in rows:
        raise InputError(f"--variant {variant}: {path} has {', '.join(rows)}.")
    return rows[variant], batch, gpu


def source(rates: list[float], options: argparse.Namespace) -> str:
    """Where the rates come from, in a sentence."""
    told = f"{rates[0]:,.0f} and {rates[1]:,.0f} samples a second and GPU in phases 1 and 2"
    if options.mfu is not None:
        return (
            f"Assumed, not measured: {told}, which is {100 * options.mfu:g} % of {options.peak_tflops:g} TFLOP/s "
            "over the counted operations of a sample."
        )
    return f"Measured: {told}, on one {read_step(options.reports[1], options.variant, PHASES[1])[2]}."


def costs(rates: list[float], options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    """Header and rows: hours of both phases together on each number of GPUs."""
    sets = PAIRS if options.pairs is None else {"yours": options.pairs}
    header = ["data", "pairs", *(f"{count} GPU{'s' * (count > 1)}, hours" for count in options.gpus)]
    rows = []
    for name, pairs in sets.items():
        seconds = pairs * sum(epochs / found for epochs, found in zip(options.epochs, rates, strict=True))
        hours = [seconds / 3600 / (count * (options.efficiency if count > 1 else 1)) for count in options.gpus]
        rows.append([name, f"{pairs:,}", *(f"{value:.1f}" for value in hours)])
    return header, rows


if __name__ == "__main__":
    run_main(main)
