"""Injected noise: captions of a known share of the pairs are made wrong, so that the mismatches are known."""

from ncu_hf.data.noise.inject import NOISE_KINDS, Injected, Noise, inject_noise

__all__ = ["NOISE_KINDS", "Injected", "Noise", "inject_noise"]
