"""Sharing a run: what the real library uploads to a hub on loopback, what is refused, and that no run is lost."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from conftest import PROJECT
from launch import TOKEN
from stub_hub import StubHub, serve
from test_folders import write_viton_hd
from tryon.files import save_json
from tryon.profiles import full, on_toy
from tryon.runs import LORA_FILE

pytestmark = pytest.mark.e2e

SHARE, TRAIN = "tryon.share", "train_flux_inpaint"


def call(cases: list[tuple[str, list[str], str]], home: Path, **variables: str) -> tuple[list[str | None], str]:
    """What became of each case, and what was said meanwhile."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "e2e" / "call_with_hub.py")],
        input=json.dumps(cases), capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
             "HF_HUB_DISABLE_XET": "1", **variables},
    )  # fmt: skip
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def shared(run: Path, tmp_path: Path) -> Path:
    """A run with its settings, as the drivers leave them, and with things that nobody else may see."""
    shutil.copytree(run, tmp_path / "a run")
    save_json(tmp_path / "a run" / "config.json", asdict(on_toy(full())))
    (tmp_path / "a run" / "share").mkdir()
    (tmp_path / "a run" / "share" / "person.png").write_text("somebody")
    return tmp_path / "a run"


def test_uploads_refusals_and_a_training_that_shares(shared: Path, tmp_path: Path, data_cache: Path) -> None:
    def owner(role: str) -> dict:
        return {"name": "somebody", "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": role}}}

    hub = StubHub(
        {},
        owners={TOKEN: owner("write"), "reader": owner("read")},
        refusing={"team/shut": 403, "somebody/broken": 500},
        unplugged={"without a network"},
        uploaded={"team/open": {}},
    )
    root, trained = write_viton_hd(tmp_path / "viton", size=(96, 128)), tmp_path / "trained"
    training = [
        "--toy", "--dataroot", str(root), "--max_train_steps", "1", "--gradient_accumulation_steps", "1",
        "--height", "96", "--width", "64", "--lora_rank", "4", "--lora_alpha", "8", "--num_inference_steps", "1",
        "--num_validation_images", "1", "--data_cache_dir", str(data_cache), "--report_to", "none",
    ]  # fmt: skip
    to = [str(shared), "--push_to_hub"]
    with serve(hub):
        results, said = call(
            [
                (SHARE, [str(shared)], ""),
                (SHARE, [*to, "somebody/lora", "--private"], TOKEN),
                (SHARE, [*to, "somebody/lora"], TOKEN),
                (SHARE, [*to, "somebody/lora"], ""),
                (SHARE, [*to, "somebody/lora"], "unknown"),
                (SHARE, [*to, "somebody/lora"], "reader"),
                (SHARE, [*to, "others/lora"], TOKEN),
                (SHARE, [*to, "team/open", "--private"], TOKEN),
                (SHARE, [*to, "team/shut"], TOKEN),
                (SHARE, [*to, "somebody/lora"], "without a network"),
                (TRAIN, [*training, "--output_dir", str(trained), "--push_to_hub", "somebody/broken"], TOKEN),
                (TRAIN, [*training, "--output_dir", str(tmp_path / "never"), "--push_to_hub", "others/lora"], TOKEN),
                (SHARE, [str(trained), "--push_to_hub", "team/lora"], TOKEN),
            ],
            tmp_path / "home",
            HF_ENDPOINT=hub.url,
        )
    assert results[:3] == [None, None, None] and results[-1] is None, results
    expected = [
        "--push_to_hub somebody/lora needs a login: run `hf auth login` with a token that may write",
        "the hub does not let this login write to somebody/lora (401)",
        "--push_to_hub somebody/lora needs a token that may write",
        "--push_to_hub others/lora belongs neither to you nor to an organisation of yours: name a repository of some",
        "team/open is public already: make it private in its settings, or leave --private out",
        "the hub does not let this login write to team/shut (403): run `hf auth login` with a token that may",
        "the upload to somebody/lora failed (Server disconnected without sending a response.): look at the network",
        "the hub refused somebody/broken (500): try again later",
        "--push_to_hub others/lora belongs neither",
    ]
    for sentence, words in zip(results[3:-1], expected, strict=True):
        assert sentence.startswith(words) and "\n" not in sentence
    assert results[8].endswith(f"upload it with `python -m tryon.share '{shared}' --push_to_hub team/shut`")
    assert results[10].endswith(f"upload it with `python -m tryon.share {trained} --push_to_hub somebody/broken`")
    assert not (tmp_path / "never").exists(), "a run that cannot be shared at its end does not begin"

    assert hub.private == {"somebody/lora"} and hub.uploaded.pop("team/open") == {}
    assert hub.uploaded.keys() == {"somebody/lora", "team/lora"}
    for name, run in (("somebody/lora", shared), ("team/lora", trained)):
        files = hub.uploaded[name]
        assert files.keys() == {"README.md", LORA_FILE}, "nothing else, whatever lies beside them"
        assert all(files[file] == (run / "share" / file).read_bytes() for file in files)
        assert f"--lora {name} " in files["README.md"].decode()
    assert f"would be uploaded: {shared}/share/README.md (" in said and f"shared: {hub.url}/team/lora" in said
    assert said.count("the hub cannot be asked (Server disconnected without sending a response.): whether this") == 1
    assert "Traceback" not in said and TOKEN not in said + str(results)
