"""Where nfpkd is put to the test: hostile load, crashes, long runs, and the clock against its peers."""
