# SPDX-License-Identifier: Apache-2.0
"""What the V2 runner keeps of requests beside their pages: who wants log probabilities of all tokens of its prompt.

vLLM refuses such requests where prompts are pruned, but not by `LLM` in a process without a server, nor those for no
further tokens than the prompt's own (`prompt_logprobs=0`). Here a step with such a request in it is not pruned.
"""

from typing import Any

from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridModelState

from .pruning import whole


class PLTModelState(MambaHybridModelState):
    """That of a model with a state of fixed size, the carry."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.want_prompts: set[str] = set()

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        wanted = () if params is None else (params.prompt_logprobs, params.prompt_logprob_token_ids)
        if any(each is not None for each in wanted):
            self.want_prompts.add(new_req_data.req_id)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self.want_prompts.discard(req_id)

    def prepare_attn(self, input_batch: Any, *arguments: Any, **keywords: Any) -> Any:
        """Build the metadata of a step."""
        with whole(not self.want_prompts.isdisjoint(input_batch.req_ids)):
            return super().prepare_attn(input_batch, *arguments, **keywords)
