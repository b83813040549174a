"""What judges: from a queued packet's bytes to a decision."""
