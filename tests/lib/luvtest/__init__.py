# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the test programs share: cache entries, progress display, paths."""
