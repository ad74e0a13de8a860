"""Further methods of the field."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import nn

STAGES = ("stage1", "stage2", "stage3")
PRE = tuple(f"{stage}/pre" for stage in STAGES)
STUDENTS, TEACHERS = (16, 32, 64), (64, 128, 256)


class Reference:
    def __init__(self, world):
        pass


class FitNet(Reference):
    """1x1 convolution with bias, batch normalisation, ReLU."""

    def __init__(self, world):
        regressor = nn.Sequential(nn.Conv2d(32, 128, 1), nn.BatchNorm2d(128), nn.ReLU())
        self.regressor = world.adapter(regressor, "regressor")

    def loss(self, s, t, batch):
        return {"ce": batch.ce(s), "hint": 100 * ((self.regressor(s["stage2"]) - t["stage2"]) ** 2).mean()}


def row_units(x):
    return x / x.norm(dim=-1, keepdim=True)


class AT(Reference):
    def loss(self, s, t, batch):
        a, b = ([row_units((net[i] ** 2).mean(1).flatten(1)) for i in STAGES] for net in (s, t))
        return {"ce": batch.ce(s), "at": 1000 * sum(((x - y) ** 2).mean() for x, y in zip(a, b, strict=True))}


class SP(Reference):
    def loss(self, s, t, batch):
        grams = []
        for net in (s, t):
            f = net["stage3"].flatten(1)
            grams.append(row_units((f[:, None] * f[None]).sum(2)))
        return {"ce": batch.ce(s), "sp": 3000 * ((grams[0] - grams[1]) ** 2).sum() / len(batch.labels) ** 2}


class CC(Reference):
    """Both linear layers are trained."""

    def __init__(self, world):
        self.student = world.adapter(nn.Linear(64, 128), "embed_student")
        self.teacher = world.adapter(nn.Linear(256, 128), "embed_teacher")

    def loss(self, s, t, batch):
        d = (self.student(s["embedding"]) - self.teacher(t["embedding"])).abs()
        return {"ce": batch.ce(s), "cc": 0.02 * (d[:-1] * d[1:]).sum(1).mean()}


class NST(Reference):
    def loss(self, s, t, batch):
        total = 0
        for stage in STAGES:
            x, y = (F.normalize(net[stage].flatten(2), dim=2) for net in (s, t))
            total = total + self.kernel(y, y) + self.kernel(x, x) - 2 * self.kernel(x, y)
        return {"ce": batch.ce(s), "nst": 50 * total}

    def kernel(self, x, y):
        return ((x[:, :, None] * y[:, None]).sum(3) ** 2).mean()


class KDSVD(Reference):
    """Singular vectors by LAPACK's own SVD; the entry of largest magnitude is positive."""

    def loss(self, s, t, batch):
        v_s, v_t = [], []
        for stage in STAGES:
            ours, theirs = (torch.linalg.svd(net[stage].flatten(2).mT, full_matrices=False).Vh[:, :4] for net in (s, t))
            directions = []
            for v in theirs[:, 0]:
                directions.append(v * v[v.abs().argmax()].sign())
            v_t.append(torch.stack(directions))
            nearest = []
            for candidates, v in zip(ours, v_t[-1], strict=True):
                best = max(candidates, key=lambda c, v=v: (c @ v).abs().item())
                nearest.append(best * (best @ v).detach().sign())
            v_s.append(torch.stack(nearest))
        total = 0
        for i in (1, 2):
            k_s, k_t = ((-((v[i][:, :, None] - v[i - 1][:, None]) ** 2) / 8).exp() for v in (v_s, v_t))
            total = total + ((k_s - k_t) ** 2).sum() / len(batch.labels)
        return {"ce": batch.ce(s), "kdsvd": total}


class OFD(Reference):
    """Margins from the batch normalisation before each stage's last ReLU."""

    def __init__(self, world):
        self.margins, self.connect = [], []
        for i, (c_s, c_t) in enumerate(zip(STUDENTS, TEACHERS, strict=True)):
            convolution = world.adapter(nn.Conv2d(c_s, c_t, 1, bias=False), f"connectors.{i}.convolution")
            normalisation = world.adapter(nn.BatchNorm2d(c_t), f"connectors.{i}.norm")
            self.connect.append(lambda x, a=convolution, b=normalisation: b(a(x)))
            before = world.teacher.get_submodule(f"layer{i + 1}")[-1].bn2
            pairs = zip(before.weight.tolist(), before.bias.tolist(), strict=True)
            self.margins.append(torch.tensor([self.margin(abs(s), m) for s, m in pairs], dtype=torch.float64))

    def margin(self, s, m):
        """E[x | x < 0] for x of N(m, s^2)."""
        probability = norm.cdf(-m / s)
        return m - s * norm.pdf(m / s) / probability if probability > 1e-3 else -3 * s

    def loss(self, s, t, batch):
        total = 0
        for i, tap in enumerate(PRE):
            ours = self.connect[i](s[tap])
            target = torch.maximum(t[tap], self.margins[i][None, :, None, None])
            squares = torch.where((ours > target) | (target > 0), (ours - target) ** 2, 0.0)
            total = total + squares.sum() / len(batch.labels) / 2 ** (3 - i - 1)
        return {"ce": batch.ce(s), "ofd": 1e-3 * total}


