"""Networks with named taps, and adapters for the networks of torchvision and timm."""
