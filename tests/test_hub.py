"""Publication needs access, and says so before anything is trained."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", None], ids=["unreachable", "offline"])
def test_no_access_is_one_line_before_training(endpoint, scenes, clip_folder, tmp_path):
    environment = {**os.environ, "HF_TOKEN": "hf_" + "x" * 20, "HF_HOME": str(tmp_path / "home")}
    if endpoint:
        environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    words = [
        *(sys.executable, "recipes/ncu.py", "--model", clip_folder, "--train_data", scenes, "--image_column", "image"),
        *("--caption_column", "caption", "--global_batch_size", "16", "--output_dir", tmp_path / "run"),
        *("--push_to_hub", "true", "--use_cpu", "true"),
    ]
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if "Warning" not in line and "warn" not in line]
    assert line.startswith("error: --push_to_hub: no access to the Hub")
    assert "xxxx" not in done.stderr and not (tmp_path / "run").exists()
