"""What tests share: tiny targets and their words, a drafter that knows the answer, and the comparison with plain `generate`."""
