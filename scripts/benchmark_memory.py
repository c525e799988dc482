"""`benchmark.py memory`: what a step takes as a function of batch and chunk, and what chunks cost in time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from benchmark_step import add_setting_flags, make_setting, peak_bytes
from benchmark_timing import Benchmark, Row, Tables, medians
from benchmark_variants import Setting, ours

from ncu_hf.planning.memory import encoding_bytes, matrix_bytes, parameter_bytes
from ncu_hf.step import split_rows, total_loss

_FLOAT = 4


def _flags(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 2048], help="pairs of a step")
    parser.add_argument("--chunks", type=int, nargs="*", default=[256], help="rows of a chunk, beside no chunks at all")


def benchmark_memory(options: argparse.Namespace) -> Tables:
    """Memory of steps and of the losses alone, and time of steps.

    On a CPU only the steps of `small` run; tensors without data tell the memory of the larger models.
    """
    real = options.device.type == "cuda" or options.model == "small"
    steps, losses = [], []
    for rows in options.batches:
        setting = make_setting(options, rows)
        sizes = [None, *(size for size in options.chunks if size < rows)]
        steps += list(_measured(setting, sizes, options) if real else _computed(setting, sizes))
        losses.append({"batch": rows, "losses_gib": (taken := losses_bytes(setting)) / 2**30})
        losses[-1]["squares"] = taken / (_FLOAT * rows**2)
    return {"steps": steps, "losses": losses}


def _case(setting: Setting, chunk: int | None, standing: int, taken: int | None) -> Row:
    """`step_gib`: activations, gradients and losses, beyond weights and the optimizer's state, `standing_gib`."""
    return {
        "batch": len(setting.batch["input_ids"]),
        "chunk": "none" if chunk is None else chunk,
        "standing_gib": standing / 2**30,
        "step_gib": None if taken is None else taken / 2**30,
    }


def _measured(setting: Setting, sizes: list[int | None], options: argparse.Namespace) -> Iterator[Row]:
    rows, steps = {}, {}
    for size in sizes:
        variant = ours(setting, size)
        try:
            peak = peak_bytes(variant, options.device)
        except torch.OutOfMemoryError:
            variant.optimizer.zero_grad()
            rows[size] = _case(setting, size, variant.standing_bytes(), None)
            continue
        standing = variant.standing_bytes()
        rows[size] = _case(setting, size, standing, peak - standing)
        steps[size] = variant.step
    seconds = medians(steps, options.repeats, options.device)
    for size, row in rows.items():
        row["ms"] = 1e3 * seconds[size] if size in seconds else None
        row["time_over_unchunked"] = seconds[size] / seconds[None] if {size, None} <= seconds.keys() else None
        yield row


def _computed(setting: Setting, sizes: list[int | None]) -> Iterator[Row]:
    model = setting.lean_model(setting.objective())
    trained = parameter_bytes(model, trainable=True)
    losses = losses_bytes(setting)
    for size in sizes:
        largest = split_rows(setting.batch, size, setting.lengths(setting.batch)).parts[0]
        shape, tokens = largest["pixel_values"].shape, largest["input_ids"].shape[1]
        lengths = setting.lengths(largest)
        taken = encoding_bytes(model, shape, tokens, True, setting.bf16, size is not None, lengths)
        # The losses come beside the activations of the last chunk.
        yield _case(setting, size, parameter_bytes(model) + 2 * trained, taken + losses)


def losses_bytes(setting: Setting) -> int:
    """Most memory of the losses and of their gradient, beyond the embeddings."""
    rows, width = len(setting.batch["input_ids"]), setting.clip.config.projection_dim
    objective = setting.objective()
    if setting.device.type != "cuda":
        return matrix_bytes(objective, rows, width)
    generator = torch.Generator(setting.device).manual_seed(0)
    drawn = torch.randn(3, rows, width, generator=generator, device=setting.device)
    drawn[:2] += drawn[2]  # pairs that match somewhat
    leaves = [embeds.requires_grad_() for embeds in torch.nn.functional.normalize(drawn, dim=-1).unbind()]
    scale = torch.tensor(3.0, device=setting.device, requires_grad=True)
    torch.cuda.reset_peak_memory_stats(setting.device)
    before = torch.cuda.memory_allocated(setting.device)
    torch.autograd.grad(total_loss(objective(*leaves, scale)), [*leaves, scale])
    return torch.cuda.max_memory_allocated(setting.device) - before


MEMORY = Benchmark("memory of a step as a function of batch and chunk", _flags, benchmark_memory)
