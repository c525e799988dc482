"""All of it: upload, verification, and the card that tells of it."""

from __future__ import annotations

import logging
from pathlib import Path

from ncu_hf.publishing.card import record_verification
from ncu_hf.publishing.settings import HubSettings
from ncu_hf.publishing.upload import Published, publish, publish_record
from ncu_hf.publishing.verification import verify

logger = logging.getLogger(__name__)


def publish_and_verify(folder: Path, settings: HubSettings) -> Published:
    """Upload a finished run, have a fresh process load it from the Hub, and write what that found into the card.

    Args:
        folder (`Path`): Output folder of the run.
        settings (`HubSettings`): Where to.

    Returns:
        `Published`: the last commit, whose card has the verification.

    Raises:
        InputError: the folder is not one of a finished run, or the Hub refuses.
        TrainingStopped: the Hub does not answer, or what it gives back is not what `folder` holds.
    """
    try:
        published = publish(folder, settings)
        verification = verify(folder, published, settings)
        if record_verification(folder, verification.to_dict()):
            published = publish_record(folder, published, settings)
    except KeyboardInterrupt:
        logger.warning("%s: interrupted. Go on with: %s", settings.repo_id, settings.command(folder))
        raise
    return published
