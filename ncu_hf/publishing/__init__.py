"""A finished run on the Hub: access checked before training, uploaded, and proven by a fresh process."""

from ncu_hf.publishing.access import check_login
from ncu_hf.publishing.publication import publish_and_verify
from ncu_hf.publishing.settings import HubSettings
from ncu_hf.publishing.upload import Published, publish
from ncu_hf.publishing.verification import Verification, verify

__all__ = ["HubSettings", "Published", "Verification", "check_login", "publish", "publish_and_verify", "verify"]
