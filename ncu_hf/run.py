"""What all phases of a run share: its settings, its folder, its data and the model that it starts from."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ncu_hf.cli import Arguments
from ncu_hf.data import ImageTransform, PairCollator, PairLoader, PairSource, PartneredCollator, StreamSource
from ncu_hf.distributed import gather_json, world
from ncu_hf.loading import LoadedModel
from ncu_hf.workspace import Workspace


class Run(NamedTuple):
    """What all phases of a run share."""

    arguments: Arguments
    workspace: Workspace
    source: PairSource | StreamSource
    reference: LoadedModel

    def loader(
        self,
        state: dict[str, Any] | None = None,
        negative_prefixes: tuple[str, ...] = (),
        partners: Tensor | None = None,
    ) -> PairLoader:
        """Training batches of this process, from the beginning of the data or from a saved position on.

        Args:
            state (`dict`, *optional*): That position.
            negative_prefixes (`tuple[str, ...]`, *optional*, defaults to `()`): Of the phase, see [`Objective`].
            partners (`Tensor`, *optional*): (n, P) pairs that come along with each pair, see [`PartneredCollator`].
        """
        data, training, processor = self.arguments.data, self.arguments.training, self.reference.processor
        crop = (data.crop_scale_min, 1.0)
        collator = PairCollator(
            processor.tokenizer,
            ImageTransform(processor.image_processor, train=data.random_crop, crop_scale=crop),
            context_length=self.reference.clip.config.text_config.max_position_embeddings,
            augment_negative_captions=data.augment_negative_captions,
            negative_prefixes=negative_prefixes,
        )
        if partners is not None:
            plain = ImageTransform(processor.image_processor, train=False)
            collator = PartneredCollator(collator, self.source, plain, partners)
        rank, processes = world()
        return PairLoader(
            self.source,
            collator,
            batch_size=training.per_device_train_batch_size,
            rank=rank,
            world_size=processes,
            seed=training.seed if training.data_seed is None else training.data_seed,
            num_workers=training.dataloader_num_workers,
            state=state,
            gather=partial(gather_json, device=training.device),
            pin_memory=training.dataloader_pin_memory and training.device.type == "cuda",
        )

    def batches_per_epoch(self) -> int | None:
        """Global batches of an epoch; `None` for a stream whose length is not known."""
        known = self.loader().batches_per_epoch
        if known is not None or not isinstance(self.source, StreamSource) or self.source.expected_rows is None:
            return known
        return max(self.source.expected_rows // self.arguments.training.global_batch_size, 1)
