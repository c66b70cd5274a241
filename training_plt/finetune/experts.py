# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a mixture of experts: what adapts them, when they are balanced."""

from dataclasses import replace
from typing import Any

from peft import PeftConfig
from trl import SFTTrainer, get_peft_config

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

from .arguments import BaseArguments, FinetuneArguments

WEIGHTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]  # one tensor of all experts each, no `nn.Linear`
DROPOUT = 0.05  # TRL's


def choose_adapter(base: BaseArguments, config: PLTConfig) -> PeftConfig | None:
    """LoRA as the arguments say it; `all-linear` has the experts too. None for a run that trains all weights.

    Raises:
        NotImplementedError: experts are to be adapted in a way that PEFT does not have, or in a quantized model.
    """
    if config.num_experts and (base.load_in_4bit or base.load_in_8bit):
        raise NotImplementedError(
            "`--load-in-4bit` and `--load-in-8bit` need a model without experts: they are no `nn.Linear` and would "
            "stay as they are, most of the weights."
        )
    if config.num_experts and base.lora_target_modules == "all-linear" and base.lora_target_parameters is None:
        base = replace(base, lora_target_parameters=WEIGHTS)
    adapts_experts = base.lora_target_parameters is not None
    if base.use_peft and adapts_experts and (base.use_dora or base.lora_dropout):
        raise NotImplementedError(
            "`--use-dora` and `--lora-dropout` need experts without an adapter: name what gets one, "
            "`--lora-target-modules q_proj k_proj v_proj o_proj`."
        )
    if base.lora_dropout is None:
        base = replace(base, lora_dropout=0.0 if adapts_experts else DROPOUT)
    return get_peft_config(base)


def balance_weight(args: FinetuneArguments, config: PLTConfig) -> float:
    """The weight of the balance loss: that of the run if it has one, or the model's.

    Raises:
        ValueError: the run has one, and the model no experts.
    """
    weight = args.router_aux_loss_coef
    if weight and not config.num_experts:
        raise ValueError(f"`--router-aux-loss-coef` needs a model with experts, got {weight} for one without.")
    if weight is None:
        weight = config.router_aux_loss_coef
    assert weight is not None  # the config has filled it in
    return weight


class BalancesInTraining(SFTTrainer):
    """TRL's trainer, whose evaluations and saved configs know nothing of the balance loss."""

    def __init__(self, model: PLTForCausalLM, *args: Any, **kwargs: Any):
        before = model.config.output_router_logits
        super().__init__(model, *args, **kwargs)
        # TRL sets it, which would be saved, and asks in each forward anyway
        model.config.output_router_logits = before

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's, which would add the balance loss to the text's in evaluations too."""
        model: Any = self.model
        balances = self.aux_loss_enabled
        self.aux_loss_enabled = balances and model.training
        try:
            return super().compute_loss(*args, **kwargs)
        finally:
            self.aux_loss_enabled = balances
