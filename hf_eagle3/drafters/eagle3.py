"""The EAGLE-3 drafter: grows the official dynamic tree (EAGLE-2, section 4) from fused target features."""

from __future__ import annotations

from .features import FeatureDrafter


class Eagle3CandidateGenerator(FeatureDrafter):
    """Drafts with an [`Eagle3DraftModel`], whose logits are over its own draft vocabulary. Arguments as
    [`FeatureDrafter`]."""
