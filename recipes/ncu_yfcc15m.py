"""NCU on YFCC15M-R (15 M recaptioned pairs, `Kaichengalex/YFCC15M` on the Hub), with the paper's settings.

    accelerate launch --config_file accelerate_config.yaml recipes/ncu_yfcc15m.py --model <CLIP trained on YFCC15M-R>

The set is streamed: nothing is downloaded first. Add --plan to see what the run would do, need and write.

The captions of this set are stored as CLIP token ids (column `texts`) and are decoded with CLIP's tokenizer; its
length is rounded to 15,000,000 pairs. Settings as in `ncu_cc12m.py`: the paper's where it gives them for all
sets (section 5.1), else those of CC3M.
"""

from ncu_hf.recipe import main

DEFAULTS = {
    "train_data": "yfcc15m-r",
    "bf16": True,
    "dataloader_num_workers": 8,
    "output_dir": "outputs/ncu_yfcc15m",
}

if __name__ == "__main__":
    main(DEFAULTS, description=__doc__)
