"""Settings of the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from ncu_hf.errors import InputError, one_of

TOWERS = ("text", "vision")


@dataclass
class ModelArguments:
    """The model to start from, and how its parameters train."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the CLIPModel to fine-tune (with its processor)."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "Train from scratch instead: a preset (tiny, demo, vit-b-32, vit-b-16) or a CLIPConfig JSON file."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of a model from scratch; by default one is trained on the captions."},
    )
    vocab_size: int = field(default=8192, metadata={"help": "Largest vocabulary of that trained tokenizer."})
    prompt_length: int = field(default=8, metadata={"help": "m, learnable vectors of the negative prompt (paper)."})
    negative_prompt: str | None = field(
        default=None, metadata={"help": "Start from this saved negative prompt (folder or Hub id) instead of noise."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains the weights themselves."})
    lora_alpha: float | None = field(default=None, metadata={"help": "LoRA scaling; twice the rank if not given."})
    lora_towers: str = field(default="text,vision", metadata={"help": "Towers that LoRA adapts: text, vision or both."})

    def __post_init__(self):
        if self.prompt_length < 1:
            raise InputError(f"--prompt_length must be at least 1, got {self.prompt_length}.")
        if self.lora_rank < 0:
            raise InputError(f"--lora_rank must be 0 (off) or positive, got {self.lora_rank}.")
        for tower in self.adapted_towers:
            one_of("--lora_towers", tower, TOWERS)

    @property
    def adapted_towers(self) -> tuple[str, ...]:
        """Towers with LoRA adapters; empty when LoRA is off."""
        return tuple(t.strip() for t in self.lora_towers.split(",")) if self.lora_rank else ()
