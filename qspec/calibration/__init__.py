"""Better weights of few bits: what a model reads and writes decides how its weights are rounded."""
