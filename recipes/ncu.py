"""Noisy Correspondence Unlearning of any CLIP on any image-text pairs.

    accelerate launch recipes/ncu.py --model openai/clip-vit-base-patch32 --train_data pairs.csv --output_dir out
    accelerate launch recipes/ncu.py --model ./clip --train_data 'shards/{0000..0131}.tar' --eval_data clean.parquet \
        --global_batch_size 512 --output_dir out

--train_data and --eval_data take a CSV, parquet, WebDataset tars, a folder of images, or the id of a Hub data set.
After a crash, the same command with --resume_from_checkpoint true goes on. --method clip continues plain training.

Some settings differ from the paper's, for reasons in docs/evidence.md; they are in ncu_hf/recommended.py.
"""

from ncu_hf.recipe import main
from ncu_hf.recommended import RECOMMENDED

DEFAULTS = {**RECOMMENDED, "output_dir": "outputs/ncu"}

if __name__ == "__main__":
    main(DEFAULTS, description=__doc__)
