"""Rows -> batches."""

from ncu_hf.data.augmentation import augment_caption
from ncu_hf.data.collator import PairCollator
from ncu_hf.data.decoding import clean_caption, decode_image
from ncu_hf.data.health import DataHealth, TooManyBadRecords
from ncu_hf.data.loader.pair_loader import PairLoader
from ncu_hf.data.noise import NOISE_KINDS, Noise, inject_noise
from ncu_hf.data.partners import PartneredCollator
from ncu_hf.data.records import BadRecord, Located, PairSource, Record, Skipped
from ncu_hf.data.sources.open import check_readable, open_pairs, usable_captions
from ncu_hf.data.sources.registry import KNOWN_SETS
from ncu_hf.data.sources.remote import RemoteData, find_remote
from ncu_hf.data.sources.stream_source import StreamSource
from ncu_hf.data.transforms import ImageTransform, normalize

__all__ = [
    "KNOWN_SETS",
    "NOISE_KINDS",
    "BadRecord",
    "DataHealth",
    "ImageTransform",
    "Located",
    "Noise",
    "PairCollator",
    "PairLoader",
    "PairSource",
    "PartneredCollator",
    "Record",
    "RemoteData",
    "Skipped",
    "StreamSource",
    "TooManyBadRecords",
    "augment_caption",
    "check_readable",
    "clean_caption",
    "decode_image",
    "find_remote",
    "inject_noise",
    "normalize",
    "open_pairs",
    "usable_captions",
]
