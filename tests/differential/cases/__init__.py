"""All cases, by subject."""
from . import changes, hashing, istio, limits, matching, nearness, origins, outliers, paths, retries

SUBJECTS = (hashing, limits, outliers, retries, matching, paths, changes, istio, origins, nearness)
CASES = [case for subject in SUBJECTS for case in subject.CASES]
