"""Every method that comes with kdbench keeps the contract, but for what it announces."""

from __future__ import annotations

from kdbench.testing import method_checks

MEMBERS = [{"name": name} for name in ("crd", "ft", "ab", "deit", "vid")]

# A combination needs members to be told: it stands among the methods not checked here, and is below.
test_method = method_checks("kdbench")
test_combination = method_checks("combine", settings={"methods": MEMBERS})
