"""The house rules: who imports whom, nothing is patched, no path is added."""

import ast
from pathlib import Path

import pytest

from conftest import PROJECT

# The packages, lowest floor first: a module imports from its own package or from lower floors. A package's entry stands
# for all that is in it, unless a longer name has an entry of its own.
FLOORS = (
    {"tryon"},
    {"tryon.data"},
    {"tryon.flux", "tryon.report"},
    {"tryon.inference", "tryon.share", "tryon.merge"},
    {"tryon.training", "tryon.evaluation", "tryon.app"},
    {"tryon.toy", "folder_lists"},
    {"folder_datasets", "tryon.answer"},
    {"train_flux_inpaint", "tryon_inference_lora", "app_lora", "pretrain_toy"},
    {"deepfashion_training"},
    {"evaluate_lora"},  # it scores on rows of DeepFashion too
)


def product_files() -> list[Path]:
    files = [*PROJECT.glob("*.py"), *PROJECT.glob("tryon/**/*.py"), *PROJECT.glob("deepfashion_training/*.py")]
    return [path for path in files if path.name != "__init__.py"]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def package_of(module: str) -> str | None:
    """The longest name of FLOORS that the module is, or is in; None for another project's."""
    names = [name for floor in FLOORS for name in floor if f"{module}.".startswith(f"{name}.")]
    return max(names, key=len, default=None)


def floor_of(package: str) -> int:
    return next(number for number, packages in enumerate(FLOORS) if package in packages)


@pytest.mark.parametrize("path", product_files(), ids=module_of)
def test_imports_go_down(path: Path) -> None:
    own = package_of(module_of(path))
    assert own, f"{path} has no floor"
    used = {package for name in imports_of(path) if (package := package_of(name))} - {own}
    assert not {package for package in used if floor_of(package) >= floor_of(own)}


def test_the_driver_calls_the_loop_and_patches_nothing() -> None:
    """The data set is an argument: no product file assigns to a module's or a class's attribute, or to sys.path."""
    for path in product_files():
        tree = ast.parse(path.read_text())
        imported = {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                    assert target.value.id not in imported, f"{path}: patches {ast.unparse(target)}"
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"setattr", "sys.path.insert", "sys.path.append"}, path

    driver = PROJECT / "deepfashion_training" / "train_deepfashion_lora.py"
    uses = [
        node
        for node in ast.walk(ast.parse(driver.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "train_flux_inpaint"
    ]
    assert [[alias.name for alias in node.names] for node in uses] == [["PairCounts", "evaluate_on", "run_training"]]


def test_settings_and_run_names_import_nothing_heavy() -> None:
    light = (
        "config",
        "profiles",
        "cli",
        "signals",
        "runs",
        "console",
        "files",
        "data/category",
        "flux/prompts",
        "flux/lora_header",
        "inference/pairs_file",
        "toy/pretrain/config",
    )
    training = ("deepfashion_training/launch.py", "deepfashion_training/preflight.py")
    for name in (*(f"tryon/{each}.py" for each in light), "folder_lists.py", *training):
        heavy = {"torch", "numpy", "diffusers", "transformers", "accelerate", "datasets", "PIL"}
        assert not {module.split(".")[0] for module in imports_of(PROJECT / name)} & heavy


def test_nothing_that_is_read_can_run_code() -> None:
    """Weights come from safetensors, our own state from JSON, and code from nowhere but here."""
    forbidden = {"load": ("torch", "pickle"), "loads": ("pickle",)}
    for path in [*product_files(), *PROJECT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            flags = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            assert not flags.keys() & {"trust_remote_code", "allow_pickle"}, path
            assert flags.get("use_safetensors") is not False, path
            if isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                assert node.func.value.id not in (forbidden.get(node.func.attr, ())), path
