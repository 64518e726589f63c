"""Talking to model providers: keys, parameters, streams, usage. Shared by the live fleet and the
chat policy."""
