"""Lockstep training: one teacher pass and one augmentation a batch for all students of a cohort."""
