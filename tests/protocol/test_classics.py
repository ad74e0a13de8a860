"""The seven and the baseline, with the variants that are the same classes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def divergence(p, q):
    """KL(p || q), (B,)."""
    return (p * (p.log() - q.log())).sum(1)


class Labels:
    """Cross-entropy alone."""

    def __init__(self, world):
        pass

    def loss(self, s, t, batch):
        return {"ce": batch.ce(s)}


class KD:
    def __init__(self, world):
        pass

    def loss(self, s, t, batch):
        kl = divergence((t["logits"] / 4).softmax(1), (s["logits"] / 4).softmax(1)).mean()
        return {"ce": 0.1 * batch.ce(s), "kd": 0.9 * 4**2 * kl}


class VID:
    """1x1 convolutions with ReLUs between them; one variance a teacher channel, at first 5, also decayed."""

    def __init__(self, world):
        self.parts = []
        for i, (c_s, c_t) in enumerate([(16, 64), (32, 128), (64, 256)]):
            part = nn.Module()
            part.log_scale = nn.Parameter(torch.full((c_t,), math.log(math.exp(5 - 1e-5) - 1)))
            part.regressor = nn.Sequential(
                nn.Conv2d(c_s, c_t, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(c_t, c_t, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(c_t, c_t, 1, bias=False),
            )
            start = part.log_scale.detach().double()
            self.parts.append(world.adapter(part, f"predictors.{i}"))
            torch.testing.assert_close(part.log_scale.detach(), start, rtol=1e-6, atol=0)

    def loss(self, s, t, batch):
        total = 0
        for i, part in enumerate(self.parts, start=1):
            var = (torch.log1p(part.log_scale.exp()) + 1e-5)[None, :, None, None]
            error = (part.regressor(s[f"stage{i}"]) - t[f"stage{i}"]) ** 2
            total = total + ((error / var + var.log()) / 2).mean()
        return {"ce": batch.ce(s), "vid": total}


def smooth_l1(x):
    return torch.where(x.abs() < 1, x**2 / 2, x.abs() - 0.5)


class RKD:
    """Differences of all pairs, unit vectors of all triples."""

    terms = ("ce", "distance", "angle")

    def __init__(self, world):
        pass

    def loss(self, s, t, batch):
        psi_s, psi_t = (self.relations(net["embedding"]) for net in (s, t))
        distance, angle = (smooth_l1(a - b).mean() for a, b in zip(psi_s, psi_t, strict=True))
        terms = {"ce": batch.ce(s), "distance": 25 * distance, "angle": 50 * angle}
        return {key: terms[key] for key in self.terms}

    def relations(self, e):
        B = len(e)
        distances = torch.zeros(B, B, dtype=e.dtype)
        units = torch.zeros(B, B, e.shape[1], dtype=e.dtype)
        for i, j in itertools.permutations(range(B), 2):
            difference = e[j] - e[i]
            distances[i, j] = difference.norm()
            units[i, j] = difference / difference.norm()
        mean = distances.sum() / (B * B - B)
        return distances / mean, torch.einsum("ijd,ikd->ijk", units, units)


class RKDDistance(RKD):
    terms = ("ce", "distance")


class RKDAngle(RKD):
    terms = ("ce", "angle")


class PKT:
    def __init__(self, world):
        pass

    def loss(self, s, t, batch):
        p_s, p_t = (self.similarities(net["embedding"]) for net in (s, t))
        return {"ce": batch.ce(s), "pkt": 30000 * (p_t * ((p_t + 1e-7) / (p_s + 1e-7)).log()).mean()}

    def similarities(self, e):
        e = e / (e.norm(dim=1, keepdim=True) + 1e-7)
        c = (e @ e.T + 1) / 2
        return c / c.sum(1, keepdim=True)


def boundary(world, heads, connectors, first_stage, epochs):
    """The boundary stage: margin 1, stages weighted 2^(i-n+1), over the batch, times 3/1000; the base rate."""

    def loss(s, t, batch):
        n = len(connectors)
        total = 0
        for i, connect in enumerate(connectors):
            g_s, g_t = connect(s[f"stage{i + 1}/pre"]), t[f"stage{i + 1}/pre"]
            resting = torch.where((g_s > -1) & (g_t <= 0), (g_s + 1) ** 2, 0.0)
            firing = torch.where((g_s <= 1) & (g_t > 0), (g_s - 1) ** 2, 0.0)
            total = total + (resting + firing).sum() * 2.0 ** (i - n + 1)
        return {"boundary": total / len(batch.labels) * 3 / 1000}

    frozen = [world.student.get_submodule(head) for head in heads]
    yield "boundary", first_stage(epochs, world.lr, [world.student, *connectors], loss, frozen)


@pytest.fixture
def ab(first_stage):
    """``ab(heads, connectors)``: ``heads`` are no part of the body, ``connectors`` make one for each stage."""

    def make(heads, connectors, epochs=2):
        class AB(Labels):
            trained = ()  # connectors are unused in the main stage

            def __init__(self, world):
                self.world = world
                self.connectors = [world.adapter(make(), f"connectors.{i}") for i, make in enumerate(connectors)]

            def stages(self):
                return boundary(self.world, heads, self.connectors, first_stage, epochs)

        return AB

    return make


def connection(c_s, c_t):
    """1x1 convolution with bias, batch normalisation after, no ReLU."""
    return lambda: nn.Sequential(nn.Conv2d(c_s, c_t, 1), nn.BatchNorm2d(c_t))


WIDER = [connection(16, 64), connection(32, 128), connection(64, 256)]


def soft_targets_alone(s, t, batch):
    """Without the factor T^2 and without labels."""
    return {"kd": divergence((t["logits"] / 3).softmax(1), (s["logits"] / 3).softmax(1)).mean()}


def leaky(*layers):
    """LeakyReLU(.1) after each of ``layers`` (a list: layers before one LeakyReLU)."""
    return nn.Sequential(*(part for layer in layers for part in (*layer, nn.LeakyReLU(0.1))))


def conv(a, b):
    return nn.Conv2d(a, b, 3, padding=1)


def transposed(a, b):
    return nn.ConvTranspose2d(a, b, 3, padding=1)


@pytest.fixture
def ft(first_stage):
    """``ft(c_s, c_t, lr, paper)``: ``lr`` is the paraphraser's."""

    def make(c_s, c_t, lr, *, paper=False, epochs=2, n_s=3):
        class FT:
            trained = ("translator",)

            def __init__(self, world):
                half = c_t // 2
                paraphraser = nn.Module()
                paraphraser.encoder = leaky([conv(c_t, c_t)], [conv(c_t, half)], [conv(half, half)])
                paraphraser.decoder = leaky([transposed(half, half)], [transposed(half, c_t)], [transposed(c_t, c_t)])
                self.paraphraser = world.adapter(paraphraser, "paraphraser")
                widths = [c_s, c_s, half, half]
                norm = (lambda c: []) if paper else (lambda c: [nn.BatchNorm2d(c)])
                layers = [[conv(a, b), *norm(b)] for a, b in itertools.pairwise(widths)]
                self.translator = world.adapter(leaky(*layers), "translator")
                self.adapters = world.adapters

            def stages(self):
                yield "paraphraser", first_stage(epochs, lr, [self.paraphraser], self.reconstruction)

            def reconstruction(self, s, t, batch):
                f = t["stage3"]
                difference = self.paraphraser.decoder(self.paraphraser.encoder(f)) - f
                return {"reconstruction": difference.abs().mean() if paper else (difference**2).mean()}

            def loss(self, s, t, batch):
                # Its encoder alone is kept; there is no decoder to compare any more.
                self.paraphraser.decoder = nn.Identity()
                with torch.no_grad():
                    f_t = self.paraphraser.encoder(t["stage3"])
                f_s = self.translator(s[f"stage{n_s}"])
                size = min(f_s.shape[2], f_t.shape[2])
                f_s, f_t = (F.avg_pool2d(f, f.shape[2] // size) for f in (f_s, f_t))
                factors = [(f if paper else (f**2).mean(1)).flatten(1) for f in (f_s, f_t)]
                a, b = (f / f.norm(dim=1, keepdim=True) for f in factors)
                return {"ce": batch.ce(s), "ft": (500 if paper else 200) * (a - b).abs().mean()}

        return FT

    return make


def deit(kind, alpha, *, own_heads=True):
    """``alpha`` weights the teacher. Without heads of its own the student gets a linear one on its embedding."""

    class DeiT:
        def __init__(self, world):
            if not own_heads:
                self.head = world.adapter(nn.Linear(64, 5), "dist_head")

        def second(self, s):
            return s["dist_logits"] if own_heads else self.head(s["embedding"])

        def loss(self, s, t, batch):
            if kind == "none":
                return {"ce": batch.ce(s)}
            d, q = self.second(s), t["logits"].softmax(1)
            B, C = d.shape
            log_p = F.log_softmax(d, 1)
            distillation = {
                "hard": lambda: -log_p[torch.arange(B), q.argmax(1)].mean(),
                "soft": lambda: divergence(q, log_p.exp()).sum() / (B * C),
                "batchmean": lambda: divergence(q, log_p.exp()).sum() / B,
                "probabilities": lambda: -((0.9 * q + 0.1 / C) * log_p).sum(1).mean(),
            }[kind]()
            return {"ce": (1 - alpha) * batch.ce(s), "distillation": alpha * distillation}

        def predict(self, s):
            return s["logits"] if kind == "none" else (s["logits"] + self.second(s)) / 2

    return DeiT


REFERENCES = {
    "none": Labels,
    "kd": KD,
    "vid": VID,
    "rkd": RKD,
    "rkd/distance": RKDDistance,
    "rkd/angle": RKDAngle,
    "pkt": PKT,
}

TWO_HEADED = {
    "deit": deit("hard", 0.5),
    "deit/hard": deit("hard", 0.5),
    "deit/soft": deit("soft", 0.5),
    "deit/none": deit("none", 0),
    "deit/akida-soft": deit("batchmean", 0.9),
    "deit/akida-hard": deit("probabilities", 0.9),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_losses_agree(agrees, name):
    agrees(name, REFERENCES[name])


@pytest.mark.parametrize("name", TWO_HEADED)
def test_deit_on_a_student_of_two_heads(agrees, name):
    agrees(name, TWO_HEADED[name], teacher="resnet8", student="deit_micro")


def test_deit_on_a_student_of_one_head(agrees):
    agrees("deit", deit("hard", 0.5, own_heads=False))


def test_deit_under_adamw(agrees, adamw):
    """Biases, norms, tokens and position embeddings do not decay."""
    exempt = ("network.cls_token", "network.dist_token", "network.pos_embed")

    def optimizer(world):
        decayed = [p for name, p in world.student.named_parameters() if p.ndim > 1 and name not in exempt]
        return lambda parameters: adamw(parameters, decayed, 0.5)

    recipe = {"optimizer": "adamw", "weight_decay": 0.5}
    reference = TWO_HEADED["deit/soft"]
    agrees("deit/soft", reference, teacher="resnet8", student="deit_micro", recipe=recipe, optimizer=optimizer)


def test_ab(agrees, ab):
    """Three epochs at a constant rate, though the main stage's drops before the third."""
    agrees("ab", ab(("fc",), WIDER, epochs=3), boundary_epochs=3)


def test_ab_paper(agrees, ab):
    reference = ab(("fc",), WIDER)
    reference.loss = lambda self, s, t, batch: soft_targets_alone(s, t, batch)
    agrees("ab/paper", reference, boundary_epochs=2)


def resizing(layer, *channels, **how):
    return [lambda c=c: nn.Sequential(layer(*c, padding=1, stride=2, **how), nn.BatchNorm2d(c[1])) for c in channels]


HALVING = resizing(nn.Conv2d, (16, 240), (32, 480), (64, 960), kernel_size=3)
DOUBLING = resizing(nn.ConvTranspose2d, (116, 64), (232, 128), (464, 256), (160, 512), kernel_size=4)
BODIES = {
    "equal": ("resnet14", "resnet8", 1, 8, ("fc",), [nn.Identity] * 3),
    "the final normalisation": (
        "wrn_16_2", "wrn_16_1", 1, 8, ("bn1", "fc"), [connection(16, 32), connection(32, 64), connection(64, 128)],
    ),
    "the last convolution and normalisation": (
        "resnet8x4", "ShuffleNetV2", 3, 16, ("conv2", "bn2", "fc"), DOUBLING[:3],
    ),
    "the last convolution": (
        "vgg8", "MobileNetV2", 3, 32, ("conv2", "fc"),
        [connection(12, 128), connection(16, 256), connection(48, 512), DOUBLING[3]],
    ),
    "the student's maps are twice as large": ("ShuffleNetV1", "resnet8", 3, 16, ("fc",), HALVING),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_the_boundary_stage_leaves_out_what_is_no_body(agrees, ab, case):
    teacher, student, channels, pixels, heads, connectors = BODIES[case]
    image_shape = (channels, pixels, pixels)
    reference = ab(heads, connectors, epochs=1)
    # Deep networks amplify rounding: few steps, and small ones.
    course = {"boundary_epochs": 1, "epochs": 1, "lr": 0.0005}
    agrees("ab", reference, teacher=teacher, student=student, image_shape=image_shape, **course)


def test_ft(agrees, ft):
    """The paraphraser learns at .01, a ResNet being the student."""
    agrees("ft", ft(64, 256, lr=0.01, epochs=3), paraphraser_epochs=3)


def test_ft_paper(agrees, ft):
    agrees("ft/paper", ft(64, 256, lr=0.01, paper=True), paraphraser_epochs=2)


def test_ft_on_a_wide_resnet(agrees, ft):
    agrees("ft", ft(64, 64, lr=0.01), teacher="resnet8", student="wrn_16_1", paraphraser_epochs=2)


def test_ft_on_another_family_and_size(agrees, ft):
    """The paraphraser learns at the recipe's base rate; the teacher's factor is pooled to the student's size."""
    reference = ft(512, 64, lr=0.02, n_s=4)
    pair = {"teacher": "resnet8", "student": "vgg8", "image_shape": (3, 16, 16)}
    agrees("ft", reference, **pair, epochs=1, paraphraser_epochs=2)
