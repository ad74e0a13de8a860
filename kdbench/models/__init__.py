"""Networks that name their taps, and adapters for torchvision's and timm's."""
