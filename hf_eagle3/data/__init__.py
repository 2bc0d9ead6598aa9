"""Prompts to target-generated conversations to token ids with a role per token. Knows nothing of heads."""
