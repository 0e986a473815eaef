"""Folders of a daemon as each version has left them: what later versions must always read."""
