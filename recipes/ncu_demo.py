"""The whole job, offline, in a few minutes on a laptop's CPU: noisy pairs -> reference CLIP -> NCU -> tables and card.

    accelerate launch recipes/ncu_demo.py
    accelerate launch recipes/ncu_demo.py --noise_share 0.4 --formulation paper

Draws captioned scenes, shuffles the captions of --noise_share of them, trains a small reference CLIP on the noisy
pairs from scratch, fine-tunes it with --method, and measures both on clean scenes. Every flag of `ncu.py` works here
and belongs to the fine-tuning; the flags of the scenes and of the reference are listed first by --help.
"""

from ncu_hf.demo import main

if __name__ == "__main__":
    main(description=__doc__)