class ReviewKD(Reference):
    """Fused from the embedding to the first stage; the weight rises over 20 epochs."""

    def __init__(self, world):
        self.fusions = []
        for i, (c_s, c_t) in enumerate(zip((*STUDENTS, 64), (*TEACHERS, 256), strict=True)):
            fusion = nn.Module()
            fusion.reduce = nn.Sequential(nn.Conv2d(c_s, 64, 1, bias=False), nn.BatchNorm2d(64))
            fusion.expand = nn.Sequential(nn.Conv2d(64, c_t, 3, padding=1, bias=False), nn.BatchNorm2d(c_t))
            if i < 3:
                fusion.attention = nn.Conv2d(128, 2, 1)
            self.fusions.append(world.adapter(fusion, f"fusions.{i}"))

    def loss(self, s, t, batch):
        ours, theirs = ([*(net[tap] for tap in PRE), net["embedding"][:, :, None, None]] for net in (s, t))
        total, deeper = 0, None
        for fusion, x, target in reversed(list(zip(self.fusions, ours, theirs, strict=True))):
            x = fusion.reduce(x)
            if deeper is not None:
                deeper = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
                z = fusion.attention(torch.cat([x, deeper], 1)).sigmoid()
                x = z[:, :1] * x + z[:, 1:] * deeper
            deeper = x
            total = total + self.hierarchical(fusion.expand(x), target)
        return {"ce": batch.ce(s), "review": min((batch.epoch + 1) / 20, 1) * total}

    def hierarchical(self, a, b):
        weight, weights, total = 1, 1, ((a - b) ** 2).mean()
        for size in (4, 2, 1):
            if size < a.shape[2]:
                weight = weight / 2
                weights = weights + weight
                pooled = (F.avg_pool2d(x, x.shape[2] // size) for x in (a, b))
                x, y = pooled
                total = total + weight * ((x - y) ** 2).mean()
        return total / weights


class DKD(Reference):
    """T = 4; alpha 1, beta 8, both rising over 20 epochs."""

    def loss(self, s, t, batch):
        true = F.one_hot(batch.labels, 5).bool()
        parts = []
        for net in (s, t):
            p = (net["logits"] / 4).softmax(1)
            of_true = p[true]
            others = p[~true].view(-1, 4)
            parts.append((torch.stack([of_true, 1 - of_true], 1), others / others.sum(1, keepdim=True)))
        ramp = min((batch.epoch + 1) / 20, 1)
        tckd, nckd = (16 * (q * (q / p).log()).sum(1).mean() for p, q in zip(*parts, strict=True))
        return {"ce": batch.ce(s), "tckd": ramp * tckd, "nckd": 8 * ramp * nckd}


class DIST(Reference):
    """T = 4 times T^2, weights 2 and 2."""

    def loss(self, s, t, batch):
        p, q = ((net["logits"] / 4).softmax(1) for net in (s, t))
        inter, intra = (16 * (1 - self.pearson(a, b).mean()) for a, b in ((p, q), (p.T, q.T)))
        return {"ce": batch.ce(s), "inter": 2 * inter, "intra": 2 * intra}

    def pearson(self, a, b):
        covariance = (a * b).mean(1) - a.mean(1) * b.mean(1)
        return covariance / (a.std(1, correction=0) * b.std(1, correction=0))


REFERENCES = {
    "fitnet": FitNet,
    "at": AT,
    "sp": SP,
    "cc": CC,
    "nst": NST,
    "ofd": OFD,
    "reviewkd": ReviewKD,
    "dkd": DKD,
    "dist": DIST,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_losses_agree(agrees, name):
    agrees(name, REFERENCES[name])


@pytest.mark.parametrize("name", ["dkd", "reviewkd"])
def test_the_ramp_ends_at_its_weight(agrees, name):
    """With two epochs of warm-up, of three."""

    class Short(REFERENCES[name]):
        def loss(self, s, t, batch):
            terms = super().loss(s, t, batch)
            factor = min((batch.epoch + 1) / 2, 1) / ((batch.epoch + 1) / 20)
            return {key: value if key == "ce" else factor * value for key, value in terms.items()}

    agrees(name, Short, warmup_epochs=2)


def test_kdsvd(agrees):
    agrees("kdsvd", KDSVD, teacher="resnet14")


def test_fsp(agrees, first_stage):
    """The body learns the flows between stem and last stage, the classifier frozen; then the labels alone."""

    class FSP:
        def __init__(self, world):
            self.world = world

        def stages(self):
            student = self.world.student
            yield "flow", first_stage(2, self.world.lr, [student], self.flows, [student.fc])

        def flows(self, s, t, batch):
            maps = ("stem", *STAGES)
            total = 0
            for a, b in itertools.pairwise(maps):
                ours, theirs = (self.products(net[a], net[b]) for net in (s, t))
                total = total + ((ours - theirs) ** 2).mean()
            return {"fsp": total}

        def products(self, f, g):
            size = min(f.shape[2], g.shape[2])
            f, g = (F.avg_pool2d(x, x.shape[2] // size) for x in (f, g))
            return torch.einsum("bchw,bdhw->bcd", f, g) / size**2

        def loss(self, s, t, batch):
            return {"ce": batch.ce(s)}

    agrees("fsp", FSP, teacher="resnet14", fsp_epochs=2)
