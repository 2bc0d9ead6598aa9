"""What tests share: tiny targets, a drafter that knows the answer, and the comparison with plain `generate`."""
