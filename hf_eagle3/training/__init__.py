"""Training-time test for EAGLE-3 heads: rollout, loss, cached features to batches, the loop that resumes."""
