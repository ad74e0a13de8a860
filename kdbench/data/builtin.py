"""The built-in data sets and augmentations, registered through the same hooks as those of plugins."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hookspecs import AugmentationSpec, DatasetSpec, hookimpl


@hookimpl
def kdbench_datasets() -> Sequence[DatasetSpec]:
    """The built-in data sets; each class is imported when it is used."""
    return [
        DatasetSpec(
            "digits",
            "kdbench.data.digits:Digits",
            reference="Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49",
            summary="1,797 handwritten digits of 8x8 pixels, bundled with scikit-learn",
        ),
        DatasetSpec(
            "cifar10",
            "kdbench.data.cifar:Cifar10",
            reference="Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
            summary="60,000 images of 32x32 pixels, ten classes; downloaded on first use",
            reading=("download",),
        ),
        DatasetSpec(
            "cifar100",
            "kdbench.data.cifar:Cifar100",
            reference="Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
            summary="60,000 images of 32x32 pixels, a hundred classes; downloaded on first use",
            reading=("download",),
        ),
        DatasetSpec(
            "image_folder",
            "kdbench.data.folder:ImageFolder",
            summary="train/<class>/* and test|val/<class>/*, decoded once into the cache folder",
            reading=("workers",),
        ),
        DatasetSpec(
            "tiny_imagenet",
            "kdbench.data.tiny_imagenet:TinyImageNet",
            reference="Le and Yang 2015, http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf",
            summary="Tiny ImageNet in its usual layout: 110,000 images, 200 classes",
            reading=("workers",),
        ),
        DatasetSpec(
            "imagenet",
            "kdbench.data.imagenet:ImageNet",
            reference="Russakovsky 2015, arXiv:1409.0575",
            summary="ImageNet as an image folder, streamed from disk by worker processes",
            reading=("workers",),
        ),
    ]


@hookimpl
def kdbench_augmentations() -> Sequence[AugmentationSpec]:
    """The built-in augmentations."""
    here = "kdbench.data.augment"
    return [
        AugmentationSpec("crop", f"{here}:crop", lengths=("padding",)),
        AugmentationSpec("flip", f"{here}:flip"),
        AugmentationSpec("shift", f"{here}:shift", lengths=("pixels",)),
        AugmentationSpec("random_resized_crop", f"{here}:random_resized_crop", acts_on="size", lengths=("size",)),
        AugmentationSpec("randaugment", f"{here}:rand_augment"),
        AugmentationSpec("cutout", f"{here}:cutout", acts_on="blanks", lengths=("size",)),
        AugmentationSpec("random_erasing", f"{here}:random_erasing", acts_on="blanks"),
        AugmentationSpec("mixup", f"{here}:mixup", acts_on="mixes"),
        AugmentationSpec("cutmix", f"{here}:cutmix", acts_on="mixes"),
    ]
