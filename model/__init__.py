"""Network, losses, training, evaluation, prediction and the report."""
