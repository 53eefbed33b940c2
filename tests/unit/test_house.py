"""The house rules: who imports whom, nothing is patched, no path is added."""

import ast
from pathlib import Path

import pytest

from conftest import PROJECT

# Lower floors first; a module imports from its own floor or from below. Toy, benchmarks and tests stand outside.
FLOORS = [
    {"tryon.config", "tryon.flags", "tryon.sample", "tryon.masks", "tryon.geometry", "tryon.flow",
     "tryon.outline", "tryon.units", "tryon.prompts", "tryon.console"},
    {"tryon.manifest", "tryon.runs", "tryon.entry", "tryon.tracking", "tryon.hub", "tryon.memory", "tryon.models",
     "tryon.lora", "tryon.lora_header", "tryon.tensor_files", "tryon.parsing", "tryon.encode", "tryon.cache",
     "tryon.checkpoint", "tryon.batches",
     "tryon.metrics", "tryon.timing", "tryon.step", "tryon.quantize", "tryon.blocks",
     "tryon.attention", "tryon.training_blocks", "tryon.compiler", "tryon.check",
     "tryon.prepare", "tryon.speed", "tryon.plan", "tryon.perceptual", "tryon.restore"},
    {"tryon.pipeline", "tryon.validate", "tryon.evaluate", "tryon.evaluation", "tryon.report", "tryon.share",
     "tryon.scoring", "tryon.comparison", "tryon.studio", "tryon.page", "tryon.layout"},
    {"train_flux_inpaint", "folder_datasets", "folder_lists", "tryon_inference_lora", "app_lora", "pretrain_toy"},
    {"deepfashion_training.preflight", "deepfashion_training.references", "deepfashion_training.pairing",
     "deepfashion_training.deepfashion_dataset",
     "deepfashion_training.log_output", "deepfashion_training.export_viton_hd",
     "deepfashion_training.train_deepfashion_lora", "deepfashion_training.inspect_dataset"},
    {"evaluate_lora"},
]  # fmt: skip
MAY_USE_THE_TOY = {
    "train_flux_inpaint",
    "tryon_inference_lora",
    "app_lora",
    "pretrain_toy",
    "evaluate_lora",
    "deepfashion_training.train_deepfashion_lora",
}


def product_files() -> list[Path]:
    files = [*PROJECT.glob("*.py"), *PROJECT.glob("tryon/*.py"), *PROJECT.glob("deepfashion_training/*.py")]
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


def test_every_module_has_its_floor() -> None:
    assert {module_of(path) for path in product_files()} == set().union(*FLOORS)


@pytest.mark.parametrize("path", product_files(), ids=module_of)
def test_lower_floors_do_not_import_upper_ones(path: Path) -> None:
    module = module_of(path)
    floor = next(number for number, modules in enumerate(FLOORS) if module in modules)
    above = set().union(*FLOORS[floor + 1 :])
    assert not imports_of(path) & above
    if module not in MAY_USE_THE_TOY:
        assert not [name for name in imports_of(path) if name.startswith("tryon.toy")]


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
    assert [[alias.name for alias in node.names] for node in uses] == [["evaluate_on", "train"]]


def test_settings_and_run_names_import_nothing_heavy() -> None:
    light = ("config", "runs", "entry", "console", "prompts", "manifest", "lora_header")
    for name in (*(f"tryon/{each}.py" for each in light), "folder_lists.py", "deepfashion_training/preflight.py"):
        heavy = {"torch", "numpy", "diffusers", "transformers", "accelerate", "datasets", "PIL"}
        assert not {module.split(".")[0] for module in imports_of(PROJECT / name)} & heavy


def test_nothing_that_is_read_can_run_code() -> None:
    """Weights come from safetensors, our own state from JSON, and code from nowhere but here."""
    forbidden = {"load": ("torch", "pickle"), "loads": ("pickle",)}
    for path in [*product_files(), *PROJECT.glob("tryon/toy/*.py"), *PROJECT.glob("benchmarks/*.py")]:
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
