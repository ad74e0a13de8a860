"""Lockstep training: per batch, one teacher pass and one augmentation for all students of a cohort."""
