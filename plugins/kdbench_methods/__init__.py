"""The distillation losses that come with kdbench: one file a method, offered like anybody's.

This module loads no torch: a method is imported when it is trained, not when it is listed.
"""

from __future__ import annotations

from kdbench.hookspecs import MethodSpec, hookimpl

METHODS = (
    MethodSpec("none", "kdbench_methods.none:NoDistillation"),
    MethodSpec("kd", "kdbench_methods.kd:KD"),
    MethodSpec("vid", "kdbench_methods.vid:VID"),
    MethodSpec("rkd", "kdbench_methods.rkd:RKD"),
    MethodSpec("pkt", "kdbench_methods.pkt:PKT"),
    MethodSpec("ab", "kdbench_methods.ab:AB"),
    MethodSpec("ft", "kdbench_methods.ft:FT"),
    MethodSpec("deit", "kdbench_methods.deit:DeiT"),
)


@hookimpl
def kdbench_methods() -> list[MethodSpec]:
    """All of the above."""
    return list(METHODS)
