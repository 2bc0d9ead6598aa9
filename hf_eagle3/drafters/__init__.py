"""Drafters: each proposes a `DraftTree` from what the target has computed so far. One small file each."""
