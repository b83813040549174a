"""nfpkd: nftables rules from JSON files, opened by single packet authorization."""
