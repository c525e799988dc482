"""Write drawn scenes in the formats of the paper's data sets, so that every command of reproduce.py runs offline.

    python scripts/stand_in.py stand-in
    python scripts/reproduce.py table1 --stand_in stand-in

What is in the folder has the formats of the real data and nothing else of them. All names end in `-stand-in`.

    stand-in.json                       what is here; scripts/reproduce.py reads it
    tokenizer/                          trained on the captions
    cc3m/ cc12m/                        tars of jpg, txt and json, captions of a share of the pairs shuffled
    yfcc15m-r/                          parquet files, captions as token ids
    cc3m-validation-stand-in/           tars of jpg and txt, clean
    sets/cifar10-stand-in/ ...          the evaluation sets, in the layout of clip-benchmark
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from transformers import CLIPTokenizer

from ncu_hf.checkpoint import write_atomically, write_json
from ncu_hf.cli import run_main, script_parser
from ncu_hf.data.noise import Noise, inject_noise
from ncu_hf.data.scenes import ATTRIBUTES, Scene, draw_scene
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.class_names import NAMES_FILE, TEMPLATES_FILE
from ncu_hf.evaluation.sets.registry import BENCHMARK_SETS
from ncu_hf.evaluation.sets.webdataset import COUNT_FILE, RETRIEVAL, TEST, TRAIN, TYPE_FILE
from ncu_hf.reference import PRESETS, train_tokenizer

SUFFIX = "-stand-in"
MANIFEST = "stand-in.json"
TARS = ("cc3m", "cc12m")
PARQUET = "yfcc15m-r"
SHARDS = 4
VOCABULARY = 800
# So that the smallest part of Figure 4, a sixth, holds one of the batches of 32 that reproduce.py makes.
LEAST_PAIRS = 192
# As MSCOCO: five captions an image, and six of a few.
CAPTIONS, SIXTH_OF_EVERY = 5, 10
WORDINGS = (
    "a {size} {color} {shape} {relation} another shape",
    "in the {background}, a {color} {shape}",
    "the {size} {shape} is {color}",
    "another shape and a {color} {shape} in the {background}",
    "there is a {shape} {relation} something",
)

# Content of a sample by extension.
Sample = dict[str, bytes]
T = TypeVar("T")


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to write; must be new")
    parser.add_argument("--pairs", type=int, default=512, help="training pairs of each data set")
    parser.add_argument("--images", type=int, default=40, help="images of each split of an evaluation set")
    parser.add_argument("--noise_share", type=float, default=0.3, help="share of the pairs with shuffled captions")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the shuffle")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    for name, least in (("pairs", LEAST_PAIRS), ("images", SIXTH_OF_EVERY)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name} must be at least {least}, got {getattr(arguments, name)}.")
    if arguments.folder.exists():
        raise InputError(f"{arguments.folder} exists; give a new folder.")
    settings = {name: getattr(arguments, name) for name in ("pairs", "images", "noise_share", "seed")}
    write_atomically(arguments.folder, partial(write_stand_in, **settings))
    print(f"Written: {arguments.folder}. Drawn scenes in the paper's formats: never results of the paper's data.")


def write_stand_in(folder: Path, *, pairs: int, images: int, noise_share: float, seed: int) -> None:
    """Write all of it to the existing folder `folder`; what it means is in the docstring of this file.

    Raises:
        InputError: `noise_share` is no share.
    """
    scenes = draw(seed, pairs)
    captions, mismatched, _ = inject_noise([scene.caption for scene in scenes], Noise(noise_share, seed))
    tokenizer = train_tokenizer(captions, vocab_size=VOCABULARY, context=PRESETS["tiny"].context)
    tokenizer.save_pretrained(folder / "tokenizer")
    for name in TARS:
        write_tars(folder / name, f"{name}-train", pair_samples(scenes, captions, mismatched.tolist()))
    write_token_parquet(folder / PARQUET, scenes, captions, tokenizer)
    validation = [{"jpg": jpeg(scene.image), "txt": scene.caption.encode()} for scene in draw(seed + 1, images)]
    write_tars(folder / f"cc3m-validation{SUFFIX}", "cc3m-validation", validation)
    for number, (name, known) in enumerate(BENCHMARK_SETS.items()):
        attribute = list(ATTRIBUTES)[number % len(ATTRIBUTES)]
        place, first = folder / "sets" / f"{name}{SUFFIX}", seed + 2 * (number + 1)
        if known.classes is None:
            write_retrieval_set(place, draw(first, images))
        else:
            write_labelled_set(place, attribute, {TEST: draw(first, images), TRAIN: draw(first + 1, images)})
    write_json(folder / MANIFEST, {"pairs": pairs, "images": images, "noise_share": noise_share, "seed": seed})


def draw(seed: int, count: int) -> list[Scene]:
    return [draw_scene(seed, index) for index in range(count)]


def pair_samples(scenes: list[Scene], captions: list[str], mismatched: list[bool]) -> Iterable[Sample]:
    """Pairs as the training tars hold them; the json tells which captions are not their image's."""
    for scene, caption, wrong in zip(scenes, captions, mismatched, strict=True):
        about = {"key": scene.key, "caption": caption, "status": "success", "mismatched": wrong}
        yield {"jpg": jpeg(scene.image), "txt": caption.encode(), "json": json.dumps(about).encode()}


