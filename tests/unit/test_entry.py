"""What every script does around its main function."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import PROJECT


def test_a_signal_ends_even_what_waits_for_its_threads() -> None:
    """As a download does, which waits for the gigabytes that are under way."""
    code = """
import time
from concurrent.futures import ThreadPoolExecutor
from tryon import entry

def main(argv):
    with ThreadPoolExecutor() as pool:
        pool.submit(time.sleep, 600)
        print("waiting", flush=True)
        time.sleep(600)

entry.GRACE_SECONDS = 0.5
entry.run_script(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert said == "stopped by SIGTERM\n"


def test_a_refusal_is_one_sentence_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(PROJECT)
    refused = subprocess.run(
        [sys.executable, "-m", "deepfashion_training.preflight", "--nope"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "link"), "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr == "error: unknown flag --nope\n"
