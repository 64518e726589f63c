"""The OpenAI-compatible API: start at :mod:`xrouter.serving.app`."""
