"""What got better or worse between two stores: joined on the subject, judged by tolerances and significance."""

from __future__ import annotations
