"""Who decides: baselines, chat models, and the local language model."""
