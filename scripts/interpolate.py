"""Write the models between two models: weighted means of their weights (WiSE-FT, Wortsman et al. 2022).

    python scripts/interpolate.py openai/clip-vit-base-patch32 outputs/mine --weights 0.25 0.5 0.75 --output_dir mixed
    python scripts/evaluate.py --models mixed/0.25 mixed/0.5 mixed/0.75 --suite retrieval

The first is the reference, the second what fine-tuning made of it; a weight is that of the second. Each model is a
plain CLIPModel with the processor of the second, in a folder that is named by its weight.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from transformers import CLIPModel, CLIPProcessor
from transformers.utils import logging as transformers_logging

from ncu_hf.checkpoint import write_atomically
from ncu_hf.cli import run_main, script_parser
from ncu_hf.errors import InputError
from ncu_hf.interpolation import interpolate, weight_key
from ncu_hf.loading import load_clip, load_model, pinned


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("reference", metavar="A", help="folder or Hub id of the model at weight 0")
    parser.add_argument("result", metavar="B", help="folder or Hub id of the model at weight 1")
    parser.add_argument("--weights", type=float, nargs="+", required=True, metavar="W", help="of B, in [0, 1]")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="a folder a weight goes here")
    parser.add_argument("--overwrite", action="store_true", help="replace models that an earlier call wrote")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    transformers_logging.disable_progress_bar()
    folders = {weight: arguments.output_dir / weight_key(weight) for weight in arguments.weights}
    check(folders, arguments.overwrite)
    reference = load_clip(arguments.reference, pinned(arguments.reference, flag="A"), flag="A")
    result = load_model(arguments.result, flag="B")
    for weight, folder in folders.items():
        # Refuses two shapes at the first weight, when nothing is written.
        model = interpolate(reference, result.clip, weight)
        write_atomically(folder, partial(save, model, result.processor))
        print(f"Written: {folder}")


def check(folders: dict[float, Path], overwrite: bool) -> None:
    """Refuse weights that make no sense, and folders that are there.

    Raises:
        InputError: names the weight or the folder.
    """
    for weight, folder in folders.items():
        if not 0 <= weight <= 1:
            raise InputError(f"--weights {weight:g}: a weight lies in [0, 1].")
        if folder.exists() and not (overwrite and (folder / "config.json").is_file()):
            raise InputError(f"{folder} exists; give another --output_dir, or --overwrite to replace a model.")


def save(model: CLIPModel, processor: CLIPProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    run_main(main)
