"""From a suite file to its trials and cohorts. Does not import torch."""
