"""What holds for every floor: the same examples on every run, and one thread for each test of torch."""

from hypothesis import settings

# A property test draws its examples from the test's own name: what fails here fails everywhere.
settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")
