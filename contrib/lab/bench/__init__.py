"""The clock against nfpkd's peers and against the floor: `python -m lab.bench`.

Rows (lab/bench/rows) say what is measured and how; the runner takes their
systems in turn, round after round; the reports know nothing of rows.
"""
