"""Files that would run code, for tests that nothing does."""

import os
from pathlib import Path


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)
