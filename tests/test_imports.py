import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xrouter

PACKAGE = Path(xrouter.__file__).parent
FACES = ("serving", "evaluation", "training", "report")
CORE = (
    "catalog",
    "config",
    "episode",
    "fleets",
    "metering",
    "orchestrator",
    "policies",
    "prompts",
    "provenance",
    "providers",
    "reward",
    "tools",
    "verifiers",
)
BELOW_THE_LOOP = ("catalog", "config", "episode", "prompts", "provenance", "reward", "tools")
HEAVY = ("torch", "litellm", "fastapi", "vllm", "transformers", "matplotlib", "pandas")


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules of the package that a file imports, as dotted names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "xrouter"}


def files(part: str) -> list[Path]:
    single = PACKAGE / f"{part}.py"
    return [single] if single.is_file() else sorted((PACKAGE / part).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_importing_the_package_takes_less_than_a_fifth_of_a_second():
    code = "import time; t = time.perf_counter(); import xrouter; print(time.perf_counter() - t)"
    assert min(float(fresh(code)) for _ in range(5)) < 0.2


@pytest.mark.parametrize(
    "module", ["xrouter", "xrouter.catalog", "xrouter.tools", "xrouter.orchestrator", "xrouter.cli"]
)
def test_the_core_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    assert fresh(code) == ""


@pytest.mark.parametrize("part", CORE)
def test_the_core_never_imports_a_face(part):
    if not files(part):
        pytest.skip(f"no module {part}")
    for path in files(part):
        wrong = {
            name for name in imports(path) for face in FACES if name.startswith(f"xrouter.{face}")
        }
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


@pytest.mark.parametrize("part", BELOW_THE_LOOP)
def test_what_lies_below_the_loop_does_not_import_it(part):
    above = ("xrouter.orchestrator", "xrouter.policies", "xrouter.fleets")
    for path in files(part):
        assert not {n for n in imports(path) if n.startswith(above)}


def test_modules_do_not_import_each_other_in_a_circle():
    modules = {module_name(p): p for p in PACKAGE.rglob("*.py")}
    graph = {
        name: {m for m in imports(path, top_level_only=True) if m in modules and m != name}
        for name, path in modules.items()
    }
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"in a circle, or above one: {sorted(graph)}"
