"""Rules from what other port knockers are configured with, as far as they can be expressed."""
