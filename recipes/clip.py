"""Train a reference CLIP from scratch, or continue to train one, with the symmetric InfoNCE loss.

    accelerate launch recipes/clip.py --model_config vit-b-32 --train_data 'shards/{0000..0575}.tar' --output_dir clip
    accelerate launch recipes/clip.py --model openai/clip-vit-base-patch32 --train_data pairs.csv --output_dir clip

--model_config takes a preset (tiny, demo, vit-b-32, vit-b-16) or the JSON file of a CLIPConfig; the tokenizer is
trained on the captions unless --tokenizer names one. Defaults are those of CLIP (Radford et al. 2021, table 18:
5e-4 at batch 32,768, weight decay 0.2, 32 epochs, 2,000 warm-up steps).
"""

from ncu_hf.recipe import main

DEFAULTS = {
    "method": "clip",
    "output_dir": "outputs/clip",
    "learning_rate": 5e-4,
    "num_train_epochs": 32,
    "warmup_steps": 2000,
}

if __name__ == "__main__":
    main(DEFAULTS, description=__doc__)
