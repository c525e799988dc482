"""NCU on CC3M (2.9 M pairs, `pixparse/cc3m-wds` on the Hub), with the paper's settings.

    accelerate launch --config_file accelerate_config.yaml recipes/ncu_cc3m.py --model <CLIP trained on CC3M>

The set is streamed: nothing is downloaded first. Add --plan to see what the run would do, need and write,
and --train_subset 500000 for the paper's study of 0.5 M of the 3 M pairs.

The paper (section 5.1) and the released code: global batch 2048, 2 epochs of phase 1 and 8 of phase 2, learning rates
1e-4 (towers) and 3e-4 (prompt), then 5e-5, forget_ratio 0.1, plan_weight 0.7, weight decay 0.2, 100 warm-up steps,
cosine. These are the defaults of `ncu_hf.config`; only the data set is named here.
"""

from ncu_hf.recipe import main

DEFAULTS = {
    "train_data": "cc3m",
    "bf16": True,
    "dataloader_num_workers": 8,
    "output_dir": "outputs/ncu_cc3m",
}

if __name__ == "__main__":
    main(DEFAULTS, description=__doc__)
