"""Tests by suite: `pure` (no I/O), `store` (real Lance, real video), `cluster` (real Ray), `cli` (the command)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
