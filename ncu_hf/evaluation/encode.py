"""Images and texts in, unit vectors out: the one thing that every evaluation needs from a model."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

import PIL.Image
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPProcessor


def projected(output) -> Tensor:
    """Projected features (B, D), not normalised, of `get_image_features` or `get_text_features`.

    transformers 5 returns an output object whose `pooler_output` holds them, older versions the tensor itself.
    """
    return output if isinstance(output, Tensor) else output.pooler_output


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; afterwards every submodule has the mode that it had before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class ClipEncoder:
    """Encodes with any stock `CLIPModel`.

    Args:
        model (`CLIPModel`): Used as it is. Its training mode is the same before and after every call.
        processor (`CLIPProcessor`): Tokenizer and image processor of the model.
        device (`torch.device` or `str`, *optional*): The model is moved there; it stays where it is by default.
        batch_size (`int`, *optional*, defaults to 256): Images or texts a forward pass.
    """

    def __init__(
        self,
        model: CLIPModel,
        processor: CLIPProcessor,
        *,
        device: torch.device | str | None = None,
        batch_size: int = 256,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.model = model if device is None else model.to(device)
        self.processor = processor
        self.batch_size = batch_size

    @property
    def width(self) -> int:
        """Embedding width D."""
        return self.model.config.projection_dim

    @property
    def scale(self) -> float:
        """Factor s = exp(logit_scale) between a cosine and a logit."""
        return self.model.logit_scale.detach().float().exp().item()

    def encode_images(self, images: Iterable[PIL.Image.Image]) -> Tensor:
        """Embed images; at most `batch_size` of them are in memory at a time.

        Args:
            images (iterable of `PIL.Image.Image`): A list, or a generator that decodes as it goes.

        Returns:
            `Tensor` (N, D): float32, on the CPU, rows of length 1.
        """
        total = len(images) if isinstance(images, list | tuple) else None
        chunks, images = [], iter(images)
        with evaluating(self.model), self._progress(total, "images") as bar:
            while chunk := list(itertools.islice(images, self.batch_size)):
                pixels = self.processor.image_processor(images=chunk, return_tensors="pt")["pixel_values"]
                pixels = pixels.to(self.model.device, self.model.dtype)
                chunks.append(self._unit(self.model.get_image_features(pixel_values=pixels)))
                bar.update(len(chunk))
        return torch.cat(chunks) if chunks else torch.empty(0, self.width)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Embed texts, each cut to the context of the model with its end token kept.

        Texts are sorted by length and padded to the longest of their chunk: causal attention makes that exact.

        Args:
            texts (`list[str]`): M texts.

        Returns:
            `Tensor` (M, D): float32, on the CPU, rows of length 1, in the order of `texts`.
        """
        embeds = torch.empty(len(texts), self.width)
        if not texts:
            return embeds
        rows = self._token_ids(texts)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        with evaluating(self.model), self._progress(len(rows), "texts") as bar:
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                inputs = self._padded([rows[index] for index in chosen])
                embeds[chosen] = self._unit(self.model.get_text_features(**inputs))
                bar.update(len(chosen))
        return embeds

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        context = self.model.config.text_config.max_position_embeddings
        tokenizer = self.processor.tokenizer
        return tokenizer(list(texts), truncation=True, max_length=context, padding=False)["input_ids"]

    def _padded(self, rows: list[list[int]]) -> dict[str, Tensor]:
        """`rows` as `input_ids` and `attention_mask` (B, longest).

        A tokenizer without padding token gets more end tokens: pooling looks for the first one, so both are right.
        """
        pad, longest = self.processor.tokenizer.pad_token_id, max(map(len, rows))
        ids = [row + [row[-1] if pad is None else pad] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        device = self.model.device
        return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}

    @staticmethod
    def _unit(output) -> Tensor:
        return torch.nn.functional.normalize(projected(output).float(), dim=-1).cpu()

    @staticmethod
    def _progress(total: int | None, what: str) -> tqdm:
        # disable=None: a bar on a terminal, nothing in a log file.
        return tqdm(total=total, desc=f"encoding {what}", unit="", leave=False, disable=None)
