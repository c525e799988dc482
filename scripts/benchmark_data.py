"""`benchmark.py data`: decoding and transforms against `CLIPImageProcessor`, the loader, and the memory of a worker."""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_photos import draw_photos
from benchmark_timing import Benchmark, Row, Tables, alternate
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ncu_hf.data import ImageTransform, PairCollator, PairLoader, decode_image, normalize, open_pairs
from ncu_hf.data.order import CROP, keyed_generator
from ncu_hf.errors import InputError
from ncu_hf.reference import train_tokenizer

# Samples before memory is watched: buffers, caches of codecs and of the allocator are filled by then.
_WARM_UP = 2_000
_MEMORY_STEP = 1_000
# Records of the archive that the memory is watched on: one in 20 of the largest size, one in 100 cut in the middle.
_MIXED_RECORDS, _LARGE_EVERY, _BROKEN_EVERY = 1_000, 20, 100
_CPU = torch.device("cpu")


def _data_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=16, help="JPEGs drawn for each size (default: 16)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000], help="long sides, pixels (500 2000)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs (default: 90)")
    parser.add_argument("--jpegs", type=Path, metavar="FOLDER", help="measure on these *.jpg instead of drawn ones")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="of the loader (default: 0 1 2)")
    parser.add_argument("--batch_size", type=int, default=64, help="of the loader (default: 64)")
    parser.add_argument("--seconds", type=float, default=5.0, help="the loader runs for each figure (default: 5)")
    parser.add_argument(
        "--memory_samples", type=int, default=100_000, help="read by the worker whose memory is watched; 0: not watched"
    )


def benchmark_data(options: argparse.Namespace) -> Tables:
    """Samples a second and core of decoding and transforms, of the loader, and the memory of one of its workers."""
    torch.set_num_threads(options.threads or 1)
    if options.jpegs:
        files = {"files": [path.read_bytes() for path in sorted(options.jpegs.glob("*.jpg"))]}
        if not files["files"]:
            raise InputError(f"--jpegs {options.jpegs}: no *.jpg there.")
    else:
        files = {size: draw_photos(size, options.images, options.quality) for size in options.sizes}
    tables = {"transforms": [_transforms_case(size, jpegs, options.repeats) for size, jpegs in files.items()]}
    small, *_, large = [*files.values(), *files.values()]
    with tempfile.TemporaryDirectory() as folder:
        if options.workers:
            archive = _write_tar(Path(folder) / "pairs.tar", _cycle(small, max(4 * options.batch_size, len(small))))
            tables["loader"] = _loader_cases(archive, options)
        if options.memory_samples:
            archive = _write_tar(Path(folder) / "mixed.tar", _mixed(small, large))
            tables["memory"] = [_memory_case(archive, options)]
    return tables


# Decoding and transforms


def _transforms_case(size: int | str, jpegs: list[bytes], repeats: int) -> Row:
    processor = CLIPImageProcessorPil()
    train, evaluate = ImageTransform(processor, train=True), ImageTransform(processor, train=False)

    def training() -> list[torch.Tensor]:
        generators = (keyed_generator(0, CROP, 0, place) for place in range(len(jpegs)))
        return [train(decode_image(jpeg, train.min_side), rng) for jpeg, rng in zip(jpegs, generators, strict=False)]

    def evaluation() -> list[torch.Tensor]:
        return [evaluate(decode_image(jpeg)) for jpeg in jpegs]

    def clip_processor() -> list[torch.Tensor]:
        return [_processed(processor, jpeg) for jpeg in jpegs]

    batch = torch.stack(evaluation())
    pixels = normalize(batch, evaluate.mean, evaluate.std, evaluate.rescale)
    seconds = alternate(
        {
            "training": training,
            "evaluation": evaluation,
            "clip_processor": clip_processor,
            "normalize": lambda: normalize(batch, evaluate.mean, evaluate.std, evaluate.rescale),
        },
        repeats,
        _CPU,
    )
    widths = [Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs]
    return {
        "size": size,
        "files": len(jpegs),
        "kilobytes_a_file": statistics.mean(map(len, jpegs)) / 1e3,
        "bits_a_pixel": statistics.mean(8 * len(jpeg) / (w * h) for jpeg, (w, h) in zip(jpegs, widths, strict=True)),
        **_rates(seconds, len(jpegs)),
        "evaluation_max_difference": float((pixels - torch.cat(clip_processor())).abs().max()),
    }


