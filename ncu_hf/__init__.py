"""Noisy Correspondence Unlearning (NCU): make a CLIP that was trained on noisy web pairs more robust.

The parts that other code builds on:

- [`~ncu_hf.recipe.run`]: one run, from reference to card.
- [`~ncu_hf.modeling.NCUModel`], [`~ncu_hf.modeling.NegativePrompt`]: CLIP with a negative prompt in its text tower.
- [`~ncu_hf.trainer.NCUTrainer`]: the trainer of every method and phase.
- [`~ncu_hf.transport.solve_transport`]: masked entropic optimal transport.
- [`~ncu_hf.objectives.METHODS`]: methods by name.
"""

from ncu_hf._version import __version__

__all__ = ["__version__"]
