from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def tried(path: Path) -> Iterator[str]:
    """Methods that a file's tests train: keys of its tables, and what ``agrees`` is called with."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            if ast.unparse(node.targets[0]) in {"REFERENCES", "TWO_HEADED"}:
                yield from (ast.literal_eval(key) for key in node.value.keys if key is not None)
        elif (
            isinstance(node, ast.Call) and ast.unparse(node.func) == "agrees" and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def test_every_method_is_compared_with_a_plain_loop(registry):
    offered = {offer.spec.name for offer in registry.methods if offer.provider.distribution == "kdbench"}
    found = {name for path in Path(__file__).parent.glob("test_*.py") for name in tried(path)}
    assert len(offered) >= 37
    assert offered - found == set()
