from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.fsp import FSP, flow, flow_loss

from kdbench.method import Incompatible, Output


def test_golden(golden, tolerance):
    case = golden("fsp")
    s = case.leaves("in_s0", "in_s1", "in_s2")
    case.check(flow_loss(s, [case[f"in_t{i}"] for i in range(3)]), tolerance[torch.float64])


def test_flow_against_a_loop():
    f, g = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 5, 2, 2, dtype=torch.float64)
    x = f.numpy().reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    expected = np.array([[[(a * b).mean() for b in g[n].numpy()] for a in x[n]] for n in range(2)])
    np.testing.assert_allclose(flow(f, g).numpy(), expected, rtol=1e-12)


def test_gradient():
    s, t = (
        [torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)] for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda *s: flow_loss(s, t), [x.requires_grad_() for x in s])


def test_the_flow_stage_runs_from_stem_to_last(signature, data, output, make_batch):
    method = FSP()
    net = signature()
    method.setup(net, net, data)
    [stage] = method.stages()
    assert (stage.name, stage.epochs, stage.trains) == ("flow", 30, ("student.body",))
    s, t = output(net, stage.reads), output(net, stage.reads)
    value, weight = stage.loss(s, t, make_batch())["fsp"]
    maps = [[out[name] for name in ("stem", "stage1", "stage2", "stage3")] for out in (s, t)]
    torch.testing.assert_close(value, flow_loss(*maps))
    assert weight == 1.0
    assert list(method(Output(s.logits), Output(t.logits), make_batch())) == ["ce"]


def test_refuses_other_channels(signature, data):
    message = (
        r"^fsp needs equal channels from stem to last stage; "
        r"teacher wide has \[4, 4, 8, 32\], student net has \[4, 4, 8, 16\]$"
    )
    with pytest.raises(Incompatible, match=message):
        FSP().setup(signature(), signature("wide", channels=(4, 8, 32)), data)
