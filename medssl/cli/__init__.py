"""The command line: each command parses, calls one function, prints. No logic lives here."""

from .app import app, main

__all__ = ["app", "main"]
