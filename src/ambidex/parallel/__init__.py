"""Several processes, one training; started by torchrun."""
