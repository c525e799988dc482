"""CLIP with a learnable negative prompt in its text tower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, PreTrainedConfig, PreTrainedModel

from ncu_hf.adapters import merged
from ncu_hf.errors import InputError
from ncu_hf.low_rank import LowRankUpdate, TextTowerUpdates
from ncu_hf.shared_prefix import SharedPrefix
from ncu_hf.text_batches import caption_end, encode_by_length

PROMPT_FOLDER = "negative_prompt"


class NegativePromptConfig(PreTrainedConfig):
    """Shape of a [`NegativePrompt`].

    Args:
        length (`int`, defaults to 8): m, the number of learnable vectors (paper, section 4.2; released code: 8).
        width (`int`, defaults to 512): Hidden size of the text tower that reads them.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the initial vectors.
        rank (`int`, defaults to 0): Of the low-rank updates of the text tower that belong to the prompt; 0 is none, as
            in the paper.
        layers, mlp_width (`int`): Blocks of that tower and width of its MLPs; only used where there are updates.
    """

    model_type = "negative_prompt"

    def __init__(
        self,
        length: int = 8,
        width: int = 512,
        initializer_range: float = 0.02,
        rank: int = 0,
        layers: int = 12,
        mlp_width: int = 2048,
        **kwargs,
    ):
        self.length = length
        self.width = width
        self.initializer_range = initializer_range
        self.rank = rank
        self.layers = layers
        self.mlp_width = mlp_width
        super().__init__(**kwargs)

    @classmethod
    def of(cls, text: CLIPTextConfig, length: int, rank: int = 0) -> NegativePromptConfig:
        """Of a prompt for the text tower `text`."""
        return cls(
            length=length,
            width=text.hidden_size,
            rank=rank,
            layers=text.num_hidden_layers,
            mlp_width=text.intermediate_size,
        )


class NegativePrompt(PreTrainedModel):
    """m learnable vectors (m, width) that turn a caption into its hardest negative (paper, section 4.2).

    With a `rank` it also has low-rank updates of the text tower, `updates`, which are active in the negative pass
    alone: negatives can then be learned while captions are encoded as before.

    It is stored beside the model, in the folder `negative_prompt/`, and loads on its own:
    `NegativePrompt.from_pretrained("me/clip-b32-ncu", subfolder="negative_prompt")`.
    """

    config_class = NegativePromptConfig
    base_model_prefix = "negative_prompt"

    def __init__(self, config: NegativePromptConfig):
        super().__init__(config)
        self.vectors = nn.Parameter(torch.empty(config.length, config.width))
        sizes = (config.layers, config.width, config.mlp_width, config.rank)
        self.updates = TextTowerUpdates(*sizes) if config.rank else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            nn.init.normal_(self.vectors, std=self.config.initializer_range)
        elif isinstance(module, LowRankUpdate):
            module.reset()

    def forward(self, batch_size: int) -> Tensor:
        """The vectors once a row: (batch_size, m, width)."""
        return self.vectors.expand(batch_size, -1, -1)


class Embeddings(NamedTuple):
    """Unit vectors of one batch, each (B, D), at least float32; `None` what was not asked for."""

    image: Tensor
    text: Tensor | None
    negative: Tensor | None


def behind_start(input_ids: Tensor, room: int, eos_token_id: int) -> Tensor:
    """What follows the start token in each row of `input_ids` (B, L), cut to `room` tokens; the end token is kept.

    Args:
        input_ids (`Tensor`): (B, L) token ids, start first, an end token in every row.
        room (`int`): Most tokens of a row.
        eos_token_id (`int`): `config.text_config.eos_token_id` (see [`caption_end`]).

    Returns:
        `Tensor`: (B, min(L - 1, room)) token ids.
    """
    end = caption_end(input_ids, eos_token_id)[:, None]
    kept = input_ids[:, 1 : 1 + room]
    last = torch.where(end > room, input_ids.gather(1, end), kept[:, -1:])
    return torch.cat([kept[:, :-1], last], dim=1)


class NCUModel(nn.Module):
    """A `CLIPModel` that also encodes the negative of a caption.

    The text tower is the stock one: the prompt replaces the outputs of the token embedding at placeholder positions,
    and positions and pooling stay those of `CLIPModel`. Start token and prompt are the same in all rows and pass the
    tower once (see [`SharedPrefix`]). A prompt of length 0 gives `get_text_features`.

    Args:
        clip (`CLIPModel`): The model to fine-tune. It stays a plain `CLIPModel`.
        negative_prompt (`NegativePrompt`, *optional*): Its width must be the text tower's hidden size. A method that
            encodes no negative text, or writes its negatives out, needs none.
        reference (`NCUModel`, *optional*): A frozen model that a method compares with. It is neither part of the
            forward pass nor saved.

    Raises:
        InputError: if the prompt's width is not the text tower's, or start + prompt + one token + end do not fit.
    """

    def __init__(
        self, clip: CLIPModel, negative_prompt: NegativePrompt | None = None, reference: NCUModel | None = None
    ):
        super().__init__()
        if negative_prompt is not None:
            _check_fit(negative_prompt.config, clip.config.text_config)
        self.clip = clip
        self.negative_prompt = negative_prompt
        self.reference = reference

    @property
    def context_length(self) -> int:
        return self.clip.config.text_config.max_position_embeddings

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        negative_input_ids: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        negative_lengths: Sequence[int] | None = None,
    ) -> tuple[Embeddings, Tensor]:
        """Encode a batch.

        Args:
            pixel_values (`Tensor`): (B, 3, H, W), normalised.
            input_ids (`Tensor`, *optional*): (C, L) captions.
            negative_input_ids (`Tensor`, *optional*): (C, L') captions whose negatives are wanted.
            lengths, negative_lengths (`Sequence[int]`, *optional*): [`caption_lengths`] of the two, which spare the
                text tower the padding.

        Returns:
            `tuple[Embeddings, Tensor]`: the embeddings and `logit_scale` (log of s; 0-dim), the parameter itself, so
            that a wrapper such as `DistributedDataParallel` sees it used.
        """
        # Images first: while a GPU works on them, the host gets ahead with the many small kernels of the texts.
        image, text, negative = self.encode_image(pixel_values), None, None
        if input_ids is not None:
            text = self.encode_text(input_ids, lengths)
        if negative_input_ids is not None:
            negative = self.encode_negative_text(negative_input_ids, negative_lengths)
        return Embeddings(image, text, negative), self.clip.logit_scale

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> unit image embeddings (B, D)."""
        pooled = self.clip.vision_model(pixel_values=pixel_values).pooler_output
        return _unit(self.clip.visual_projection(pooled))

    def encode_text(self, input_ids: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """(B, L) -> unit text embeddings (B, D). Attention is causal: padding after the end token changes nothing.

        Args:
            input_ids (`Tensor`): (B, L).
            lengths (`Sequence[int]`, *optional*): [`caption_lengths`] of the rows, see [`encode_by_length`].
        """
        pooled = encode_by_length(lambda ids: self.clip.text_model(input_ids=ids).pooler_output, input_ids, lengths)
        return _unit(self.clip.text_projection(pooled))

    def encode_negative_text(self, input_ids: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """(B, L) -> unit embeddings (B, D) of [start, negative prompt, caption, end].

        Without a prompt the negatives are written out in `input_ids`, and are texts like any other. Where the prompt
        has updates of its own that are frozen, the negatives are given, and no gradient goes through them.

        Args:
            input_ids (`Tensor`): (B, L), the same start token in all rows. A caption that the prompt leaves too little
                room for loses words, never its end token.
            lengths (`Sequence[int]`, *optional*): [`caption_lengths`] of the rows, see [`encode_by_length`].
        """
        if self.negative_prompt is None:
            return self.encode_text(input_ids, lengths)
        m = self.negative_prompt.config.length
        room = self.context_length - 1 - m
        rest = behind_start(input_ids, room, self.clip.config.text_config.eos_token_id)
        if lengths is not None:
            lengths = [min(max(length - 1, 1), room) for length in lengths]
        with self._negative_pass():
            with self._prompt_in_text_tower():
                # The placeholders have the id of the start token, as any would do.
                prefix = SharedPrefix(self.clip.text_model, input_ids[:1, :1].expand(1, 1 + m))
            return _unit(self.clip.text_projection(encode_by_length(prefix.pooled, rest, lengths)))

    @property
    def _negatives_are_given(self) -> bool:
        prompt = self.negative_prompt
        return prompt.updates is not None and not any(p.requires_grad for p in prompt.parameters())

    @contextmanager
    def _negative_pass(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.negative_prompt.updates is not None:
                stack.enter_context(self.negative_prompt.updates.added_to(self.clip.text_model))
            if self._negatives_are_given:
                stack.enter_context(torch.no_grad())
            yield

    @contextmanager
    def _prompt_in_text_tower(self) -> Iterator[None]:
        # `CLIPTextModel.forward` takes no `inputs_embeds`, hence a hook on the embedding that it calls.
        def replace_placeholders(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
            prompt = self.negative_prompt(len(output)).to(output.dtype)
            return torch.cat([output[:, :1], prompt], dim=1)

        handle = self.clip.text_model.embeddings.token_embedding.register_forward_hook(replace_placeholders)
        try:
            yield
        finally:
            handle.remove()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain `CLIPModel` to `folder` and the prompt, if any, to `folder/negative_prompt` (safetensors).

        LoRA adapters are merged into the weights.
        """
        merged(self.clip).save_pretrained(folder)
        if self.negative_prompt is not None:
            self.negative_prompt.save_pretrained(Path(folder) / PROMPT_FOLDER)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> NCUModel:
        """Load what [`NCUModel.save_pretrained`] wrote; `kwargs` (such as `revision`) go to both loaders."""
        clip = CLIPModel.from_pretrained(folder, use_safetensors=True, **kwargs)
        return cls(clip, load_prompt(folder, **kwargs))


def load_prompt(folder: str | Path, **kwargs) -> NegativePrompt:
    """The prompt that is stored beside a model: a folder or a Hub id."""
    return NegativePrompt.from_pretrained(folder, subfolder=PROMPT_FOLDER, use_safetensors=True, **kwargs)


def _check_fit(prompt: NegativePromptConfig, text: CLIPTextConfig) -> None:
    if prompt.width != text.hidden_size:
        raise InputError(f"The negative prompt has width {prompt.width}, the text tower {text.hidden_size}.")
    if prompt.rank and (prompt.layers, prompt.mlp_width) != (text.num_hidden_layers, text.intermediate_size):
        raise InputError(
            f"The negative prompt has updates for {prompt.layers} blocks with MLPs of {prompt.mlp_width}, the text "
            f"tower has {text.num_hidden_layers} with {text.intermediate_size}."
        )
    if prompt.length + 3 > text.max_position_embeddings:
        raise InputError(
            f"--prompt_length {prompt.length} leaves no room for a caption: the text tower has "
            f"{text.max_position_embeddings} positions and start and end take two; "
            f"use at most {text.max_position_embeddings - 3}."
        )


def _unit(features: Tensor) -> Tensor:
    # Normalised in float32 at least: under autocast the projection returns half precision.
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
