"""Discovers plugins: what they offer, with which settings, and the source that identifies it.

No module here imports torch, except for local files that need it.
"""

from kdbench.discovery.load import Local, add_class, add_file, built_in, discover
from kdbench.discovery.offer import LOCAL, SUPPLIED, Broken, Offer, Provider, contained, searches_of
from kdbench.discovery.registry import ADAPTERS, Registry

__all__ = [
    "ADAPTERS",
    "LOCAL",
    "SUPPLIED",
    "Broken",
    "Local",
    "Offer",
    "Provider",
    "Registry",
    "add_class",
    "add_file",
    "built_in",
    "contained",
    "discover",
    "searches_of",
]
