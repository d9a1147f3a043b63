"""The command line: options become one call into the library, results become print. Installed as `kdcache_cli`."""

from .main import main

__all__ = ["main"]
