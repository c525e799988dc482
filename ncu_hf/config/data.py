"""Settings of the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from ncu_hf.errors import InputError


@dataclass
class DataArguments:
    """Image-text pairs to train and to evaluate on."""

    train_data: str | None = field(
        default=None,
        metadata={
            "help": "cc3m, cc12m or yfcc15m-r (streamed from the Hub), CSV, parquet, WebDataset tars (glob, braces, "
            "URL), image folder, or Hub data set."
        },
    )
    eval_data: str | None = field(
        default=None,
        metadata={
            "help": "Clean pairs for retrieval, in the same formats, but indexed: no URLs, and of a Hub data set every "
            "split is downloaded."
        },
    )
    eval_sets: str | None = field(
        default=None,
        metadata={
            "help": "Further sets to measure on before and after, separated by commas: suites (paper, retrieval), "
            "names (cifar10), Hub ids (clip-benchmark/wds_...), or paths (labels.csv with classes.json, ...)."
        },
    )
    data_format: str | None = field(
        default=None, metadata={"help": "csv, parquet, webdataset, folder or hub; guessed from the name if not given."}
    )
    image_column: str = field(default="image_path", metadata={"help": "Column of the image (released code's name)."})
    caption_column: str = field(default="text_content", metadata={"help": "Column of the caption (released code's)."})
    eval_image_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the image in --eval_data and in pairs of --eval_sets; by default --image_column where "
            "they have it, else image or another usual name."
        },
    )
    eval_caption_column: str | None = field(default=None, metadata={"help": "The same for the caption."})
    delimiter: str = field(default=",", metadata={"help": "Delimiter of a CSV."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that relative image paths start from; the CSV's own if not given."}
    )
    split: str = field(default="train", metadata={"help": "Split of a Hub data set."})
    eval_split: str = field(default="test", metadata={"help": "Split of a Hub data set that is evaluated on."})
    data_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a Hub data set to train on."}
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub data set to train on, if it has several."}
    )
    streaming: bool | None = field(
        default=None,
        metadata={
            "help": "Read training pairs of the Hub without downloading them, and tars and parquet files without an "
            "index, forwards. Default: true for sets that are known by name, else false; URLs are always read so, CSV "
            "and image folders never."
        },
    )
    train_pairs: int | None = field(
        default=None,
        metadata={
            "help": "Number of pairs of a streamed set as a whole, before --train_subset, where it is not known: the "
            "steps of an epoch are counted by it."
        },
    )
    train_subset: str | None = field(
        default=None,
        metadata={
            "help": "Train on a random part: a share (0.5 or 50%%) or a number of pairs (500000). Of a stream whole "
            "shards are taken, the last one cut."
        },
    )
    subset_seed: int = field(default=0, metadata={"help": "Seed of the choice of that part."})
    data_timeout: float = field(
        default=300.0, metadata={"help": "Seconds without a byte from a stream after which the run stops."}
    )
    caption_tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer of captions that are stored as token ids (YFCC15M-R)."}
    )
    train_limit: int | None = field(
        default=None, metadata={"help": "Use only the first so many training pairs, of data that is not streamed."}
    )
    eval_limit: int | None = field(default=None, metadata={"help": "Use only the first so many evaluation pairs."})
    noise_share: float = field(
        default=0.0, metadata={"help": "Share of training pairs whose captions are made wrong, to study known noise."}
    )
    noise_seed: int = field(default=0, metadata={"help": "Seed of which pairs, and of what they get."})
    noise_kind: str = field(
        default="shuffled",
        metadata={
            "help": "What they get: captions of each other (shuffled), of the same class or nearly the same words "
            "(hard), a web text that fits no image (generic), or words of another caption for a part (partial)."
        },
    )
    noise_class_column: str | None = field(
        default=None,
        metadata={"help": "Column, or json field of tars, with the class of a pair, for --noise_kind hard."},
    )
    drop_mismatched: bool = field(
        default=False,
        metadata={"help": "Leave out the pairs that the noise made wrong: a bound for what forgetting them can bring."},
    )
    random_crop: bool = field(
        default=True, metadata={"help": "RandomResizedCrop of the training images (released code); else centre crop."}
    )
    crop_scale_min: float = field(default=0.5, metadata={"help": "Least area of a random crop (released code: 0.5)."})
    augment_negative_captions: bool = field(
        default=False,
        metadata={"help": "Randomly swap, delete and insert words in the captions of the negative branch (released)."},
    )
    max_bad_fraction: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the records cannot be used."}
    )

    def __post_init__(self):
        for name, value in (("noise_share", self.noise_share), ("max_bad_fraction", self.max_bad_fraction)):
            if not 0 <= value <= 1:
                raise InputError(f"--{name} is a share between 0 and 1, got {value}.")
        for name in ("noise_kind", "noise_class_column", "drop_mismatched"):
            value = getattr(self, name)
            if not self.noise_share and value != getattr(DataArguments, name):
                raise InputError(f"--{name} {value} has no effect without --noise_share; give that too, e.g. 0.3.")
        for name in ("train_pairs", "train_limit", "eval_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}.")
        for name in ("noise_seed", "subset_seed"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} must not be negative, got {getattr(self, name)}.")
        if not self.data_timeout > 0:
            raise InputError(f"--data_timeout must be positive (seconds), got {self.data_timeout}.")
        if not 0 < self.crop_scale_min <= 1:
            raise InputError(f"--crop_scale_min is a share of the area in (0, 1], got {self.crop_scale_min}.")
