"""xRouter: a language model that learns which models to call, and pays for what it calls.

The package is small on purpose; start at :mod:`xrouter.orchestrator`, the only loop there is.
Importing ``xrouter`` loads nothing heavy: torch, litellm and FastAPI live in the modules that
need them.
"""

__version__ = "0.1.0"
