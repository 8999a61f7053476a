"""The house as design has it: imports go one way (import-linter), and no file imports itself through others."""

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest


def test_no_circles_between_files() -> None:
    graph = grimp.build_graph("reducible", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " -> ".join(reversed(error.args[1])))
