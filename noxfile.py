"""What has to pass: ``nox`` runs it all, ``nox -s lint`` one part; CI runs the same sessions."""

import shlex
import shutil
from pathlib import Path

import nox

README = Path(__file__).parent / "README.md"
PRETRAINED = "notebooks/minilm_fine_tuning.ipynb"

nox.options.reuse_venv = "yes"
nox.options.sessions = ["locked", "lint", "types", "imports", "docs", "notebooks", "example", "wheel", "newest"]


def install(session, *packages):
    """Install packages in the releases that the tests run with."""
    session.install("-c", "constraints.txt", *packages)


def run_from_readme(session, purpose, *options):
    """Run the line of the README that installs the package and then does something with it."""
    commands = [line.split(" && ") for line in README.read_text(encoding="utf-8").splitlines()]
    setup, command = next(pair for pair in commands if len(pair) == 2 and pair[1].startswith(purpose))
    session.run(*shlex.split(setup))
    session.run(*shlex.split(command), *options)


@nox.session
def locked(session):
    """Run all tests, by the command of the README; options after ``--`` are passed to pytest."""
    run_from_readme(session, "pytest", *session.posargs)


@nox.session
def lint(session):
    """Check style, format, spelling, and that no banned word is used."""
    install(session, "ruff", "codespell")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("codespell", "-D", "docs/banned_words.txt")


@nox.session
def types(session):
    """Check the types; what a user's type checkers say is a test."""
    install(session, "-e", ".[dev]")
    session.run("mypy")


@nox.session
def imports(session):
    """Check that rooms import only downwards."""
    install(session, "import-linter")
    session.run("lint-imports", "--no-logo")


@nox.session
def docs(session):
    """Build the site into ``build/docs``; a warning is an error. Then open it in a browser, if there is one."""
    install(session, "-e", ".[dev]")
    session.run("sphinx-build", "-q", "-W", "-n", "docs", "build/docs")
    session.run("pytest", "tests/docs/test_site.py", "-p", "no:cacheprovider", *session.posargs)


@nox.session
def notebooks(session):
    """Run the notebooks but that of a pretrained network; drive JupyterLab in a browser, if both are there."""
    install(session, "-e", ".[dev,lab]")
    options = "--nbmake", f"--ignore={PRETRAINED}", "-n", "auto", "-p", "no:cacheprovider"
    session.run("pytest", *options, "notebooks")
    session.run("pytest", "tests/notebooks", "-p", "no:cacheprovider", *session.posargs)


@nox.session(venv_backend="venv", reuse_venv=False)
def example(session):
    """Run the example by the command of the README, in an empty environment of its own."""
    run_from_readme(session, "python -m mlr3torch_py", "--png", str(Path(session.create_tmp()) / "timeline.png"))


@nox.session(venv_backend="venv", reuse_venv=False)
def newest(session):
    """Run the quick tests, those of real networks and their notebook, with the newest torch that has a torchvision."""
    session.install("torch==2.14.1", "torchvision==0.29.1", "-e", ".[dev,networks]")
    session.run("pytest", "-m", "not slow or real_networks", "-n", "auto", *session.posargs)
    session.run("pytest", "--nbmake", PRETRAINED, "-p", "no:cacheprovider")


@nox.session(venv_backend="venv", reuse_venv=False)
def lowest(session):
    """Run the quick tests with the lowest releases that pyproject.toml admits."""
    session.install("-c", "tests/lowest.txt", "-e", ".[dev]")
    session.run("pytest", "-m", "not slow", "-n", "auto", *session.posargs)


@nox.session(venv_backend="none")
def gpu(session):
    """Run the tests and the benchmark that need a GPU, in the environment that you are in, which has a torch for it."""
    session.run("python", "-m", "pytest", "-m", "gpu", *session.posargs)
    session.run("python", "-m", "benchmarks.gpu")


@nox.session(venv_backend="venv", reuse_venv=False)
def wheel(session):
    """Build the wheel and the sdist, and run the quick tests of the sdist on the wheel, in an empty environment."""
    install(session, "build", "twine")
    built = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--outdir", str(built))
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    install(session, f"{wheel}[dev]")
    shutil.unpack_archive(sdist, built)
    session.chdir(built / sdist.name.removesuffix(".tar.gz"))
    shutil.rmtree("mlr3torch_py")  # so that the tests import the wheel
    session.run("pytest", "-m", "not slow", "-n", "auto", "tests", "docs", *session.posargs)
