"""Training-time test for EAGLE-3 heads: rollout, loss, batches, and a transformers Trainer around them."""
