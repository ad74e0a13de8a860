"""Plugins that watch a run through its lifecycle hooks: the progress display and the MLflow log."""
