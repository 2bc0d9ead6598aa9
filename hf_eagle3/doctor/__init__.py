"""What is wrong between a head and a target, found by trying."""
