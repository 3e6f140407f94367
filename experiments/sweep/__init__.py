"""Training many runs: which there are, who trains which, and how far they are."""
