"""What an importer's rules are to the loader."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from nfpkd.importing.kinds import Kind, Merged, merge, read_all
from nfpkd.importing.model import Remark
from nfpkd.rules.loader import load_rules
from nfpkd.rules.model import Rule

MADE_KEY = "0x" + "5b" * 32


class Outcome(NamedTuple):
    """The rules as the loader sees them, by name, and what was said, by line."""

    rules: dict[str, Rule]
    remarks: tuple[Remark, ...]

    def said(self, line: int) -> list[str]:
        return [remark.text for remark in self.remarks if remark.line == line]

    def lost(self) -> set[int]:
        return {remark.line for remark in self.remarks if remark.left_out}


def load_merged(merged: Merged) -> dict[str, Rule]:
    """Return the rules as the loader reads them from a file, by name; raises RulesError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rules.json")
        file.touch(mode=0o600)
        file.write_text(json.dumps(merged.rules))
        rules = load_rules(Path(folder)).rules
    return {rule.name: rule for rule in rules}


def import_text(kind: Kind, text: str) -> Outcome:
    """Import *text*, whose keys are to be MADE_KEY where they are made, and load the outcome."""
    merged = merge(read_all(kind, [("file", text)], lambda: MADE_KEY))
    remarks = tuple(remark for _, remark in merged.remarks)
    assert not any(MADE_KEY in remark.text for remark in remarks)
    return Outcome(load_merged(merged), remarks)
