"""A naive PLT in numpy float64: one token after another, no cache, no batching, nothing shared with the model.

Written from the paper (arXiv 2510.24824, section 3) and from the release of LoopCoder-v2 (arXiv 2606.18023). It reads
sizes and switches from a config object and weights from a dictionary with Llama's tensor names.
"""

import numpy as np


def rms_norm(x, weight, eps):
    return weight * x / np.sqrt(np.mean(x * x) + eps)


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rotate(heads, position, theta):
    """Turn dimension d of each head `[heads, Dh]` against dimension d + Dh / 2."""
    half = heads.shape[1] // 2
    angle = position / theta ** (np.arange(half) * 2 / heads.shape[1])
    first, second = heads[:, :half], heads[:, half:]
    return np.concatenate(
        (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)), axis=1
    )


def attend(query, keys, values):
    """One query `[H, Dh]` on a list of keys and values `[Hkv, Dh]` -> `[H, Dh]`."""
    keys, values = np.stack(keys), np.stack(values)
    group = query.shape[0] // keys.shape[1]
    output = np.zeros_like(query)
    for head in range(query.shape[0]):
        scores = keys[:, head // group] @ query[head] / np.sqrt(query.shape[1])
        weights = np.exp(scores - scores.max())
        output[head] = (weights / weights.sum()) @ values[:, head // group]
    return output


class ReferencePLT:
    def __init__(self, config, weights):
        self.config = config
        self.weights = {name: tensor.detach().double().numpy() for name, tensor in weights.items()}
        self.routed = []  # of each token, loop and layer: its name, probabilities `[E]`, and chosen experts
        self.theta = config.rope_parameters["rope_theta"]

    def linear(self, name, x):
        output = self.weights[name + ".weight"] @ x
        return output + self.weights[name + ".bias"] if name + ".bias" in self.weights else output

    def norm(self, name, x):
        return rms_norm(x, self.weights[name + ".weight"], self.config.rms_norm_eps)

    def gate(self, name, layer_input, query):
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        if self.config.gate_input == "query":
            return sigmoid((weight * query).sum(axis=1) + bias)
        return sigmoid(weight @ self.norm(name + ".gate_norm", layer_input) + bias)

    def layer(self, layer_idx, loop_idx, position, h, kv):
        """`kv[r][n]` is the pair of lists of loop r's keys and values in layer n, one entry per position."""
        config, name = self.config, f"model.layers.{layer_idx}"
        heads = (-1, config.head_dim)
        x = h if config.norm_placement == "output" else self.norm(name + ".input_layernorm", h)
        q = self.linear(name + ".self_attn.q_proj", x).reshape(heads)
        k = self.linear(name + ".self_attn.k_proj", x).reshape(heads)
        if config.qk_norm == "whole":
            q = self.norm(name + ".self_attn.q_norm", q.reshape(-1)).reshape(heads)
            k = self.norm(name + ".self_attn.k_norm", k.reshape(-1)).reshape(heads)
        elif config.qk_norm == "head":
            q = np.stack([self.norm(name + ".self_attn.q_norm", head) for head in q])
            k = np.stack([self.norm(name + ".self_attn.k_norm", head) for head in k])
        q, k = rotate(q, position, self.theta), rotate(k, position, self.theta)
        v = self.linear(name + ".self_attn.v_proj", x).reshape(heads)
        keys, values = kv[loop_idx][layer_idx]
        keys.append(k)
        values.append(v)
        if loop_idx == 0 or config.loop_attention == "own":
            y = attend(q, keys, values)
        else:
            y = attend(q, *kv[0][layer_idx])
            if config.loop_attention == "gated_window":
                g = self.gate(name + ".self_attn.plt_gate", h, q)[:, None]
                window = attend(q, keys[-config.sliding_window :], values[-config.sliding_window :])
                y = g * y + (1 - g) * window
        y = self.linear(name + ".self_attn.o_proj", y.reshape(-1))
        h = self.add(h, y, name + ".input_layernorm_2")
        x = h if config.norm_placement == "output" else self.norm(name + ".post_attention_layernorm", h)
        y = self.experts(name + ".mlp", x) if name + ".mlp.gate.weight" in self.weights else self.mlp(name + ".mlp", x)
        return self.add(h, y, name + ".post_attention_layernorm_2")

    def add(self, h, y, norm):
        """Llama's; with the branch normed, as Ouro's and OLMo-2's; with the sum normed, as Huginn's."""
        if self.config.norm_placement == "pre":
            return h + y
        return self.norm(norm, h + y) if self.config.norm_placement == "residual" else h + self.norm(norm, y)

    def mlp(self, name, x):
        gate, up = self.linear(name + ".gate_proj", x), self.linear(name + ".up_proj", x)
        return self.linear(name + ".down_proj", silu(gate) * up)

    def experts(self, name, x):
        """The most probable experts, weighed by their probabilities; the model holds one tensor of all experts."""
        config = self.config
        scores = self.weights[name + ".gate.weight"] @ x
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        chosen = np.argsort(probabilities)[-config.num_experts_per_tok :]
        self.routed.append((name, probabilities, chosen))
        total = probabilities[chosen].sum() if config.norm_topk_prob else 1
        y = 0
        for expert in chosen:
            gate, up = np.split(self.weights[name + ".experts.gate_up_proj"][expert] @ x, 2)
            y += (
                probabilities[expert] / total * (self.weights[name + ".experts.down_proj"][expert] @ (silu(gate) * up))
            )
        if config.shared_expert_intermediate_size is not None:
            shared = self.mlp(name + ".shared_expert", x)
            y += (
                sigmoid(self.linear(name + ".shared_expert_gate", x)) * shared if config.shared_expert_gate else shared
            )
        return y

    def balance_loss(self):
        """E times the sum over experts of their share of choices and their mean probability, of all routed so far."""
        probabilities = np.array([of_token for _, of_token, _ in self.routed])
        choices = np.zeros_like(probabilities)
        for row, (_, _, chosen) in zip(choices, self.routed, strict=True):
            row[chosen] = 1
        return self.config.num_experts * (choices.mean(axis=0) * probabilities.mean(axis=0)).sum()

    def scale(self, name):
        """One of the two scales of a later loop's input, learned or fixed."""
        return self.weights["model." + name] if self.config.learned_scales else getattr(self.config, name)

    def loop_input(self, loop_idx, e, state):
        """What enters the core in a loop, from the prelude's output and the state of the loop before."""
        if self.config.loop_input == "sum":
            return e if loop_idx == 0 else self.scale("embedding_scale") * e + self.scale("hidden_scale") * state
        if loop_idx == 0:
            if self.config.initial_state == "none":
                return e
            state = {"zeros": np.zeros_like(e), "prelude": e}[self.config.initial_state]
        return self.linear("model.adapter", np.concatenate((state, e)))

    def loop_states(self, input_ids):
        """A list of T token ids -> normed states `[L, T, D]` of every loop, each read out through the coda."""
        config = self.config
        loops, layers = range(config.num_loops), range(config.num_hidden_layers)
        num_before, num_after = config.num_prelude_layers, config.num_coda_layers
        before, after = layers[:num_before], layers[len(layers) - num_after :]
        kv = [[([], []) for _ in layers] for _ in loops]
        states = [[] for _ in loops]  # what a loop hands to the next one
        normed = [[] for _ in loops]
        for position, token in enumerate(input_ids):
            e = config.embedding_multiplier * self.weights["model.embed_tokens.weight"][token]
            for n in before:
                e = self.layer(n, 0, position, e, kv)
            for r in loops:
                previous = None
                if r > 0:
                    source = position - 1 if config.loop_shift else position
                    previous = states[r - 1][source] if source >= 0 else np.zeros_like(e)
                h = self.loop_input(r, e, previous)
                for n in layers[num_before : len(layers) - num_after]:
                    h = self.layer(n, r, position, h, kv)
                states[r].append(self.norm("model.norm", h) if config.loop_norm else h)
                if config.coda_norm:
                    h = self.norm("model.norm", h)
                for n in after:
                    h = self.layer(n, 0, position, h, kv[r : r + 1])  # a coda of its own: it sees this loop's only
                normed[r].append(self.norm("model.norm", h))
        return np.array(normed)

    def logits(self, input_ids):
        """A list of T token ids -> logits `[T, V]`."""
        head = "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        return self.loop_states(input_ids)[-1] @ self.weights[head + ".weight"].T