def _processed(processor: CLIPImageProcessorPil, jpeg: bytes) -> torch.Tensor:
    """What the stock pipeline makes of a file: float32 (1, 3, 224, 224)."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    return processor(images=image, return_tensors="pt")["pixel_values"]


def _rates(seconds: dict[str, list[float]], count: int) -> Row:
    """Samples a second (median of the rounds), and ratios to the processor, round by round: median, lowest, highest.

    Our paths end in uint8; `with_normalize` adds what then follows on the device, done on this core.
    """
    row: Row = {f"{name}_a_second": count / statistics.median(times) for name, times in seconds.items()}
    for name in ("training", "evaluation"):
        for suffix, extra in (("", [0.0] * len(seconds[name])), ("_with_normalize", seconds["normalize"])):
            rounds = zip(seconds["clip_processor"], seconds[name], extra, strict=True)
            ratios = [theirs / (ours + more) for theirs, ours, more in rounds]
            row[f"{name}{suffix}_speedup"] = statistics.median(ratios)
            if not suffix:
                row[f"{name}_speedup_range"] = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return row


# Loader


def _cycle(jpegs: list[bytes], count: int) -> list[bytes]:
    return [jpegs[i % len(jpegs)] for i in range(count)]


def _mixed(small: list[bytes], large: list[bytes]) -> list[bytes]:
    """What a worker meets in a long run: several sizes, and files that cannot be decoded."""
    records = _cycle(small, _MIXED_RECORDS)
    records[::_LARGE_EVERY] = _cycle(large, len(records[::_LARGE_EVERY]))
    records[1::_BROKEN_EVERY] = [jpeg[: len(jpeg) // 2] for jpeg in records[1::_BROKEN_EVERY]]
    return records


def _write_tar(path: Path, jpegs: list[bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for i, jpeg in enumerate(jpegs):
            caption = f"a photo of thing {i}, {i % 7} of them".encode()
            for extension, data in (("jpg", jpeg), ("txt", caption)):
                info = tarfile.TarInfo(f"{i:06d}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def _loader(archive: Path, batch_size: int, workers: int) -> PairLoader:
    tokenizer = train_tokenizer(["a photo of thing 0 1 2 3 4 5 6 7 8 9, of them"], vocab_size=600, context=77)
    collator = PairCollator(tokenizer, ImageTransform(CLIPImageProcessorPil(), train=True), context_length=77)
    source = open_pairs(str(archive))
    return PairLoader(source, collator, batch_size=batch_size, rank=0, world_size=1, seed=0, num_workers=workers)


def _loader_cases(archive: Path, options: argparse.Namespace) -> list[Row]:
    """Full speed; then the share of time that is spent waiting, with steps as long as one core needs for a batch."""
    rows: list[Row] = []
    step = 0.0
    for workers in options.workers:
        rate, _ = _consume(archive, options, workers, 0.0)
        step = step or options.batch_size * max(workers, 1) / rate
        _, share = _consume(archive, options, workers, step)
        rows.append(
            {
                "workers": workers,
                "samples_a_second": rate,
                "samples_a_second_and_core": rate / max(workers, 1),
                "step_milliseconds": 1e3 * step,
                "wait_share": share,
            }
        )
    return rows


def _consume(archive: Path, options: argparse.Namespace, workers: int, step: float) -> tuple[float, float]:
    """Samples a second, and share of the time that was spent waiting, of a consumer whose step takes `step` seconds."""
    loader = _loader(archive, options.batch_size, workers)
    batches = iter(loader)
    for _ in range(3 * max(workers, 1)):  # workers have started, and are as far ahead as they go
        next(batches)
    samples, waited, started = 0, 0.0, time.perf_counter()
    while time.perf_counter() - started < options.seconds:
        samples += len(next(batches)["keys"])
        waited += loader.last_wait_seconds
        time.sleep(step)
    elapsed = time.perf_counter() - started
    batches.close()
    return samples / elapsed, waited / elapsed


# Memory


def _memory_case(archive: Path, options: argparse.Namespace) -> Row:
    """Resident memory of a worker process of the loader, in MiB, while it makes `memory_samples` samples."""
    batches = iter(_loader(archive, options.batch_size, 1))
    readings = list(_watch(batches, options.batch_size, options.memory_samples))
    batches.close()
    samples, megabytes = (np.array(column, dtype=float) for column in zip(*readings, strict=True))
    slope = np.polyfit(samples, megabytes, 1)[0] if len(readings) > 1 else 0.0
    return {
        "samples": int(samples[-1]),
        "start_mib": float(megabytes[0]),
        "highest_mib": float(megabytes.max()),
        "end_mib": float(megabytes[-1]),
        "growth_mib": float(megabytes[-1] - megabytes[0]),
        "slope_mib_a_100000_samples": float(slope * 100_000),
    }


def _watch(batches: Iterator[dict[str, Any]], batch_size: int, total: int) -> Iterator[tuple[int, float]]:
    """(Samples read, MiB of the worker), from the end of the warm-up on."""
    warm_up = min(_WARM_UP, total // 2)
    done, due = 0, warm_up
    others = set(multiprocessing.active_children())
    while done < total:
        next(batches)
        worker = next(process for process in multiprocessing.active_children() if process not in others)
        done += batch_size
        if done >= min(due, total):
            yield done, _resident_mib(worker.pid)
            due = done + _MEMORY_STEP


def _resident_mib(process: int) -> float:
    """Memory of a process without what it shares: finished batches lie in shared memory until they are consumed."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        raise InputError("Memory is read from /proc, as Linux has it. Use --memory_samples 0 here.")
    values = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return sum(int(values[name].split()[0]) for name in ("RssAnon", "RssFile")) / 2**10


DATA = Benchmark("decoding and transforms against CLIPImageProcessor; loader; memory", _data_flags, benchmark_data)
