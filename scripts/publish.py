"""Publish a finished run, without training: again after a failed upload, or for the first time.

    python scripts/publish.py outputs/ncu --hub_model_id me/clip-b32-ncu

uploads the model, its processor, negative prompt, card, plots and numbers; then a fresh process loads them from the
Hub, and the card tells what it found. What the Hub already has is not sent again. The token is that of HF_TOKEN or of
`hf auth login`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ncu_hf.cli import run_main, script_parser
from ncu_hf.publishing import HubSettings, check_login, publish_and_verify
from ncu_hf.publishing.upload import check_folder


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path, help="--output_dir of the run")
    parser.add_argument("--hub_model_id", help="repository, me/name; by default the folder's name, in your namespace")
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is private")
    parser.add_argument("--revision", help="branch, made if it does not exist")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    check_folder(arguments.folder)
    settings = HubSettings(
        repo_id=arguments.hub_model_id or arguments.folder.resolve().name,
        private=arguments.private,
        revision=arguments.revision,
    )
    check_login(settings)
    published = publish_and_verify(arguments.folder, settings)
    print(f"Published and verified: {published.url} ({published.commit})")


if __name__ == "__main__":
    run_main(main)
