"""Loading from a hub on loopback: what is downloaded, what is said, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pyarrow.parquet import read_table

from conftest import PROJECT
from known_lines import INFERENCE, unknown_lines
from stub_hub import StubHub, serve
from test_dataset import write_pictures
from test_upload import call
from tryon.hub import folder_on_disk
from tryon.toy.dataset import write_dataset
from tryon.toy.model import ToyFolders

pytestmark = pytest.mark.e2e

EXPORT = "deepfashion_training.export_viton_hd"


@pytest.fixture(scope="module")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of these tests keep the hub's files."""
    return tmp_path_factory.mktemp("hub home")


@pytest.fixture(scope="module")
def hub(toy: ToyFolders, tmp_path_factory: pytest.TempPathFactory) -> StubHub:
    """The repositories that users have, with files in them that nobody needs."""
    folder = tmp_path_factory.mktemp("repositories")
    shutil.copytree(toy.transformer, folder / "catvton")
    (folder / "catvton" / "pytorch_model.bin").write_text("a pickle")
    (folder / "catvton" / "examples").mkdir()
    (folder / "catvton" / "examples" / "other.safetensors").write_text("not the transformer's")
    shutil.copytree(toy.base, folder / "flux")
    shutil.copytree(toy.transformer, folder / "flux" / "transformer")
    shutil.copytree(toy.transformer, folder / "fill" / "transformer")
    (folder / "fill" / "flux1-fill.safetensors").write_text("the same in another form")
    (folder / "plain").mkdir()
    config = {**json.loads((toy.transformer / "config.json").read_text()), "in_channels": 64}
    (folder / "plain" / "config.json").write_text(json.dumps(config))
    (folder / "plain" / "diffusion_pytorch_model.safetensors").write_text("never looked at")
    shutil.copytree(toy.base / "vae", folder / "large" / "vae")
    (folder / "large" / "vae" / "enormous.safetensors").write_text("said to be large")
    names = ("catvton", "flux", "fill", "plain", "large")
    repositories = {f"somebody/{name}": folder / name for name in names}
    for name in ("gated", "later", "cut"):
        repositories[f"somebody/{name}"] = toy.base
    return StubHub(
        repositories,
        gated={"somebody/gated"},
        cut={"somebody/cut"},
        refusing={"somebody/broken": 500, "somebody/forbidden": 403},
        sizes={"vae/enormous.safetensors": 10**18},
    )


