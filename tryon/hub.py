"""Files from the hub and to it: how much will be downloaded is said first, and every failure is one sentence.

The hub's own variables work: HF_HUB_OFFLINE=1 takes only what is there, HF_HOME says where that is, and the token is
the one of `hf auth login` or HF_TOKEN. None is ever taken from a flag, which would end up in logs.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx2
import huggingface_hub.errors as errors
from huggingface_hub import constants, create_repo, get_token, model_info, snapshot_download, upload_folder, whoami
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from tqdm import tqdm

from tryon.config import first_line
from tryon.console import on_terminal
from tryon.files import free_disk
from tryon.units import gigabytes

logger = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
# Other forms of the same weights: pickles, which run code when loaded, and other frameworks'.
NEVER_DOWNLOADED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.onnx*", "*.gguf"]
WORTH_A_WORD = 1_000_000  # bytes; below are configurations


def hub_or_folder(
    name: str, patterns: list[str], cache_dir: str | None, ignore: Sequence[str] = (), kind: Kind = "model"
) -> Path:
    """A local folder as it is, or the files of a hub repository of this kind that match, downloaded where they are not
    there yet. Raises ValueError where neither can be had, or the disk has no room."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    size = download_size(name, patterns, cache_dir, ignore, kind)
    if size >= WORTH_A_WORD:
        in_words = check_room(name, size, cache_dir)
        logger.info("downloading %s of %s into %s, which has %s free", in_words[0], name, *in_words[1:])
    with hub_errors_in_words(name, kind):
        bar = partial(tqdm, disable=not (size and on_terminal()), leave=False)
        folder = Path(snapshot_download(name, **_wanted(patterns, cache_dir, ignore, kind), tqdm_class=bar))
    if size >= WORTH_A_WORD:
        logger.info("downloaded %s", name)
    return folder


def folder_on_disk(name: str, patterns: list[str], cache_dir: str | None) -> Path | None:
    """The folder of `hub_or_folder` where a model is there already, without asking the hub; else None."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        folder = Path(snapshot_download(name, **_wanted(patterns, cache_dir, (), "model"), local_files_only=True))
    except (errors.LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if all(any(folder.glob(pattern)) for pattern in patterns) else None  # a download may have been cut


def download_size(
    name: str, patterns: list[str], cache_dir: str | None, ignore: Sequence[str] = (), kind: Kind = "model"
) -> int:
    """How many bytes `hub_or_folder` would download; 0 where all is there, or the hub cannot be asked. Raises
    ValueError where it refuses."""
    if Path(name).expanduser().is_dir():
        return 0
    wanted = _wanted(patterns, cache_dir, ignore, kind)
    with hub_errors_in_words(name, kind):
        try:
            files = snapshot_download(name, **wanted, dry_run=True, tqdm_class=partial(tqdm, disable=True))
        except errors.DryRunError:  # offline, or no answer: the download takes what is there, or says what is wrong
            return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


def _wanted(patterns: list[str], cache_dir: str | None, ignore: Sequence[str], kind: Kind) -> dict[str, Any]:
    ignored = [*ignore, *NEVER_DOWNLOADED]
    return {"repo_type": kind, "allow_patterns": patterns, "ignore_patterns": ignored, "cache_dir": cache_dir}


def check_room(name: str, size: int, cache_dir: str | None) -> tuple[str, Path, str]:
    """Raises ValueError where the hub's cache has no room for `size` bytes of `name`. Returns the size in words, the
    cache's folder, and what it has free in words."""
    folder = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    free = free_disk(folder)
    needed, there = gigabytes(size), gigabytes(free)
    if size > free:
        raise ValueError(
            f"{name} needs {needed} and {folder} has {there} free: make room, or put the hub's files elsewhere with "
            "--cache_dir or HF_HOME"
        )
    return needed, folder, there


@contextmanager
def hub_errors_in_words(name: str, kind: Kind) -> Iterator[None]:
    """Turns what the hub's library raises into a ValueError that says what to do."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(f"{name} needs its licence accepted: accept it at {page}, then run `hf auth login`") from error
    except (errors.RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{name} is neither a folder here nor a repository on the hub that you may read: check the name, "
            "and run `hf auth login` if it is private"
        ) from error
    except errors.IncompleteSnapshotError as error:
        raise ValueError(
            f"{name} is only partly downloaded and the hub cannot be reached: connect to the network to complete it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise ValueError(_refused(name, error.__cause__)) from error
        raise ValueError(
            f"{name} is not a folder here, not downloaded yet, and the hub cannot be reached: check the name, or "
            "connect to the network"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(_refused(name, error)) from error
    except (OSError, RuntimeError, httpx2.HTTPError) as error:  # RuntimeError: hf_xet's
        raise ValueError(
            f"the download of {name} was cut short ({first_line(error)}): start again, what is complete is kept"
        ) from error


def _refused(name: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in (401, 403):
        return (
            f"the hub refused {name} ({status}): run `hf auth login` with a token that may read it, gated "
            "repositories included"
        )
    return f"the hub refused {name} ({status}): try again later"


def check_login(name: str) -> None:
    """Raises ValueError if it is clear already that nothing can be uploaded to the repository `name`: there is no
    login, the token is not valid or may not write, or its owner is neither that user nor in that organisation.

    Where the hub cannot be asked, a warning says so.
    """
    if get_token() is None:
        raise ValueError(f"--push_to_hub {name} needs a login: run `hf auth login` with a token that may write")
    try:
        owner = whoami()
    except (OSError, httpx2.HTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise ValueError(_not_let_in(name, error.response.status_code)) from error
        logger.warning(
            "the hub cannot be asked (%s): whether this login may upload to %s is seen at the upload only",
            first_line(error), name,
        )  # fmt: skip
        return
    names = [owner["name"], *(each["name"] for each in owner.get("orgs", []))]
    if name.partition("/")[0] not in names:
        raise ValueError(
            f"--push_to_hub {name} belongs neither to you nor to an organisation of yours: name a repository of "
            f"{', '.join(names)}"
        )
    if owner.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"--push_to_hub {name} needs a token that may write: make one, then run `hf auth login`")


def upload(folder: Path, files: Sequence[str], name: str, private: bool) -> str:
    """Uploads these files of the folder into the hub's repository `name`, which is made where it is not there yet, as a
    private one if asked for. Returns its address. Raises ValueError where that fails, with what to do about it, and
    where it is to be private and is public already."""
    try:
        create_repo(name, private=private or None, exist_ok=True)
        is_public = private and not model_info(name).private  # one that was there stays as it was
        if not is_public:
            words = "A try-on LoRA and its card"
            upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message=words)
    except HFValidationError as error:
        raise ValueError(f"{name} is no name of a repository ({first_line(error)}): give another") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(_not_let_in(name, status) if status in (401, 403, 404) else _refused(name, error)) from error
    except errors.OfflineModeIsEnabled as error:
        raise ValueError(f"HF_HUB_OFFLINE forbids the upload to {name}: unset it") from error
    except (OSError, RuntimeError, ValueError, httpx2.HTTPError) as error:
        words = first_line(error.__cause__ or error)
        raise ValueError(f"the upload to {name} failed ({words}): look at the network, and try again") from error
    if is_public:
        raise ValueError(f"{name} is public already: make it private in its settings, or leave --private out")
    return f"{constants.ENDPOINT}/{name}"


def _not_let_in(name: str, status: int) -> str:
    return f"the hub does not let this login write to {name} ({status}): run `hf auth login` with a token that may"
