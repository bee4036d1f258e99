"""The README and the pages of the site say what is true: their code runs, their messages exist."""

import ast
import functools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn

import mlr3torch_py
from mlr3torch_py import freeze_plan, gradual_unfreezing, t_clbk
from tests.helpers import X, iris_net, moved, weights, y

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ROOMS = [ROOT, DOCS, DOCS / "start", DOCS / "guide", DOCS / "migration"]
PAGES = sorted(page for room in ROOMS for page in room.glob("*.md"))


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


@pytest.fixture
def no_download(monkeypatch):
    """Give random weights where a page asks torchvision for pretrained ones."""
    models = pytest.importorskip("torchvision.models")
    weights = models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights)


@pytest.fixture(autouse=True)
def no_log():
    """Undo what a page does to show the log."""
    yield
    mlr3torch_py.log_to_console(None)


def run(codes):
    scope = {}
    for code in codes:
        exec(compile(code, "a page", "exec"), scope)
    return scope


def test_the_first_example_of_the_readme_learns(capsys):
    torch.manual_seed(1)
    net = run(blocks(ROOT / "README.md")[:1])["net"]
    assert net.history[:, "n_trainable"] == [163, 291, 291, 291, 2339, 2339]
    assert net.history[-1, "valid_acc"] > 0.8
    fits_a_terminal(capsys.readouterr().out)


def test_the_printed_table_fits_a_terminal_with_the_cache_too(capsys):
    cache, unfreeze = t_clbk("frozen_cache"), t_clbk("unfreeze", schedule=gradual_unfreezing(every=1))
    net = iris_net(module__neurons=(8, 8), max_epochs=3, verbose=1, callbacks=[unfreeze, cache]).fit(X, y)
    table = capsys.readouterr().out
    fits_a_terminal(table)
    assert re.findall("cache_hits|n_trainable|unfrozen|cache_saved|unfreeze ", table) == [
        "cache_hits",
        "n_trainable",
        "unfrozen",
    ]
    assert {"cache_saved", "cache_bytes", "event_unfreeze"} < net.history[-1].keys()


def fits_a_terminal(table):
    assert all(len(line) <= 100 for line in re.sub(r"\x1b\[\d+m", "", table).splitlines())


def test_the_script_that_resumes_ends_as_one_that_never_stopped(tmp_path, monkeypatch, capsys):
    (script,) = blocks(DOCS / "guide" / "resume.md")
    ends = []
    for place, runs in {"whole": [20], "stopped": [7, 20]}.items():
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        for n_epochs in runs:
            net = run([script.replace("max_epochs=20", f"max_epochs={n_epochs}")])["net"]
        ends.append(net)
    assert [len(net.history) for net in ends] == [20, 20]
    assert moved(*map(weights, ends)) == set()


def test_the_example_of_r_trains_as_many_weights_as_its_page_says():
    page = DOCS / "migration" / "r.md"
    counts = run(blocks(page)[:1])["net"].history[:, "n_trainable"]
    assert f'`net.history[:, "n_trainable"]` is `{counts}`' in text_of(page)


@pytest.mark.real_networks
def test_the_pretrained_example_of_the_readme_plans_six_phases(no_download, capsys):
    run(blocks(ROOT / "README.md")[1:2])
    assert "6 + conv1.weight, bn1.weight, bn1.bias" in capsys.readouterr().out


@pytest.mark.real_networks
@pytest.mark.skipif(not (find_spec("timm") and find_spec("transformers")), reason="needs timm and transformers")
def test_the_page_on_pretrained_networks_prints_the_plan_that_it_shows(no_download, capsys):
    page = DOCS / "start" / "pretrained.md"
    run(blocks(page))
    (shown,) = blocks(page, "text")
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown.splitlines() if " ".join(line.split()) not in printed] == []


NEEDED = {
    "pretrained_minilm": ["all_minilm_l6_v2", "transformers"],
    "peft_lora": ["all_minilm_l6_v2", "transformers", "peft"],
    "torchvision_pipeline": ["torchvision"],
    "torchvision_detector": ["torchvision"],
}


