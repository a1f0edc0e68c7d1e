"""One file per product: how it is described, calibrated and read."""
