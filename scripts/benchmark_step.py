"""`benchmark.py step`: whole optimizer steps of this project, of the released structure, of plain CLIP, and a floor."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmark_models import MODELS, make_clip
from benchmark_timing import Benchmark, Row, Tables, medians
from benchmark_variants import Setting, Variant, floor, ours, plain_clip, random_batch, released
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ncu_hf.errors import one_of
from ncu_hf.planning.memory import LiveBytes
from ncu_hf.towers import compile_blocks

Make = Callable[[Setting], Variant]


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that decide a [`Setting`] but for the size of the batch."""
    parser.add_argument("--model", choices=MODELS, default="vit-b-32", help="shape of the model (default: vit-b-32)")
    parser.add_argument("--phase", choices=("negative_prompt", "unlearning"), default="unlearning")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast of the towers")
    parser.add_argument("--words", type=float, default=10.0, help="mean words a caption (default: 10, as CC3M's)")


def make_setting(options: argparse.Namespace, rows: int) -> Setting:
    """The model of the flags with random weights, and a random batch of `rows` pairs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = make_clip(options.model)
    batch = random_batch(clip, rows, options.words, pin=options.device.type == "cuda")
    return Setting(clip.to(options.device), batch, options.phase, options.device, options.precision == "bf16")


def _flags(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser)
    parser.add_argument("--batch", type=int, default=2048, help="pairs of a step (default: 2048)")
    parser.add_argument("--chunk", type=int, nargs="*", default=[], help="also with chunks of so many rows")
    parser.add_argument(
        "--compile", metavar="BACKEND", nargs="?", const="inductor", help="also with compiled blocks (of inductor)"
    )
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="these alone, by the names in the tables")
    parser.add_argument(
        "--peak_tflops",
        type=float,
        help="of the device, dense and in the precision used, for MFU: the data sheet of a GPU tells it without "
        "sparsity, or half of what it tells with it (H100 SXM and H200: 989 in bf16)",
    )


def makers(options: argparse.Namespace) -> dict[str, Make]:
    """Name of a variant -> how to make it. The released structure is one of phase 2."""
    found: dict[str, Make] = {"ours": ours}
    found |= {f"ours_chunk_{size}": partial(ours, chunk_size=size) for size in options.chunk}
    found["floor"] = floor
    if options.compile:
        compiled = partial(compile_blocks, backend=options.compile, mode=None)
        found |= {f"{name}_compiled": partial(make, prepare=compiled) for name, make in found.items()}
    found["plain_clip"] = plain_clip
    if options.phase == "unlearning":
        found["released"] = released
    wanted = [one_of("--only", name, found) for name in options.only or found]
    return {name: make for name, make in found.items() if name in wanted}


def benchmark_step(options: argparse.Namespace) -> Tables:
    """Time, arithmetic and memory of a step."""
    chosen = makers(options)
    setting = make_setting(options, options.batch)
    rows, variants = {}, {}
    for name, make in chosen.items():
        variant = make(setting)
        rows[name] = {"variant": name, "trained": _trained(variant)}
        try:
            rows[name] |= _costs(name, variant, rows, options.device)
        except torch.OutOfMemoryError:
            rows[name] |= {"tflop": None, "peak_gib": None}
            variant.optimizer.zero_grad()
            continue
        variants[name] = variant.step
    seconds = medians(variants, options.repeats, options.device)
    known = {name: row["tflop"] for name, row in rows.items()}
    needed = {name: known.get("ours") if name.startswith("ours") else own for name, own in known.items()}
    for name, row in rows.items():
        row |= _speed(row["tflop"], needed[name], seconds.get(name), options)
    return {"step": list(rows.values()), "ratios": [ratios(seconds)]}


def _costs(name: str, variant: Variant, rows: dict[str, Row], device: torch.device) -> Row:
    plain = name.removesuffix("_compiled")
    if plain == name:
        return {"tflop": tflop(variant), "peak_gib": peak_bytes(variant, device) / 2**30}
    # What is compiled cannot be looked into while it runs; it computes the same.
    peak = peak_bytes(variant, device) / 2**30 if device.type == "cuda" else None
    return {"tflop": rows[plain]["tflop"] if plain in rows else None, "peak_gib": peak}


def _trained(variant: Variant) -> int:
    return sum(parameter.numel() for parameter in variant.model.parameters() if parameter.requires_grad)


def _speed(counted: float | None, needed: float | None, seconds: float | None, options: argparse.Namespace) -> Row:
    """All `None` for a variant that did not fit. MFU counts what a step needs, not what chunks compute twice."""
    known = seconds is not None
    speed = {
        "ms": 1e3 * seconds if known else None,
        "samples_a_second": options.batch / seconds if known else None,
        "tflop_a_second": counted / seconds if known and counted is not None else None,
    }
    if options.peak_tflops is not None:
        speed["mfu"] = needed / seconds / options.peak_tflops if known and needed is not None else None
    return speed


def ratios(seconds: dict[str, float]) -> Row:
    """Samples a second of each of ours over those of the references, its share of the floor, and the time of chunks
    over that of the whole batch; compiled blocks beside compiled ones. Of a variant that did not fit there is none."""
    found: Row = {}
    for name in [name for name in seconds if name.startswith("ours")]:
        ending = "_compiled" if name.endswith("_compiled") else ""
        for other in ("released", "plain_clip"):
            if other in seconds:
                found[f"{name}_over_{other}"] = seconds[other] / seconds[name]
        if f"floor{ending}" in seconds:
            found[f"{name}_share_of_floor"] = seconds[f"floor{ending}"] / seconds[name]
        whole = f"ours{ending}"
        if name != whole and whole in seconds:
            found[f"{name}_time_over_{whole}"] = seconds[name] / seconds[whole]
    return found


def tflop(variant: Variant) -> float:
    """10¹² floating-point operations of matrix products, convolutions and attention in a step."""
    with _Operations() as counted:
        variant.backward()
    variant.optimizer.zero_grad()
    return counted.total / 1e12


class _Operations(TorchDispatchMode):
    """torch's own formulas. (Its `FlopCounterMode` also follows modules, and fails where one is called without
    gradient and gives a view of a parameter that has one, as the negative prompt does in the first pass of chunks.)"""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (formula := _FORMULAS.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _attention(query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any
) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


# torch takes the CPU's attention kernel for nothing.
_FORMULAS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def peak_bytes(variant: Variant, device: torch.device) -> int:
    """Most memory of a step, weights and the optimizer's state included, without that of other variants.

    On CUDA what the allocator hands out; on a CPU the tensors that are alive. Takes two steps: the first one makes the
    optimizer's state.
    """
    variant.step()
    standing = variant.standing_bytes()
    if device.type != "cuda":
        with LiveBytes() as live:
            variant.step()
        return standing + live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    variant.step()
    torch.cuda.synchronize(device)
    return standing + torch.cuda.max_memory_allocated(device) - before


STEP = Benchmark(
    "a whole optimizer step against the released structure, plain CLIP and a floor", _flags, benchmark_step
)
