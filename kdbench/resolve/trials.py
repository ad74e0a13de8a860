"""The trials of a suite. Each method is tried on each pair, on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from kdbench.discovery import settings as settings_of
from kdbench.errors import Incompatible, ModelError, SuiteError, text_of
from kdbench.isolation import restored
from kdbench.method import DataSignature, set_up
from kdbench.models.shapes import on_meta
from kdbench.resolve.methods import foreign_source, method_fingerprint
from kdbench.resolve.remembered import Remembered
from kdbench.resolve.resolver import Resolver
from kdbench.resolve.untaught import depends_on, untaught
from kdbench.status import Status
from kdbench.suite.plan import Origin, Plan, Trial


def plan_trials(resolver: Resolver) -> Plan:
    """All trials, with those skipped whose method cannot read their pair."""
    trials: list[Trial] = []
    remembered = Remembered()
    teachers = {name: resolver.teachers(name) for name in {pair.teacher for pair in resolver.suite.pairs}}
    for pair in resolver.suite.pairs:
        teacher_of = teachers[pair.teacher]
        recipe = resolver.recipe(pair.recipe)
        part_sources = resolver.parts(recipe).sources
        for method in resolver.suite.methods:
            offer = resolver.registry.method(method.name)
            given = {**offer.spec.presets, **method.settings, **pair.methods.get(method.shown, {})}
            settings, problems = settings_of.resolve(offer.load(), given)
            if problems:
                raise SuiteError([f"methods.{method.shown}.{key}: {what}" for key, what in problems])
            fingerprint = method_fingerprint(resolver.registry, offer, settings)
            origin = Origin(offer.provider.distribution, offer.provider.version, fingerprint)
            first = Trial(
                suite=resolver.suite.name,
                data=resolver.data_identity,
                teacher=teacher_of[resolver.suite.seeds[0]],
                student=pair.student,
                method=method.name,
                label=method.shown,
                seed=resolver.suite.seeds[0],
                settings=settings,
                recipe=recipe.scaled(method.lr_factor),
                origin=origin,
                student_source=foreign_source(resolver.registry.model(pair.student)),
                part_sources=part_sources,
            )
            question = _question(resolver, first)
            reason = remembered(question, partial(_incompatibility, resolver, first))
            if not reason:
                asked = {**question, "untaught": depends_on(first)}
                first = replace(first, untaught=bool(remembered(asked, partial(untaught, resolver, first))))
            for seed in resolver.suite.seeds:
                trial = replace(first, seed=seed, teacher=teacher_of[seed])
                trials.append(trial.with_status(Status.SKIPPED, reason) if reason else trial)
    remembered.save()
    if repeated := list(_repetitions(trials)):
        raise SuiteError(repeated)
    return Plan(resolver.suite, tuple(trials))


def _question(resolver: Resolver, trial: Trial) -> dict[str, Any]:
    """All that decides whether the method can read the pair."""
    sides = {"student": (trial.student, trial.student_source)}
    sides["teacher"] = (trial.teacher.model, trial.teacher.model_source)
    networks = {
        side: [name, source, dict(resolver.registry.model(name).spec.presets)] for side, (name, source) in sides.items()
    }
    facts = [resolver.facts.classes, resolver.facts.image_shape, resolver.facts.n_train]
    method = [trial.method, dict(trial.settings), trial.origin.fingerprint]
    return {**networks, "data": facts, "method": method}


def _incompatibility(resolver: Resolver, trial: Trial) -> str:
    """Why the method cannot read the pair, tried on the meta device; empty if it can."""
    # What a plugin leaves changed here is found again, and put down to the trial, when it is trained.
    try:
        with restored(resolver.originals), on_meta():
            method = resolver.method(trial)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = f"{trial.method} cannot be made with these settings: {text_of(error) or type(error).__name__}"
        raise SuiteError([f"methods.{trial.label}: {what}"]) from error
    try:
        student, teacher = resolver.signature(trial.student), resolver.signature(trial.teacher.model)
    except (KeyboardInterrupt, ModelError):
        raise
    except BaseException:  # noqa: BLE001 - its trials will fail
        return ""
    try:
        with restored(resolver.originals), on_meta():
            data = DataSignature(resolver.facts.classes, resolver.facts.n_train)
            set_up(method, copy.deepcopy(student), copy.deepcopy(teacher), data)
    except Incompatible as error:
        return text_of(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - if it is one off the meta device too, the trial will fail
        return ""
    return ""


def _repetitions(trials: Iterable[Trial]) -> Iterator[str]:
    """Trials that only differ in what the suite calls them, each two once."""
    first: dict[str, Trial] = {}
    told = set()
    for trial in trials:
        other = first.setdefault(trial.id, trial)
        if other is trial or (other.pair, other.label, trial.pair, trial.label) in told:
            continue
        told.add((other.pair, other.label, trial.pair, trial.label))
        if other.pair == trial.pair:
            yield (
                f"methods: '{other.label}' and '{trial.label}' are the same trial on {trial.pair}: method "
                f"{trial.method} with equal settings; remove one, or change its settings"
            )
        else:
            yield (
                f"pairs: '{other.pair}' and '{trial.pair}' are the same pair: teachers {other.teacher.name} and "
                f"{trial.teacher.name} are equal in all but name; remove one, or change its teacher"
            )
