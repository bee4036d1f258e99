"""What the site needs beyond Sphinx: inventories from text files, and links from names to their pages."""

import inspect
import re
import sys
import zlib
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform

import mlr3torch_py
from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.training.stages import StagedCallback, machinery_of

HEADER = (
    b"# Sphinx inventory version 2\n# Project: %s\n# Version: \n"
    b"# The remainder of this file is compressed using zlib.\n"
)
INTERNALS = {
    "CallbackSetFrozenCache.make_parts",
    "ContextTorch.asked_by",
    "ContextTorch.epochs_left",
    "Schedule.for_network",
    "Schedule.may_have_rows",
    "Schedule.set_params",
}
NAME = re.compile(r"(?:mlr3torch_py\.)?(\w+)(?:\(.*\))?", flags=re.DOTALL)


def inventories(folder):
    """Make the inventories of other sites from text files, so that the site can be built without a network.

    The first line of ``<project>.txt`` is the address of the site; each other line is a name, its role and its page.
    """
    made = Path(__file__).parent.parent / "build" / "inventories"
    made.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for file in sorted(folder.glob("*.txt")):
        address, *entries = file.read_text(encoding="utf-8").split("\n")
        lines = [f"{name} {role} 1 {page} -" for name, role, page in (entry.split() for entry in entries if entry)]
        inventory = made / f"{file.stem}.inv"
        text = "".join(line + "\n" for line in lines)
        inventory.write_bytes(HEADER % file.stem.encode() + zlib.compress(text.encode()))
        mapping[file.stem] = (address, str(inventory))
    return mapping


class NamesOfCode(SphinxTransform):
    """Link every public name in monospace to its page: `freeze_plan`, and calls such as ``t_clbk("unfreeze")``.

    What stands between single backticks in a docstring is a name of code, too.
    """

    default_priority = 5

    def apply(self, **kwargs):
        for block in self.document.findall(nodes.literal_block):  # a doctest ends in an empty line
            if block.rawsource == block.astext():
                block.rawsource = block.astext().rstrip("\n")
                block[:] = [nodes.Text(block.rawsource)]
        for kind in (nodes.literal, nodes.title_reference):
            for node in list(self.document.findall(kind)):
                text = node.astext()
                literal = nodes.literal(text, text, classes=["code", "docutils"])
                found = NAME.fullmatch(text)
                if isinstance(node.parent, nodes.reference | pending_xref | nodes.title):
                    continue
                if found and found[1] in mlr3torch_py.__all__:
                    target = f"mlr3torch_py.{found[1]}"
                    literal["classes"] += ["xref", "py"]
                    link = pending_xref(text, literal, refdomain="py", reftype="obj", reftarget=target, refwarn=True)
                    node.replace_self(link)
                elif kind is nodes.title_reference:
                    node.replace_self(literal)


def linkcode_resolve_at(repository):
    """Return the function that tells sphinx.ext.linkcode where an object is defined."""

    def linkcode_resolve(domain, info):  # noqa: ARG001
        thing = sys.modules[info["module"]]
        for part in info["fullname"].split("."):
            thing = getattr(thing, part, None)
        try:
            file, (lines, first) = inspect.getsourcefile(inspect.unwrap(thing)), inspect.getsourcelines(thing)
        except TypeError:  # data and properties
            return None
        path = Path(file).relative_to(Path(mlr3torch_py.__file__).parents[1]).as_posix()
        return f"{repository}/blob/v{mlr3torch_py.__version__}/{path}#L{first}-L{first + len(lines) - 1}"

    return linkcode_resolve


def leave_out_internals(app, what, name, member, skip, options):  # noqa: ARG001
    """Leave out of a page what `dir` of a callback leaves out; None lets autodoc decide."""
    function = getattr(member, "fget", member)
    place, _, name = getattr(function, "__qualname__", "").rpartition(".")
    cls = getattr(sys.modules.get(getattr(function, "__module__", None)), place, None)
    is_of_callback = isinstance(cls, type) and issubclass(cls, StagedCallback)
    is_internal = f"{place}.{name}" in INTERNALS or (is_of_callback and name in machinery_of(FreezingCallback))
    return True if is_internal else None


def setup(app):
    app.add_transform(NamesOfCode)
    app.connect("autodoc-skip-member", leave_out_internals)
    return {"parallel_read_safe": True}
