"""`make check-docs`: run every command of every document, in full, in their order.

python -m tests.check_docs
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests import ROOT
from tests.docs import DOCUMENTS, commands

# `make test` includes the test of these documents, and `make bench` rewrites one: neither belongs inside.
SKIPPED = {"make test", "make bench"}


def main() -> int:
    environment = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    failed = []
    for document in DOCUMENTS:
        for command in commands(document):
            if command in SKIPPED:
                continue
            if command.startswith(("memory-v2v train", "make train-mini")):
                command += " --dry-run"  # hours: what it would do is all that is asked
            print(f"== {document.name}: {command}", flush=True)
            if subprocess.run(command, shell=True, cwd=ROOT, env=environment).returncode:
                failed.append(command)
    for command in failed:
        print(f"FAILED: {command}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
