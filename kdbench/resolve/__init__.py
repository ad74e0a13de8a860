"""From a suite to its plan: names become classes, settings are checked, and each method is tried on each pair."""

from kdbench.resolve.catalogue import RegistryCatalogue
from kdbench.resolve.methods import make_method, method_fingerprint
from kdbench.resolve.resolver import Resolver
from kdbench.resolve.trials import plan_trials

__all__ = ["RegistryCatalogue", "Resolver", "make_method", "method_fingerprint", "plan_trials"]
