from hypothesis import HealthCheck, settings

# A busy machine must not fail a property; where time matters, a test measures it itself.
settings.register_profile("xrouter", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xrouter")
