"""What CONTRIBUTING.md says about a new source is enough to add one."""

import re

from converting import DATA, PLAIN, plain_model, plt_convert

import conversion_plt.sources

PAGE = (DATA.parents[1] / "CONTRIBUTING.md").read_text()


def test_the_source_of_the_page_converts_with_the_same_logits(tmp_path, monkeypatch, capsys):
    name, text = re.search(r"`conversion/sources/(\w+)\.py`\.\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL).groups()
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(conversion_plt.sources, "__path__", [*conversion_plt.sources.__path__, str(tmp_path)])
    monkeypatch.setitem(PLAIN, name, {"head_dim": 12, "attention_bias": True, "attention_out_bias": True})
    model = plain_model(name)
    model.save_pretrained(tmp_path / "source")
    plt_convert(tmp_path / "source", tmp_path / "target")
    assert f"agree with transformers' {type(model).__name__}" in capsys.readouterr().out
