"""The whole job, offline, in a few minutes on a laptop's CPU: noisy pairs -> reference CLIP -> NCU -> tables and card.

    accelerate launch recipes/ncu_demo.py
    accelerate launch recipes/ncu_demo.py --noise_share 0.4 --formulation paper

Draws captioned scenes, shuffles the captions of --noise_share of them, trains a small reference CLIP on the noisy
pairs from scratch, fine-tunes it with --method, and measures both on clean scenes. The flags of `ncu.py` that do not
name data or a model to start from work here, and belong to the fine-tuning; those of the scenes and of the reference
are the last ones of --help.
"""

from ncu_hf.demo import main

if __name__ == "__main__":
    main(description=__doc__)
