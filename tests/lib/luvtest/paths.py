# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where things are."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
CHECKOUT = TESTS.parent
CACHE = Path(os.environ.get("LUVFIOD_CACHE") or
             Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luvfiod")