def load(cases: list[tuple[str, str]], home: Path, **variables: str) -> tuple[list[int | str], str]:
    """What became of each pair of base and transformer, and what was said meanwhile."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "e2e" / "load_from_hub.py")],
        input=json.dumps(cases), capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **variables},
    )  # fmt: skip
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_what_is_downloaded_refused_and_used_again(hub: StubHub, hub_home: Path) -> None:
    flux, catvton = "somebody/flux", "somebody/catvton"
    with serve(hub):
        results, said = load(
            [
                (flux, catvton),
                (flux, "somebody/fill"),
                (flux, "somebody/plain"),
                ("somebody/gated", catvton),
                ("nobody/nothing", catvton),
                ("somebody/broken", catvton),
                ("somebody/forbidden", catvton),
                ("somebody/large", catvton),
                ("somebody/cut", catvton),
                (catvton, catvton),
            ],
            hub_home,
            HF_ENDPOINT=hub.url,
        )
        page = f"{hub.url}/somebody/gated"
    root, subfolder, *refused = results
    assert root == subfolder > 6_000_000
    expected = [
        "somebody/plain has 64 input channels, a FLUX-Fill transformer has 384",
        f"somebody/gated needs its licence accepted: accept it at {page}, then run `hf auth login`",
        "nobody/nothing is neither a folder here nor a repository on the hub that you may read",
        "the hub refused somebody/broken (500): try again later",
        "the hub refused somebody/forbidden (403): run `hf auth login` with a token that may read it",
        "somebody/large with somebody/catvton needs 1,000,000,000.0 GB and ",
        "the download of somebody/cut was cut short (",
        "somebody/catvton has no tokenizer, tokenizer_2, text_encoder, text_encoder_2, vae, scheduler: give",
    ]
    for sentence, words in zip(refused, expected, strict=True):
        assert words in sentence and "\n" not in sentence

    assert "downloading 0.03 GB of somebody/catvton into " in said and "downloaded somebody/catvton" in said
    assert "Traceback" not in said and "%" not in said, "no bars where there is no terminal"
    assert not [path for path in hub.asked if path.endswith((".bin", "other.safetensors", "flux1-fill.safetensors"))]
    assert not [path for path in hub.asked if path.startswith("somebody/flux/transformer")], "FLUX.1's own 24 GB"
    assert [path for path in hub.asked if path.startswith(("somebody/plain", "somebody/large"))] == [
        "somebody/plain/config.json"
    ]

    catvton_files, cache = ["config.json", "diffusion_*.safetensors"], str(hub_home / "hub")
    assert (folder_on_disk(catvton, catvton_files, cache) / "config.json").is_file()
    for name in ("somebody/cut", "somebody/later", "somebody/plain", "no/name/at all"):
        assert folder_on_disk(name, catvton_files, cache) is None, name

    results, said = load([(flux, catvton), ("somebody/later", catvton)], hub_home, HF_HUB_OFFLINE="1")
    assert results[0] == root
    assert "somebody/later is not a folder here, not downloaded yet, and the hub cannot be reached" in results[1]
    assert "downloading" not in said and "Traceback" not in said


def test_inference_with_models_and_lora_from_the_hub(hub: StubHub, hub_home: Path, run: Path, pictures: Path) -> None:
    hub.repositories["somebody/lora"] = run / "checkpoint-1" / "transformer"
    with serve(hub):
        done = subprocess.run(
            [
                sys.executable, "tryon_inference_lora.py", "--lora", "somebody/lora", "--category", "full",
                "--base", "somebody/flux", "--transformer", "somebody/catvton", "--steps", "1",
                "--image", pictures / "person.png", "--mask", pictures / "mask.png",
                "--garment", pictures / "garment.png", "--output_tryon", pictures / "out.png",
                "--data_cache_dir", pictures / "cache",
            ],
            cwd=PROJECT, capture_output=True, text=True, check=False,
            env={**os.environ, "HF_HOME": str(hub_home), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "loading torch, diffusers and transformers ...\n" and "wrote " in done.stdout
    assert unknown_lines(done.stdout, INFERENCE) == []
    assert done.stdout.count("this LoRA was trained for") == 2
    assert not [path for path in hub.asked if "segformer" in path], "a given mask is worth no parser's download"
    assert Image.open(pictures / "out.png").size == (64, 96)


def test_a_data_set_from_the_hub(hub: StubHub, tmp_path: Path) -> None:
    file = write_dataset(tmp_path / "data", items=6, seed=0)
    write_pictures(tmp_path / "photos", read_table(file).to_pylist())
    hub.repositories |= {"somebody/data": tmp_path / "data", "somebody/photos": tmp_path / "photos"}
    hub.repositories["somebody/pictures"] = tmp_path / "pictures"
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "README.md").write_text("nothing of use")

    def export(data_sets: list[tuple[str, str]], **variables: str) -> tuple[list[str | None], str]:
        """Writes each data set into the folder of this name."""
        cases = [
            (EXPORT, [name, str(tmp_path / folder), "--cache_dir", str(tmp_path / "hub files")], "")
            for name, folder in data_sets
        ]
        return call(cases, tmp_path / "home", **variables)

    with serve(hub):
        names = [("somebody/data", "from the hub"), ("somebody/photos", "of pictures"),
                 ("somebody/pictures", "nothing"), ("nobody/nothing", "nothing")]  # fmt: skip
        online, said = export(names, HF_ENDPOINT=hub.url)
    assert list((tmp_path / "hub files").glob("datasets--somebody--data")), "--cache_dir is where they are"
    names = [("somebody/data", "again"), (str(tmp_path / "data"), "local"), ("somebody/other", "nothing")]
    offline, said_offline = export(names, HF_ENDPOINT="http://127.0.0.1:9")  # nobody answers there
    assert online[:2] == offline[:2] == [None, None]
    assert (
        said.count("loading torch and datasets ...") == 4 and said_offline.count("loading torch and datasets ...") == 3
    )
    assert said.count("test pairs into") == said_offline.count("test pairs into") == 2
    assert "Traceback" not in said + said_offline
    names = {path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.*")}
    assert len(names) > 30
    for name in names:
        content = (tmp_path / "local" / name).read_bytes()
        for folder in ("from the hub", "again", "of pictures"):
            assert (tmp_path / folder / name).read_bytes() == content, (folder, name)

    refusals = (
        "(it has no parquet files and no metadata.jsonl or .csv)",
        "nor a repository on the hub that you may read",
        "the hub cannot be reached",
    )
    for sentence, words in zip([*online[2:], *offline[2:]], refusals, strict=True):
        assert words in sentence and "\n" not in sentence
    assert not (tmp_path / "nothing").exists()
