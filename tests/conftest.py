"""What all tests share: places, small models, one Ray cluster, and a line of times per suite."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Before torch is imported: tests run beside each other's workers, and a second thread only takes turns with them.
os.environ["OMP_NUM_THREADS"] = "1"
# Ray's processes would give way to those of other tests, and take minutes for seconds on a busy machine.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# Tests must not depend on what lies in the user's cache, nor leave anything there.
_cache = tempfile.TemporaryDirectory(prefix="memory-v2v-cache-")
os.environ["XDG_CACHE_HOME"] = _cache.name
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from tests import ROOT  # noqa: E402

settings.register_profile(
    "tests", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real footage and cameras beside the repository; not part of it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at ../shared/data beside {ROOT.name}")
    return SHARED


@pytest.fixture(scope="session")
def clips(shared_data: Path) -> Path:
    return shared_data / "clips"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the smallest model: an edit takes milliseconds."""
    from tests.tiny import build_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a data set of a few rendered scenes, for the tiny model to train on."""
    from tests.training import render_scenes

    return render_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """`server(status)` says the URL of a file of which a web server gives no more than this answer."""
    running = []

    def serve(status: int, name: str = "a.mp4") -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_error(status)

            do_HEAD = do_GET

            def log_message(self, *about: object) -> None:
                pass

        running.append(ThreadingHTTPServer(("localhost", 0), Answer))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://localhost:{running[-1].server_port}/{name}"

    yield serve
    for each in running:
        each.shutdown()
        each.server_close()


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray for all tests that need one: starting it takes seconds. Four CPUs, whatever the machine has."""
    import ray

    context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context
    ray.shutdown()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # modules stay to the end: looking through them again and again took a tenth of the time


_seconds: dict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    parts = report.nodeid.split("/")
    _seconds[parts[1] if len(parts) > 2 else "repository"] += report.duration


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(
        "suites: " + ", ".join(f"{suite} {seconds:.0f} s" for suite, seconds in sorted(_seconds.items()))
    )
