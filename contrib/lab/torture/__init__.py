"""The worst day, rehearsed: floods, crashes, hostile input and long runs, and a table of how nfpkd took them."""
