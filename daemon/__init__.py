"""dubd: a daemon that clones voices in bulk. See docs/architecture.md for how it is built."""

__version__ = "0.1.0"
