"""``python -m nfpkd``: the same as the command ``nfpkd``."""

from nfpkd.cli import main

if __name__ == "__main__":
    main(prog_name="nfpkd")