@pytest.mark.real_networks
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.filterwarnings("ignore:parameters that required no gradient before training will be trained")  # it says so
@pytest.mark.parametrize("name", NEEDED)
def test_a_script_of_the_gallery_that_the_site_does_not_run_runs_with_one_seed(name, capsys):
    for package in NEEDED[name]:
        pytest.importorskip(package)
    code = re.sub(r"SEEDS = range\(\d\)", "SEEDS = range(1)", text_of(DOCS / "gallery" / f"{name}.py"))
    run([re.sub(r"EPOCHS, SEEDS = \d,", "EPOCHS, SEEDS = 4,", code)])
    printed = capsys.readouterr().out
    assert re.search("mean +min +max", printed)
    for apart in re.findall("the weights differ by at most (.*)", printed):
        assert float(apart) <= 1e-5


OURS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in sorted((DOCS / "migration").glob("*.md"))
    for i, code in enumerate(re.findall(r"\{tab-item\} here\n```python\n(.*?)```", text_of(page), flags=re.DOTALL))
    if code.startswith("from mlr3torch_py") and "NeuralNetClassifier" not in code
]


@pytest.mark.parametrize("code", OURS)
def test_what_stands_for_other_packages_code_can_be_made(code):
    assert run([code]).keys() - {"__builtins__"}


class Model(nn.Module):
    """Has all parts that Lighter's page names."""

    def __init__(self):
        super().__init__()
        self.embedding, self.backbone, self.classifier = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.encoder = nn.ModuleDict({f"layer{i}": nn.Linear(4, 4) for i in range(1, 6)})


LIGHTER = re.findall(
    r"\{tab-item\} (Lighter|here)\n```yaml\n(.*?)```", text_of(DOCS / "migration" / "lighter.md"), flags=re.DOTALL
)


@pytest.mark.parametrize("pair", [LIGHTER[i : i + 2] for i in range(0, len(LIGHTER), 2)])
def test_every_configuration_of_lighter_has_ours(pair):
    hydra = pytest.importorskip("hydra.utils")
    omegaconf = pytest.importorskip("omegaconf")
    (_, theirs), (_, ours) = pair
    expected = re.sub(r"lighter\.callbacks\.", "mlr3torch_py.", theirs).replace("model.", "").replace("trainer:\n", "")
    assert [line.strip() for line in ours.splitlines()] == [line.strip() for line in expected.splitlines()]
    callbacks = hydra.instantiate(omegaconf.OmegaConf.create(ours), _convert_="all")["callbacks"]
    net = NeuralNetClassifier(Model, criterion=nn.CrossEntropyLoss, callbacks=callbacks, max_epochs=11)
    plan = freeze_plan(net, batches_per_epoch=200)
    assert len(plan.phases) > 1


def constants():
    for file in Path(mlr3torch_py.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(file))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@functools.cache
def messages():
    return "\n".join(constants())


QUOTED = [
    piece.strip()
    for message in blocks(DOCS / "troubleshooting.md", "text")
    for piece in " ".join(message.split()).split("…")
    if piece.strip()
]


@pytest.mark.parametrize("piece", QUOTED)
def test_the_messages_of_the_troubleshooting_page_are_ours(piece):
    assert piece in messages()


def test_the_troubleshooting_page_numbers_its_symptoms():
    numbers = re.findall(r"^### (\d+)\.", text_of(DOCS / "troubleshooting.md"), flags=re.MULTILINE)
    assert numbers == [str(i) for i in range(1, 22)]


def test_every_public_object_has_a_page():
    listed = re.findall(r"^(?:   |\.\. py:data:: )(\w+)$", text_of(DOCS / "reference.md"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(mlr3torch_py.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    links = [link for link in links if not link.startswith("../auto_examples")]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prompts_stand_in_fences(page):
    outside = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^>>>.*", outside, flags=re.MULTILINE) == []
