"""Images and texts in, vectors out: the one thing that every evaluation needs from a model.

The work is shared by all processes of a run, batch by batch. A batch holds the same rows for any number of processes,
so that the vectors are the same, and with them every number that is computed from them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import PIL
import torch
from PIL import Image
from torch import Tensor

from ncu_hf.distributed import broadcast_json, broadcast_tensor, gather_json, world
from ncu_hf.errors import InputError
from ncu_hf.evaluation.cache import ENCODER_VERSION, EmbeddingCache, digest, model_digest
from ncu_hf.evaluation.pixels import PixelBatch, StoredImage, load_pixels
from ncu_hf.evaluation.progress import Progress
from ncu_hf.evaluation.sharing import cut, gather_batches, own_share

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

# A reason that may pass: what is measured now stands, but is not kept.
UNREADABLE = "unreadable_file"
Entry = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and notes of the cache


class EncodedImages(NamedTuple):
    """Vectors of N images.

    Attributes:
        embeds (`Tensor`): (N, D) float32 on the CPU, projected, rows of length 1.
        pooled (`Tensor`): (N, H) float32 on the CPU, output of the vision tower before the projection.
        faults (`dict[int, str]`): Rows whose image could not be decoded, with the reason; their vectors are 0.
    """

    embeds: Tensor
    pooled: Tensor
    faults: dict[int, str]

    @property
    def usable(self) -> Tensor:
        """(K,) int64: rows without fault."""
        return torch.tensor([row for row in range(len(self.embeds)) if row not in self.faults], dtype=torch.long)


def projected(output) -> Tensor:
    """Projected features (B, D), not normalised, of `get_text_features`.

    transformers 5 returns an output object whose `pooler_output` holds them, older versions the tensor itself.
    """
    return output if isinstance(output, Tensor) else output.pooler_output


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient, no TF32: numbers that are published are computed in float32.

    Afterwards every submodule has the mode that it had before.
    """
    modes = [(module, module.training) for module in model.modules()]
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
        for module, mode in modes:
            module.training = mode