def write_token_parquet(folder: Path, scenes: list[Scene], captions: list[str], tokenizer: CLIPTokenizer) -> None:
    """As YFCC15M-R: images as structs of bytes and path, captions as token ids."""
    folder.mkdir()
    rows = list(zip(scenes, captions, strict=True))
    for number, part in enumerate(shards(rows)):
        columns = {
            "images": [{"bytes": jpeg(scene.image), "path": f"{scene.key}.jpg"} for scene, _ in part],
            "texts": [tokenizer(caption, truncation=True)["input_ids"] for _, caption in part],
        }
        pq.write_table(pa.table(columns), folder / f"train-{number:05d}-of-{SHARDS:05d}.parquet")


def write_labelled_set(folder: Path, attribute: str, splits: dict[str, list[Scene]]) -> None:
    """One attribute of the scenes as classes."""
    classes, templates = ATTRIBUTES[attribute]
    for split, scenes in splits.items():
        labels = (str(classes.index(scene.attributes[attribute])).encode() for scene in scenes)
        samples = ({"cls": label, "jpg": jpeg(scene.image)} for label, scene in zip(labels, scenes, strict=True))
        write_tars(folder / split, "", samples)
    (folder / NAMES_FILE).write_text("\n".join(classes), encoding="utf-8")
    (folder / TEMPLATES_FILE).write_text("\n".join(templates), encoding="utf-8")


def write_retrieval_set(folder: Path, scenes: list[Scene]) -> None:
    """Five captions an image, one a line; six of every tenth image."""
    texts = (
        [scene.caption, *(wording.format(**scene.attributes) for wording in WORDINGS)][
            : CAPTIONS + (index % SIXTH_OF_EVERY == 0)
        ]
        for index, scene in enumerate(scenes)
    )
    samples = (
        {"jpg": jpeg(scene.image), "txt": "\n".join(lines).encode()} for scene, lines in zip(scenes, texts, strict=True)
    )
    write_tars(folder / TEST, "", samples)
    (folder / TYPE_FILE).write_text(RETRIEVAL, encoding="utf-8")


def write_tars(folder: Path, prefix: str, samples: Iterable[Sample]) -> None:
    """Shards `prefix-0000.tar`, ... as CC3M has them, or without prefix `0.tar`, ... and their number."""
    folder.mkdir(parents=True)
    parts = shards(list(enumerate(samples)))
    for number, part in enumerate(parts):
        path = folder / (f"{prefix}-{number:04d}.tar" if prefix else f"{number}.tar")
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for row, sample in part:
                for extension, content in sample.items():
                    member = tarfile.TarInfo(f"{row:09d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    if not prefix:
        (folder / COUNT_FILE).write_text(str(len(parts)), encoding="utf-8")


def shards(rows: Sequence[T]) -> list[Sequence[T]]:
    """`SHARDS` parts as equal as possible."""
    bounds = [len(rows) * number // SHARDS for number in range(SHARDS + 1)]
    return [rows[first:end] for first, end in pairwise(bounds)]


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    run_main(main)
