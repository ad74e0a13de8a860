"""From a suite file to the trials and cohorts that it asks for. Loads no torch."""