class ClipEncoder:
    """Encodes with any stock `CLIPModel`. With several processes every call is a collective.

    Args:
        model (`CLIPModel`): Used as it is. Its training mode is the same before and after every call.
        processor (`CLIPProcessor`): Tokenizer and image processor of the model.
        device (`torch.device` or `str`, *optional*): The model is moved there; it stays where it is by default.
        batch_size (`int`, *optional*, defaults to 256): Images or texts a forward pass.
        workers (`int`, *optional*, defaults to 0): Processes that decode images ahead of the model.
        cache (`EmbeddingCache`, *optional*): Where vectors are kept; without it nothing is.

    Raises:
        InputError: the processor's images have another size than the vision tower reads.
    """

    def __init__(
        self,
        model: CLIPModel,
        processor: CLIPProcessor,
        *,
        device: torch.device | str | None = None,
        batch_size: int = 256,
        workers: int = 0,
        cache: EmbeddingCache | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        check_image_size(model, processor, model.name_or_path or "The model")
        self.model = model if device is None else model.to(device)
        self.processor = processor
        self.batch_size = batch_size
        self.workers = workers
        self.cache = cache

    @property
    def width(self) -> int:
        """Embedding width D."""
        return self.model.config.projection_dim

    @property
    def pooled_width(self) -> int:
        """Width H of the vision tower."""
        return self.model.config.vision_config.hidden_size

    @property
    def scale(self) -> float:
        """Factor s = exp(logit_scale) between a cosine and a logit."""
        return self.model.logit_scale.detach().float().exp().item()

    @functools.cached_property
    def model_digest(self) -> str:
        """SHA-256 of the model, see `ncu_hf.evaluation.cache.model_digest`; it must not train in between."""
        return model_digest(self.model)

    @functools.cached_property
    def vision_digest(self) -> str:
        """SHA-256 of the vision tower alone: images are kept by it, whatever becomes of texts and projections."""
        return model_digest(self.model.vision_model)

    def encode_images(self, images: Sequence[StoredImage], stamp: str | None = None) -> EncodedImages:
        """Embed images; a few batches of them are in memory at a time.

        Args:
            images (`Sequence`): Encoded bytes, paths, or `PIL.Image.Image`.
            stamp (`str`, *optional*): Identifies the content of `images` (see `Origin.stamp`); with it the vectors are
                cached.

        Returns:
            [`EncodedImages`].
        """
        if stamp is None or self.cache is None:
            pooled, faults = self._pool_images(images)
            return EncodedImages(self._project(pooled), pooled, faults)
        key = self._key("images", {"images": stamp, "n": len(images), "transform": self._transform()})
        tensors, notes = self._cached(key, lambda: self._to_cache(*self._pool_images(images)))
        pooled, faults = tensors["pooled"], {int(row): why for row, why in notes.items()}
        return EncodedImages(self._project(pooled), pooled, faults)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Embed texts, each cut to the context of the model with its end token kept.

        Texts are sorted by length and padded to the longest of their batch: causal attention makes that exact.

        Args:
            texts (`list[str]`): M texts.

        Returns:
            `Tensor` (M, D): float32, on the CPU, rows of length 1, in the order of `texts`.
        """
        if not texts:
            return torch.empty(0, self.width)
        rows = self._token_ids(texts)
        if self.cache is None:
            return self._encode_tokens(rows)
        tokens = hashlib.sha256("\n".join(" ".join(map(str, row)) for row in rows).encode()).hexdigest()
        key = self._key("texts", {"tokens": tokens, "n": len(rows)})
        return self._cached(key, lambda: ({"embeds": self._encode_tokens(rows)}, {}))[0]["embeds"]

    # Encoding

    def _pool_images(self, images: Sequence[StoredImage]) -> tuple[Tensor, dict[int, str]]:
        """Output of the vision tower (N, H), before the projection, and the faults by row."""
        batches = cut(range(len(images)), self.batch_size)
        pooled, faults = [], {}
        with self._share(batches, "images") as (mine, progress):
            for batch in load_pixels(images, mine, self.processor.image_processor, self.workers):
                pooled.append(self._vision(batch).float().cpu())
                faults |= batch.faults
                progress.update(len(batch.rows))
        device = self.model.device
        shared = dict(pair for part in gather_json(list(faults.items()), device) for pair in part)
        return gather_batches(pooled, batches, self.pooled_width, device), dict(sorted(shared.items()))

    def _project(self, pooled: Tensor) -> Tensor:
        """(N, H) -> unit vectors (N, D); 0 stays 0, since the projection has no bias."""
        model = self.model
        with evaluating(model):
            # Copied: how a tensor lies in memory, which a file decides, would show in the last digits of a product.
            parts = [
                _unit(model.visual_projection(part.to(model.device, model.dtype, copy=True)))
                for part in pooled.split(self.batch_size)
            ]
        return torch.cat(parts) if parts else torch.empty(0, self.width)

    def _vision(self, batch: PixelBatch) -> Tensor:
        """Pooled features (B, H) of one batch, in the model's precision; 0 where there is no image."""
        model = self.model
        pooled = torch.zeros(len(batch.rows), self.pooled_width, dtype=model.dtype, device=model.device)
        if batch.places:
            pixels = batch.pixel_values.to(model.device, model.dtype)
            pooled[batch.places] = model.vision_model(pixel_values=pixels).pooler_output
        return pooled

    def _encode_tokens(self, rows: list[list[int]]) -> Tensor:
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        batches = cut(order, self.batch_size)
        parts = []
        with self._share(batches, "texts") as (mine, progress):
            for chosen in mine:
                inputs = self._padded([rows[index] for index in chosen])
                parts.append(_unit(projected(self.model.get_text_features(**inputs))))
                progress.update(len(chosen))
        return gather_batches(parts, batches, self.width, self.model.device)

    @contextlib.contextmanager
    def _share(self, batches: list[Sequence[int]], what: str) -> Iterator[tuple[list[Sequence[int]], Progress]]:
        """The batches of this process, and a count of what is done of them."""
        mine = own_share(batches)
        progress = Progress(sum(map(len, mine)), what, shown=world()[0] == 0)
        try:
            with evaluating(self.model):
                yield mine, progress
        finally:
            progress.close()

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        context = self.model.config.text_config.max_position_embeddings
        tokenizer = self.processor.tokenizer
        return tokenizer(list(texts), truncation=True, max_length=context, padding=False)["input_ids"]

    def _padded(self, rows: list[list[int]]) -> dict[str, Tensor]:
        """`rows` as `input_ids` and `attention_mask` (B, longest), padded with more end tokens.

        Pooling looks for the first end token, or, in old configurations, for the first highest id, which a padding
        token of its own may have.
        """
        longest = max(map(len, rows))
        ids = [row + row[-1:] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        device = self.model.device
        return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}

    # Caching

    def _cached(self, key: dict[str, Any], encode: Callable[[], Entry]) -> Entry:
        """The entry of `key`, read by the first process, or what `encode` gives, written by it."""
        first = world()[0] == 0
        entry = self.cache.load(key) if first else None
        shapes = broadcast_json(None if entry is None else _shapes(entry[0]), self.model.device)
        if shapes is None:
            entry = encode()
            if first and UNREADABLE not in entry[1].values():
                self.cache.save(key, *entry)
            return entry
        notes = broadcast_json(entry[1] if first else None, self.model.device)
        stored = {
            name: broadcast_tensor(entry[0][name] if first else None, shape, self.model.device)
            for name, shape in shapes.items()
        }
        return stored, notes

    def _key(self, kind: str, what: dict[str, Any]) -> dict[str, Any]:
        weights = self.vision_digest if kind == "images" else self.model_digest
        how = {"model": weights, "batch_size": self.batch_size, "device": self.model.device.type}
        return {"version": ENCODER_VERSION, "kind": kind, "libraries": _libraries(), **how, **what}

    def _transform(self) -> str:
        # With and without torchvision one folder gives two classes, whose values differ and whose settings do not.
        processor = self.processor.image_processor
        return digest({"class": type(processor).__name__, "settings": processor.to_dict()})

    @staticmethod
    def _to_cache(pooled: Tensor, faults: dict[int, str]) -> Entry:
        return {"pooled": pooled}, {str(row): why for row, why in faults.items()}


def check_image_size(model: CLIPModel, processor: CLIPProcessor, name: str) -> None:
    """Raises `InputError`, which names the model so, if the processor's images are not those of its vision tower."""
    size = model.config.vision_config.image_size
    blank = Image.new("RGB", (2 * size, 3 * size))
    *_, height, width = processor.image_processor(images=blank, return_tensors="pt")["pixel_values"].shape
    if (height, width) != (size, size):
        raise InputError(
            f"{name}: its vision tower reads images of {size} x {size} pixels, its image processor makes them "
            f"{width} x {height}; save the processor of this model beside it."
        )


def _libraries() -> dict[str, str]:
    """Versions of what decides about the values, in their last digits at least."""
    import transformers  # not above: its import takes seconds, and whoever has a model has it

    return {"torch": torch.__version__, "transformers": transformers.__version__, "pillow": PIL.__version__}


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}
