"""Property tests of data/: no deadline, because the machine may be shared, and no run that differs from the last."""

from hypothesis import settings

settings.register_profile("data", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("data")
