"""What drafting brings and that it changes nothing: acceptance length, speed ratios, the lossless check, reports."""
