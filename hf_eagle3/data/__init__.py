"""Prompts to target-generated conversations to token ids with a loss mask. Knows nothing of heads."""
