"""Serving under load: what clients of a coordinator see, and what streaming costs it. See ``__main__``."""
