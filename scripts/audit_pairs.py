"""List the pairs of a data set by how well a CLIP thinks that they match, the doubtful ones first.

    python scripts/audit_pairs.py --model outputs/ncu --data train.csv --output audit.csv

writes audit.csv (key, caption, clean_confidence, cosine, suggested_forget) and audit.png (the worst and best pairs).
The clean confidence of a pair depends on the other pairs of its batch; here it is the mean over several random batches.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ncu_hf.cli import run_main, script_parser, usable_device
from ncu_hf.config import FORMULATIONS, DataArguments, MethodArguments
from ncu_hf.data.decoding import clean_caption, decode_image
from ncu_hf.data.files import public_address
from ncu_hf.data.records import BadRecord, PairSource
from ncu_hf.data.sources.locate import is_url
from ncu_hf.data.sources.open import open_pairs
from ncu_hf.errors import InputError
from ncu_hf.evaluation.detection import batched_confidence
from ncu_hf.evaluation.encode import ClipEncoder
from ncu_hf.evaluation.sets.images import SourceImages
from ncu_hf.loading import load_model
from ncu_hf.reporting.audit import contact_sheet, rank_pairs, refuse_existing, write_audit

SHOWN = 12  # pairs of each kind in the picture


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub id of a CLIPModel with its processor")
    parser.add_argument("--data", required=True, help="csv, parquet, WebDataset tars, folder or Hub data set")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; the picture goes beside it as .png")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    parser.add_argument("--image_column", default=DataArguments.image_column)
    parser.add_argument("--caption_column", default=DataArguments.caption_column)
    parser.add_argument("--delimiter", default=DataArguments.delimiter, help="of a CSV")
    parser.add_argument("--split", default=DataArguments.split, help="of a Hub data set")
    parser.add_argument("--limit", type=int, help="only the first so many pairs")
    parser.add_argument(
        "--forget_ratio",
        type=float,
        default=MethodArguments.forget_ratio,
        help="share of pairs to mark as suggested_forget",
    )
    parser.add_argument(
        "--formulation", choices=FORMULATIONS, default=MethodArguments.formulation, help="of the clean confidence"
    )
    parser.add_argument("--batch_size", type=int, default=256, help="pairs that are compared with each other")
    parser.add_argument("--rounds", type=int, default=5, help="random batches of each pair")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded."""
    if not 0 <= arguments.forget_ratio < 1:
        raise InputError(f"--forget_ratio is a share in [0, 1), got {arguments.forget_ratio}.")
    if arguments.batch_size < 2:
        raise InputError(f"--batch_size must be at least 2, got {arguments.batch_size}.")
    if arguments.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {arguments.rounds}.")
    if is_url(arguments.data):
        raise InputError(f"--data {public_address(arguments.data)}: is only read as a stream. Download the files.")
    usable_device(arguments.device)
    if arguments.output.suffix != ".csv":
        raise InputError(f"--output must end in .csv, got {arguments.output}.")
    refuse_existing(
        dict.fromkeys([arguments.output, arguments.output.with_suffix(".png")], "--output"), arguments.overwrite
    )


class ReadablePairs:
    """The pairs of a source that can be used, with their embeddings; and why the others cannot."""

    def __init__(self, source: PairSource, encoder: ClipEncoder):
        self.source = source
        self.skipped: Counter[str] = Counter()
        rows, captions = self._read_captions()
        encoded, texts = encoder.encode_images(SourceImages(source, rows)), encoder.encode_texts(captions)
        self.skipped.update(encoded.faults.values())
        usable = encoded.usable.tolist()
        self.rows = [rows[place] for place in usable]
        self.captions = [captions[place] for place in usable]
        self.keys = [source[row].key for row in self.rows]
        self.image_embeds, self.text_embeds = encoded.embeds[usable], texts[usable]

    def _read_captions(self) -> tuple[list[int], list[str]]:
        rows, captions = [], []
        for row, stored in enumerate(self.source.captions()):
            try:
                captions.append(clean_caption(stored))
                rows.append(row)
            except BadRecord as error:
                self.skipped[error.reason] += 1
        return rows, captions

    def image(self, place: int) -> Image.Image:
        """Image of the usable pair number `place`."""
        return decode_image(self.source[self.rows[place]].image)


def score(arguments: argparse.Namespace, pairs: ReadablePairs, scale: float) -> tuple[Tensor, Tensor]:
    """Clean confidence and cosine (N,) of all usable pairs."""
    if len(pairs.rows) < 2:
        raise InputError(f"--data {arguments.data}: {len(pairs.rows)} readable pairs; comparing needs at least 2.")
    rounds = [
        batched_confidence(
            pairs.image_embeds,
            pairs.text_embeds,
            scale,
            batch_size=arguments.batch_size,
            seed=seed,
            formulation=arguments.formulation,
        )
        for seed in range(arguments.rounds)
    ]
    return torch.stack(rounds).mean(dim=0), (pairs.image_embeds * pairs.text_embeds).sum(dim=1)


def main() -> None:
    arguments = parse()
    check(arguments)
    source = open_pairs(
        arguments.data,
        streaming=False,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        delimiter=arguments.delimiter,
        split=arguments.split,
        limit=arguments.limit,
    )
    model = load_model(arguments.model)
    encoder = ClipEncoder(model.clip, model.processor, device=arguments.device)
    pairs = ReadablePairs(source, encoder)
    confidence, cosine = score(arguments, pairs, encoder.scale)
    ranked, order = rank_pairs(pairs.keys, pairs.captions, confidence, cosine, arguments.forget_ratio)
    write_audit(ranked, arguments.output)
    pictures = list(zip(order, ranked, strict=True))
    shown = min(SHOWN, len(pictures) // 2)
    sections = {"Lowest clean confidence": pictures[:shown], "Highest clean confidence": pictures[::-1][:shown]}
    contact_sheet(
        [(heading, [(pairs.image(place), pair) for place, pair in part]) for heading, part in sections.items()],
        arguments.output.with_suffix(".png"),
    )
    report(arguments, pairs, sum(pair.suggested_forget for pair in ranked))


def report(arguments: argparse.Namespace, pairs: ReadablePairs, suggested: int) -> None:
    """Say what was written and what was left out."""
    print(f"{len(pairs.keys)} pairs, {suggested} suggested to forget: {arguments.output}")
    print(f"worst and best pairs: {arguments.output.with_suffix('.png')}")
    for reason, count in pairs.skipped.most_common():
        print(f"left out: {count} ({reason})", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
