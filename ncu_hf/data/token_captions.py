"""Captions that a data set stores as the token ids of CLIP's tokenizer (YFCC15M-R does)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoTokenizer

from ncu_hf.errors import InputError, one_line


def caption_decoder(tokenizer: str) -> Callable[[Any], Any]:
    """A function from token ids to text.

    Args:
        tokenizer (`str`): Folder or Hub id of the tokenizer that made the ids.

    Returns:
        `Callable`: ids (list of `int`) -> the text between the start token and the first end token, whatever padding
        follows; anything else comes back as it is, so that it is judged as any caption is.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--caption_tokenizer {tokenizer}: cannot be loaded ({one_line(error)}).") from error

    def decode(caption: Any) -> Any:
        if not isinstance(caption, list) or not all(isinstance(i, int) and 0 <= i < len(loaded) for i in caption):
            return caption
        end = caption.index(loaded.eos_token_id) if loaded.eos_token_id in caption else len(caption)
        return loaded.decode([i for i in caption[:end] if i != loaded.bos_token_id])

    return decode
