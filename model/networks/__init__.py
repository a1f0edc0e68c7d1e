"""One file per network; `forward` reads like the figure."""
