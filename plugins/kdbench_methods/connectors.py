"""Trainable layers from a student's map to the shape of a teacher's map."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kdbench.method import Incompatible, TapSignature


def resizing_convolution(student: TapSignature, teacher: TapSignature, who: str) -> nn.Module:
    """The convolution from a student's map to the shape of a teacher's, with bias.

    Student map twice as large: 3x3, stride 2; half as large: 4x4 transposed, stride 2; equal: 1x1.

    Raises:
        Incompatible: the sizes have another ratio.
    """
    (c_s, *size_s), (c_t, *size_t) = student.shape, teacher.shape
    if size_s == [2 * n for n in size_t]:
        return nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
    if [2 * n for n in size_s] == size_t:
        return nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
    if size_s == size_t:
        return nn.Conv2d(c_s, c_t, 1)
    raise Incompatible(
        f"{who} connects maps of equal, double or half size; "
        f"the teacher's is {'x'.join(map(str, size_t))}, the student's {'x'.join(map(str, size_s))}"
    )


def connector(student: TapSignature, teacher: TapSignature, who: str) -> nn.Module:
    """Convolution and batch normalisation; the identity if channels and size are equal."""
    if student.shape == teacher.shape:
        return nn.Identity()
    return nn.Sequential(resizing_convolution(student, teacher, who), BatchNorm2d(teacher.shape[0]))


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that also accepts a batch of one value per channel.

    One value has no variance, and torch raises an error in training. Here it is normalised with the running statistics.
    """

    def forward(self, input: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        """``input`` normalised per channel."""
        if self.training and input.numel() == input.shape[1]:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)
