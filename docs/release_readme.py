"""What the index page of a release needs: the README with links that work there, and the addresses of the project."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


class MetadataHook(MetadataHookInterface):
    """Fill in what depends on where the repository lies."""

    def update(self, metadata):
        """Set the README and the addresses."""
        repository = self.config["repository"]
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme(text, repository)}
        metadata["urls"] = urls(repository)


def readme(text, repository):
    """Make relative links absolute; without an address leave the text of a link, and leave out pictures."""

    def absolute(found):
        mark, words, path = found.groups()
        if repository:
            return f"{mark}[{words}]({repository}/{'raw' if mark else 'blob'}/HEAD/{path})"
        return "" if mark else words

    return RELATIVE.sub(absolute, text)


def urls(repository):
    """Return the addresses that an index page lists."""
    if not repository:
        return {}
    return {"Source": repository, "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md", "Issues": f"{repository}/issues"}
