"""What a job depends on beside its notebook and parameters: package files, data, built-in models."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import medstudy
from medstudy.data.card import CARDS, Files, Hub, load_card
from medstudy.data.cases import DataError
from medstudy.params import RunParams
from medstudy.runs import slug


def code_of(source: str) -> list[str]:
    """Files of the package that a notebook (or a module, by name) imports, directly or through others."""
    import grimp

    graph = grimp.build_graph("medstudy", cache_dir=None)
    names = _imports(Path(source)) if source.endswith(".ipynb") else [source]
    # a module's packages are imported with it: a.b.c, a.b, a
    used = {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)} & graph.modules
    used |= {below for name in used for below in graph.find_upstream_modules(name)}
    return sorted(os.path.relpath(_file_of(name)) for name in used)


def data_files(run: RunParams) -> list[str]:
    """The run's data card, and the local files that it names."""
    from medstudy.data.tables import find_file  # with pandas, which most commands do not need

    card = load_card(run.data)
    path = Path(run.data) if Path(run.data).suffix in {".yaml", ".yml"} else CARDS / f"{run.data}.yaml"
    source = card.load.local if isinstance(card.load, Hub) else card.load
    named = [*source.files, *(j.file for j in source.join)] if isinstance(source, Files) else []
    local = [run.pair_file] if run.pair_file else []
    for file in named:
        with contextlib.suppress(DataError):  # said by the notebook, with what helps
            local.append(str(find_file(file.path, run.data_root, card.folder)))
    return [os.path.relpath(path), *(file for file in local if Path(file).is_file())]


def base_marker(model: str, results: Path) -> list[str]:
    """The file that says that a built-in model is there; none for models that are not built here."""
    return [str(results / "base_models" / f"{slug(model)}.done")] if model.startswith("builtin/") else []


def _imports(notebook: Path) -> Iterator[str]:
    """Names that a notebook imports, each possibly a module or something in one."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for node in ast.walk(ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", code))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(module: str) -> Path:
    path = Path(medstudy.__file__).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
