"""`check_on_gpu --dry-run`: the parts with vLLM, on a CPU at a tiny size."""

import json

from serving_plt.vllm.check_on_gpu import main
from serving_plt.vllm.gpu_checks.scale import DRY
from serving_plt.vllm.gpu_checks.served_models import MODELS


def test_a_dry_run_compares_tokens_in_every_way_and_measures_every_point(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # vLLM then runs what it has traced as it is, from the first request on
    main(["--dry-run", "--parts", "vllm-tokens,vllm-models,vllm-latency", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "check_on_gpu.json").read_text())["rows"]
    compared, of_models = (
        {row["check"]: row for row in rows if row["part"] == part} for part in ("vllm-tokens", "vllm-models")
    )
    batches = [f"batch {size}" for size in DRY.served_together]
    both = [*batches, "cached prefix"]
    ways = ["vLLM's defaults, bf16", *(f"vLLM's defaults, float32, {one}" for one in both)]
    ways += [f"enforce_eager, float32, {one}" for one in batches]
    ways += [f"pruned prompts, float32, {one}" for one in both]
    ways += ["few blocks, float32, preempted", "drafts, float32, accepted"]
    assert list(compared) == [f"greedy tokens as those of generate: {way}" for way in ways]
    assert list(of_models) == [f"greedy tokens as those of generate: {name}" for name in MODELS]
    for row in (compared | of_models).values():
        assert row["result"] == "equal", row
        number, total = row["figures"]["tokens compared"].split(" of ")
        assert number == total or "float32" not in row["check"]
    *_, few_blocks, drafts = (row["figures"] for row in compared.values())
    assert few_blocks["num_preemptions"] > 0 and drafts["spec_decode_num_accepted_tokens"] > 0
    measured = [row for row in rows if row["part"] == "vllm-latency"]
    assert len(measured) == len(DRY.served_contexts) * len(DRY.served_batches) + len(DRY.served_prompts)
    assert all(row["result"] == "measured" and row["figures"]["plain, ms"] > 0 for row in measured)
