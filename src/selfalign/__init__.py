"""selfalign aligns a language model with its own feedback."""

__version__ = "0.1.0"
