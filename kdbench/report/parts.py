"""The parts of a page: built-in sections and figures, and those of plugins that the suite names.

A part of a plugin is called with a copy of the study. If it fails, or its plugin is missing, the page shows the reason
in its place, and all other parts are unaffected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kdbench import additions, discovery
from kdbench.discovery import Offer, Registry
from kdbench.discovery.sources import FIRST_PARTY
from kdbench.errors import PluginError, in_words
from kdbench.hookspecs import KINDS, FigureSpec, SectionSpec
from kdbench.results import PlanRecord
from kdbench.words import one_line

if TYPE_CHECKING:
    from kdbench.report.study import Study

PartSpec = TypeVar("PartSpec", SectionSpec, FigureSpec)
Made = TypeVar("Made")


@dataclass(frozen=True)
class PagePart(Generic[PartSpec]):
    """A section or figure, or the reason why it is missing."""

    name: str
    offer: Offer[PartSpec] | None
    missing: str = ""

    @property
    def built_in(self) -> bool:
        """Whether it is part of kdbench."""
        return self.offer is not None and self.offer.provider.distribution == FIRST_PARTY

    def __call__(self, study: Study, finish: Callable[[Any], Made]) -> Made:
        """Call the part with a study and return ``finish(result)``.

        Raises:
            PluginError: a plugin's part failed or returned something invalid.
        """
        if self.offer is None:
            raise PluginError(self.missing)
        arguments = dict(self.offer.spec.presets)
        if self.built_in:
            return finish(self.offer.load()(study, **arguments))
        try:
            with discovery.contained(self.offer.provider):
                return finish(self.offer.load()(study.copy(), **arguments))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything
            raise PluginError(one_line(f"{self.offer.provider}: {in_words(error)}")) from error


@dataclass(frozen=True)
class PageParts:
    """The sections of a page in order, and its figures."""

    sections: tuple[PagePart[SectionSpec], ...]
    figures: tuple[PagePart[FigureSpec], ...]
    problems: tuple[str, ...] = ()
    """Why plugins that the plan names could not be loaded."""

    def to_json(self) -> list[tuple[str, str]]:
        """The names of the plugins' parts with the digests of their source."""
        parts: list[PagePart[Any]] = [*self.sections, *self.figures]
        foreign = [part for part in parts if not part.built_in]
        return [(part.name, part.offer.fingerprint if part.offer else part.missing) for part in foreign]


def parts_of(plan: PlanRecord, registry: Registry | None = None) -> PageParts:
    """The parts of the page of a plan. Default for ``registry``: the plugins that the plan names."""
    wanted = {key: list(plan.suite.get(key) or ()) for key in ("sections", "figures")}
    problems: list[str] = []
    if registry is None:
        registry = _registry(plan, problems) if any(wanted.values()) else discovery.built_in()
    sections = _ordered([*_built_in(registry, SectionSpec), *_named(registry, SectionSpec, wanted["sections"])])
    figures = [*_built_in(registry, FigureSpec), *_named(registry, FigureSpec, wanted["figures"])]
    return PageParts(tuple(sections), tuple(figures), tuple(problems))


def _registry(plan: PlanRecord, problems: list[str]) -> Registry:
    """All installed plugins and the local files that a plan names; failures are added to ``problems``."""
    registry = discovery.discover()
    folder = Path(plan.path).parent if plan.path else Path()
    for path in (*(folder / name for name in plan.suite.get("plugins") or ()), *map(Path, plan.plugins)):
        try:
            discovery.add_file(registry, path)
        except PluginError as error:
            problems.append(str(error))
    return registry


def _built_in(registry: Registry, spec: type[PartSpec]) -> Iterable[PagePart[PartSpec]]:
    for offer in registry.offers[spec]:
        if offer.provider.distribution == FIRST_PARTY:
            yield PagePart(offer.spec.name, offer)


def _named(registry: Registry, spec: type[PartSpec], names: Iterable[str]) -> Iterable[PagePart[PartSpec]]:
    for name in names:
        try:
            offer = registry.find(spec, name)
            additions.check_name(registry, next(kind.name for kind in KINDS if kind.spec is spec), offer)
        except PluginError as error:
            yield PagePart(name.rpartition(":")[2], None, str(error))
        else:
            yield PagePart(offer.spec.name, offer)


def _ordered(sections: Sequence[PagePart[SectionSpec]]) -> list[PagePart[SectionSpec]]:
    """Each section after the one that it names; at the end if that one is missing."""
    placed: list[PagePart[SectionSpec]] = []
    for part in sections:
        names = [other.name for other in placed]
        after = part.offer.spec.after if part.offer is not None and not part.built_in else ""
        # Sections that follow the same one keep the order of the suite.
        followers = [o.name for o in placed if o.offer is not None and after and o.offer.spec.after == after]
        place = max((names.index(name) for name in (after, *followers) if name in names), default=len(placed) - 1)
        placed.insert(place + 1, part)
    return placed
