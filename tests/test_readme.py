import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_code_in_the_readme_runs(capsys):
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL):
        scope = {}
        exec(compile(block, str(README), "exec"), scope)
    assert scope["net"].history[:, "n_trainable"] == [8, 12, 12, 12, 14, 14]
    assert "n_trainable" in capsys.readouterr().out
