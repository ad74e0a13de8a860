"""Plugins that receive a run's lifecycle hooks: the progress display and the MLflow log."""
