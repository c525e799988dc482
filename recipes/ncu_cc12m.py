"""NCU on CC12M (11 M pairs, `pixparse/cc12m-wds` on the Hub), with the paper's settings.

    accelerate launch --config_file accelerate_config.yaml recipes/ncu_cc12m.py --model <CLIP trained on CC12M>

The set is streamed: nothing is downloaded first. Add --plan to see what the run would do, need and write.

The paper gives batch 2048 and 2 + 8 epochs for all data sets (section 5.1); its other settings are known for CC3M
only, from the released code (see `ncu_cc3m.py`), and are used here too: they are the defaults of `ncu_hf.config`.
"""

from ncu_hf.recipe import main

DEFAULTS = {
    "train_data": "cc12m",
    "bf16": True,
    "dataloader_num_workers": 8,
    "output_dir": "outputs/ncu_cc12m",
}

if __name__ == "__main__":
    main(DEFAULTS, description=__doc__)
