"""The metadata of a card, the YAML at its top, by the Hub's rules."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import ModelCardData

from ncu_hf.reporting.hub_results import LONGEST_NAME, eval_results
from ncu_hf.reporting.licenses import LICENSES
from ncu_hf.reporting.markdown import is_hub_id, one_line, slug
from ncu_hf.reporting.methods import describe

# ISO 639, with a region or script: the Hub refuses anything else.
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")


def card_metadata(run: dict) -> ModelCardData:
    """Metadata of a run (see `ncu_hf.reporting.results`) that went through `publishable`."""
    base, data = run["base_model"], run["data"]
    optional: dict[str, Any] = {**_license(run), **_language(run)}
    if base["kind"] == "hub" and is_hub_id(base.get("name")):
        optional |= {"base_model": base["name"], "base_model_relation": "finetune"}
    if is_hub_id(data.get("hub_id")):
        optional["datasets"] = [data["hub_id"]]
    results = eval_results(run)
    if results:
        optional |= {"eval_results": results, "metrics": sorted({result.metric_type for result in results})}
        optional["model_name"] = one_line(run["model_name"], LONGEST_NAME) or "CLIP"  # of the model-index
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=describe(run)["tags"],
        **optional,
    )


def _license(run: dict) -> dict[str, str]:
    """The Hub refuses an identifier that it does not know; any other licence is `other` with a name."""
    name = run.get("license")
    if name is None:
        return {}
    known = str(name).strip().lower()
    if known in LICENSES and known != "other":
        return {"license": known}
    return {"license": "other", "license_name": slug(run.get("license_name", name))}


def _language(run: dict) -> dict[str, list[str]]:
    named = run.get("language", [])
    codes = [code for code in ([named] if isinstance(named, str) else named) if LANGUAGE.fullmatch(str(code))]
    return {"language": codes} if codes else {}
