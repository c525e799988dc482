"""How the steps of a reproduction run: on the paper's data with GPUs, or on a stand-in folder with a tiny model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce_tables import VALIDATION, Row

from ncu_hf.checkpoint import read_json
from ncu_hf.config import GLOBAL_BATCH_SIZE
from ncu_hf.data.sources.registry import KNOWN_SETS
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.registry import SUITES

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = "openai/clip-vit-base-patch32"
# Rows that a process encodes at a time. Changes memory and speed, never the gradient.
CHUNK_SIZE = 256

Words = tuple[str, ...]


def flags(**values: Any) -> Words:
    """`flags(bf16="true")` -> `("--bf16", "true")`; what is `None` is left out."""
    return tuple(word for name, value in values.items() if value is not None for word in (f"--{name}", str(value)))


def program(name: str) -> str:
    """Path of a recipe or script, as one would type it here."""
    return os.path.relpath(ROOT / name)


@dataclass(frozen=True)
class PaperSetting:
    """The paper's data, streamed or downloaded from the Hub, on GPUs.

    Args:
        output (`Path`): Where everything is written.
        processes (`int`, *optional*): One a GPU; as `accelerate_config.yaml` says if not given.
        chunk_size (`int`, *optional*): By default `CHUNK_SIZE`, where a process has more rows.
    """

    output: Path
    processes: int | None = None
    chunk_size: int | None = None
    suffix = ""

    def launcher(self) -> Words:
        config = os.path.relpath(ROOT / "accelerate_config.yaml")
        return ("accelerate", "launch", *flags(config_file=config, num_processes=self.processes))

    def memory(self) -> Words:
        """Flags of a training that change how it runs, not what it learns."""
        crowded = self.processes is not None and GLOBAL_BATCH_SIZE // self.processes > CHUNK_SIZE
        return flags(chunk_size=self.chunk_size or (CHUNK_SIZE if crowded else None))

    def reference(self, row: Row) -> Words:
        """The schedule is that of `recipes/clip.py`, the batch the paper's."""
        size = {"global_batch_size": GLOBAL_BATCH_SIZE, "dataloader_num_workers": 8}
        return flags(model_config=row[1], tokenizer=TOKENIZER, train_data=row[0], bf16="true", **size)

    def fine_tuning(self, row: Row) -> Words:
        """Nothing: data and schedule are the recipe's."""
        return ()

    def subset(self, pairs: int) -> int:
        return pairs

    def evaluation(self, suite: Words, row: Row) -> Words:
        if suite == (VALIDATION,):  # of which the paper prints no number
            return ("--suite", str(self.validation()))
        return ("--suite", *suite, *flags(against=f"paper/{row[0]}/{row[1]}"))

    def validation(self) -> Path:
        """Folder of the validation tars of CC3M."""
        return self.output / "data" / VALIDATION

    def download(self) -> Words:
        """Command that fetches them."""
        wanted = ("--repo-type", "dataset", "--include", f"{VALIDATION}-*.tar")
        return ("hf", "download", KNOWN_SETS["cc3m"].repo, *wanted, "--local-dir", str(self.validation()))

    def title(self, what: str) -> str:
        return what


@dataclass(frozen=True)
class StandInSetting:
    """What `stand_in.py` wrote, a tiny model and a few steps, on the CPU. All names say that these are no results.

    Args:
        output (`Path`): Where everything is written, in a folder `stand-in`.
        folder (`Path`): The stand-in data.
        pairs (`int`): Training pairs of each of its sets.
        processes (`int`): On the CPU.
    """

    output: Path
    folder: Path
    pairs: int
    processes: int = 1
    suffix = "-stand-in"

    @classmethod
    def of(cls, output: Path, folder: Path, processes: int | None) -> StandInSetting:
        """Read what is in `folder`.

        Raises:
            InputError: nothing that `stand_in.py` wrote.
        """
        manifest = folder / "stand-in.json"
        if not manifest.is_file():
            raise InputError(f"--stand_in {folder}: no stand-in data. Write it: python scripts/stand_in.py {folder}")
        return cls(output / "stand-in", folder, read_json(manifest)["pairs"], processes or 1)

    def launcher(self) -> Words:
        return ("python",) if self.processes == 1 else ("torchrun", *flags(nproc_per_node=self.processes))

    def memory(self) -> Words:
        return ()

    def reference(self, row: Row) -> Words:
        return (*flags(model_config="tiny", tokenizer=self.folder / "tokenizer"), *self._training(row))

    def fine_tuning(self, row: Row) -> Words:
        return (*self._training(row), *flags(negative_prompt_max_steps=2))

    def _training(self, row: Row) -> Words:
        """The same columns and the same way of reading as those of the real set."""
        known = KNOWN_SETS[row[0]]
        tokenizer = known.caption_tokenizer and self.folder / "tokenizer"
        files = "*.parquet" if tokenizer else f"{row[0]}-train-*.tar"
        stored = {"image_column": known.image_column, "caption_column": known.caption_column}
        size = {"global_batch_size": 32, "max_steps": 4, "warmup_steps": 1, "logging_steps": 2}
        return flags(
            train_data=self.folder / row[0] / files,
            **stored,
            caption_tokenizer=tokenizer,
            streaming="true",
            train_pairs=self.pairs,
            **size,
            use_cpu="true",
            bf16="false",
            dataloader_num_workers=0,
        )

    def subset(self, pairs: int) -> int:
        """The same share of what there is."""
        return round(pairs / KNOWN_SETS["cc3m"].train_pairs * self.pairs)

    def evaluation(self, suite: Words, row: Row) -> Words:
        names = [name for spec in suite for name in SUITES.get(spec, [spec])]
        specs = [str(self._set(name)) for name in names]
        probe = ("--probe",) if "probe" in suite else ()
        return ("--suite", *specs, *probe, "--use_cpu", "--no_cache")

    def _set(self, name: str) -> Path:
        return (self.folder if name == VALIDATION else self.folder / "sets") / f"{name}{self.suffix}"

    def download(self) -> Words:
        """Nothing to fetch."""
        return ()

    def title(self, what: str) -> str:
        return f"STAND-IN DATA, no result: {what}"


Setting = PaperSetting | StandInSetting
