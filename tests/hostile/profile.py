"""How long the fuzzers of this folder run: for seconds and always the same, or as long as the environment says.

``make fuzz EXAMPLES=5000`` sets ``FUZZ_EXAMPLES``, the number of random examples of each test.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

_EXAMPLES = os.environ.get("FUZZ_EXAMPLES")


def fuzz(examples: int) -> settings:
    """Return the settings of a fuzzer with this number of examples in a normal run."""
    return settings(
        max_examples=int(_EXAMPLES or examples),
        derandomize=_EXAMPLES is None,
        database=None,
        deadline=None,  # the machine may be busy
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
    )
