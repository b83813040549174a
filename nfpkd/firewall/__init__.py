"""What the kernel enforces: nft's vocabulary, rules as a transaction, and the seam to libnftables."""
