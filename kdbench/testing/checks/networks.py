"""Does a network fulfil the interface of :class:`~kdbench.models.base.TappedModel`?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from kdbench.errors import ModelError
from kdbench.models.base import TappedModel, contract_problems, signature
from kdbench.testing import process
from kdbench.testing.bench import BATCH_SIZE, CLASSES
from kdbench.testing.network import NetworkSubject, recorded, run
from kdbench.testing.subject import CheckFailed, CheckSkipped, relative_difference

TOLERANCE = 1e-3
"""Relative tolerance; float32 sums in another order differ by less, any real dependence by more."""
MODES = {"train": True, "eval": False}


def contract(subject: NetworkSubject) -> str | None:
    """Does the builder return a TappedModel with the declared taps and logits (B, C)?"""
    if problems := contract_problems(subject.build()):
        raise CheckFailed("; ".join(problems))
    network = subject.network()
    try:
        found = signature(network, subject.offer.spec.name, subject.image_shape)
    except ModelError as error:
        raise CheckFailed(str(error)) from error
    if found.classes != CLASSES:
        raise CheckFailed(f"returns {found.classes} logits for {CLASSES} classes")
    return f"{sum(p.numel() for p in network.parameters()):,} parameters; taps: {', '.join(found.taps)}"


def device(subject: NetworkSubject) -> str | None:
    """Does the forward pass create its tensors on the device of the images? Tested on torch's meta device."""
    network = subject.network().to("meta")
    images = torch.zeros(2, *subject.image_shape, device="meta")
    try:
        with torch.no_grad():
            run(network, images)
    except RuntimeError as error:
        raise CheckFailed(f"a tensor stays on the CPU: {' '.join(str(error).split())}") from error
    return None


def reads(subject: NetworkSubject) -> str | None:
    """Does it return only the requested taps, with values that do not depend on the other requested taps?"""
    network, images = subject.network(), subject.images()
    with torch.no_grad():
        together = run(network, images)
        for tap in network.taps:
            alone = run(network, images, (tap,))
            if alone.keys() != {tap, "logits"}:
                raise CheckFailed(f"reading only {tap} returns {', '.join(alone)}; return {tap} and logits")
            if not alone[tap].equal(together[tap]):
                raise CheckFailed(f"{tap} has other values if no other tap is read")
    return None


def tap_order(subject: NetworkSubject) -> str | None:
    """Are taps declared and returned in the order in which the network computes them?"""
    network = subject.network(training=True)
    outputs = run(network, subject.images())
    declared = [tap for tap in network.taps if tap in outputs]
    if list(outputs) != declared:
        raise CheckFailed(f"declared in the order {', '.join(declared)}, returned in the order {', '.join(outputs)}")
    for position, tap in enumerate(declared):
        later = [o for o in declared[position + 1 :] if outputs[o] is not outputs[tap] and outputs[o].requires_grad]
        if not later or not outputs[tap].requires_grad:
            continue
        values = [outputs[other] for other in later]
        found = torch.autograd.grad(outputs[tap].sum(), values, retain_graph=True, allow_unused=True)
        before = [other for other, gradient in zip(later, found, strict=True) if gradient is not None]
        if before:
            raise CheckFailed(f"{tap} is computed from {', '.join(before)}, which is declared after it")
    return None


def signs(subject: NetworkSubject) -> str | None:
    """Do nonnegative taps have no negative value, and signed ones some, on random images in train and eval mode?"""
    lowest: dict[str, float] = {}
    highest: dict[str, float] = {}
    for moved in (False, True):
        network = subject.network()
        if moved:
            _move_parameters(network)
        for training in MODES.values():
            network.train(training)
            for seed in range(2):
                with torch.no_grad():
                    outputs = run(network, subject.images(seed=seed))
                for tap, values in outputs.items():
                    lowest[tap] = min(lowest.get(tap, 0.0), values.min().item())
                    highest[tap] = max(highest.get(tap, 0.0), values.max().item())
    taps = network.taps.items()
    negative = [f"{tap} ({lowest[tap]:.3g})" for tap, nonnegative in taps if nonnegative and lowest[tap] < 0]
    positive = [tap for tap, nonnegative in taps if not nonnegative and lowest[tap] == 0 < highest[tap]]
    problems = []
    if negative:
        problems.append(f"declared nonnegative, with negative values: {', '.join(negative)}")
    if positive:
        why = "unless an activation is in place, declare them NONNEGATIVE"
        problems.append(f"declared signed, without negative values: {', '.join(positive)}; {why}")
    if problems:
        raise CheckFailed("; ".join(problems))
    return None


def _move_parameters(network: nn.Module) -> None:
    """Change all parameters slightly: layers initialised to zero hide the signs of their outputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def in_place(subject: NetworkSubject) -> str | None:
    """Do taps keep the values they are recorded with? An activation in place would change the tap before it."""
    network, images = subject.network(), subject.images()
    for mode, training in MODES.items():
        with torch.no_grad(), recorded() as copies:
            outputs = run(network.train(training), images)
        changed = [tap for tap, (value, copy) in copies.items() if not copy.equal(value)]
        if changed:
            raise CheckFailed(
                f"{', '.join(changed)}: changed after being recorded, in {mode} mode; use inplace=False and x = x + y"
            )
        taps = list(outputs.items())
        for position, (tap, value) in enumerate(taps):
            for other, same in taps[position + 1 :]:
                if value is same and network.taps[tap] != network.taps[other]:
                    raise CheckFailed(f"{tap} and {other} are one tensor; the activation between them is in place")
    return None


def batch_sizes(subject: NetworkSubject) -> str | None:
    """Are an image's outputs in eval mode independent of the other images and the size of the batch?"""
    network, images = subject.network(), subject.images()
    with torch.no_grad():
        run(network.train(), images)
        network.eval()
        whole = run(network, images)
        for size in (1, 3):
            part = run(network, images[:size])
            for tap, values in part.items():
                shape = (size, *whole[tap].shape[1:])
                if tuple(values.shape) != shape:
                    raise CheckFailed(f"{tap} has shape {tuple(values.shape)} for {size} images, expected {shape}")
                if relative_difference(values, whole[tap][:size]) > TOLERANCE:
                    raise CheckFailed(f"{tap} of an image changes with the other images of the batch")
    return None


