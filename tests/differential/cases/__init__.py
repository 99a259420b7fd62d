"""All cases, by subject."""
from . import (
    changes, domains, formatters, hashing, istio, limits, matching, nearness, origins, outliers, paths, retries, wire,
)

SUBJECTS = (
    hashing, limits, outliers, retries, matching, domains, paths, changes, formatters, istio, origins, nearness, wire,
)
CASES = [case for subject in SUBJECTS for case in subject.CASES]
