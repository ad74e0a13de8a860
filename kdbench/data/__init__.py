"""Data sets: decoding to one uint8 array, splits, and augmentation on the device."""