def classifier(subject: NetworkSubject) -> str | None:
    """Does the classifier compute the logits, and does the head contain it?"""
    network = subject.network()
    if not any(f"{network.classifier}.".startswith(f"{name}.") for name in network.head):
        raise CheckFailed(f"head must contain the classifier '{network.classifier}', got {network.head!r}")
    layer = network.get_submodule(network.classifier)
    if not isinstance(layer, nn.Linear):
        raise CheckSkipped(f"{network.classifier} is a {type(layer).__name__}, not a Linear layer")
    given: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: given.append(output))
    try:
        with torch.no_grad():
            logits = run(network, subject.images(), ())["logits"]
    finally:
        handle.remove()
    if not any(output.shape == logits.shape and output.equal(logits) for output in given):
        raise CheckFailed(f"the logits are not the output of '{network.classifier}'")
    return None


def gradient(subject: NetworkSubject) -> str | None:
    """Does a gradient reach every parameter in train mode?"""
    network = subject.network(training=True)
    outputs = run(network, subject.images())
    labels = torch.arange(BATCH_SIZE) % CLASSES
    heads = [tap for tap in ("logits", "dist_logits") if tap in outputs]
    loss = torch.stack([F.cross_entropy(outputs[tap], labels) for tap in heads]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    missed = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    if missed:
        shown = ", ".join(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        raise CheckFailed(f"no gradient from {' and '.join(heads)} reaches {shown}; remove what is not used")
    frozen = sum(not p.requires_grad for p in network.parameters())
    return f"{frozen} parameters are frozen" if frozen else None


def images_unchanged(subject: NetworkSubject) -> str | None:
    """Are the images unchanged? All networks of a cohort share them."""
    network, images = subject.network(), subject.images()
    before = images.clone()
    for mode, training in MODES.items():
        with torch.no_grad():
            run(network.train(training), images)
        if not images.equal(before):
            raise CheckFailed(f"the forward pass writes to the images in {mode} mode; use operations out of place")
    return None


def deterministic(subject: NetworkSubject) -> str | None:
    """Does eval mode give the same outputs each time, and change no state?"""
    network, images = subject.network(), subject.images()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        first = network(images, reads=tuple(network.taps))
        second = network(images, reads=tuple(network.taps))
    different = [tap for tap in first if not first[tap].equal(second[tap])]
    if different:
        raise CheckFailed(f"{', '.join(different)}: other values at the second pass; use self.training for dropout")
    changed = [name for name, value in network.state_dict().items() if not value.equal(state[name])]
    if changed:
        raise CheckFailed(f"eval mode changes {', '.join(changed)}")
    return None


def round_trip(subject: NetworkSubject) -> str | None:
    """Does the state dictionary restore the complete state in a new network, through a safetensors file?"""
    network, other = subject.network(seed=0), subject.network(seed=1)
    images = subject.images()
    with torch.no_grad():
        run(network.train(), images)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    try:
        other.load_state_dict(load(save(state)))
    except RuntimeError as error:
        raise CheckFailed(f"the state dictionary is not restored: {' '.join(str(error).split())}") from error
    with torch.no_grad():
        expected, found = run(network.eval(), images), run(other, images)
    different = [tap for tap in expected if relative_difference(expected[tap], found[tap]) > TOLERANCE]
    if different:
        raise CheckFailed(f"{', '.join(different)}: other values in a new network with the same state; register it")
    return f"{len(state)} tensors"


def seed(subject: NetworkSubject) -> str | None:
    """Does the same seed give the same initial weights and the same outputs in train mode, to the bit?"""
    one, two = subject.network(seed=7), subject.network(seed=7)
    other = one.state_dict()
    changed = [name for name, value in two.state_dict().items() if not value.equal(other[name])]
    if changed:
        raise CheckFailed(f"the same seed gives other initial values of {', '.join(changed[:5])}; draw from torch")
    images = subject.images()
    with torch.no_grad():
        first, second = run(one.train(), images), run(two.train(), images)
    different = [tap for tap in first if not first[tap].equal(second[tap])]
    if different:
        raise CheckFailed(f"the same seed gives other values of {', '.join(different)} in train mode; draw from torch")
    return None


def global_state(subject: NetworkSubject) -> str | None:
    """Is global state (torch's settings, random streams, working folder) unchanged after building and running it?"""
    before = process.state()
    network = _seeded_apart("building it", subject.build)
    assert isinstance(network, TappedModel)
    for training in MODES.values():
        network.train(training)
        _seeded_apart("its forward pass", lambda: network(subject.images(), reads=tuple(network.taps)))
    changed = [name for name, value in process.state().items() if value != before[name]]
    if changed:
        raise CheckFailed(f"it changes {', '.join(changed)} of the process")
    return None


def _seeded_apart(what: str, act: Any) -> Any:
    """Run ``act`` under two seeds. If torch's random state is the same afterwards, it was seeded inside: fail."""
    states = []
    for number in (1, 2):
        torch.manual_seed(number)
        result = act()
        states.append(torch.get_rng_state())
    if states[0].equal(states[1]):
        raise CheckFailed(f"{what} seeds torch's random numbers; remove torch.manual_seed")
    return result
