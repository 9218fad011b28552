"""The transformer denoiser of Diffusion Policy (arXiv 2303.04137); parameter names are those of its checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dsrl.mlp import SinusoidalEmbedding


class TransformerDenoiser(nn.Module):
    """A decoder over the noisy chunk, one token per step, that looks at the time and the observations.

    Args:
        action_dim, horizon: shape of a chunk.
        cond_dim: length of the condition, the ``n_obs_steps`` observations one after another.
        n_obs_steps: tokens of the condition beside the time.
        width: of every token.
        n_layers, n_heads: of the decoder; the encoder has as many heads.
        n_cond_layers: of the encoder of the condition; 0 is a small MLP instead.
        causal: a step sees no later steps and no later observations.
    """

    config: dict[str, Any]
    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        n_obs_steps: int,
        width: int = 256,
        n_layers: int = 8,
        n_heads: int = 4,
        n_cond_layers: int = 0,
        causal: bool = True,
    ):
        super().__init__()
        if cond_dim % n_obs_steps:
            raise ValueError(f"a condition of {cond_dim} numbers is not {n_obs_steps} observations of equal length")
        if width % n_heads or width % 2:
            raise ValueError(f"the width {width} must be even and a multiple of the number of heads, {n_heads}")
        self.n_obs_steps = n_obs_steps
        shape: dict[str, Any] = {"d_model": width, "nhead": n_heads, "dim_feedforward": 4 * width, "dropout": 0.0}
        style: dict[str, Any] = {"activation": "gelu", "batch_first": True, "norm_first": True}
        self.time_emb = SinusoidalEmbedding(width)
        self.input_emb = nn.Linear(action_dim, width)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(1, horizon, width))
        self.cond_obs_emb = nn.Linear(cond_dim // n_obs_steps, width)
        self.cond_pos_emb = nn.Parameter(0.02 * torch.randn(1, 1 + n_obs_steps, width))
        if n_cond_layers:
            layer = nn.TransformerEncoderLayer(**shape, **style)
            self.encoder: nn.Module = nn.TransformerEncoder(layer, n_cond_layers, enable_nested_tensor=False)
        else:
            self.encoder = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape, **style), n_layers)
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_dim)
        masks = causal_masks(horizon, n_obs_steps) if causal else (None, None)
        self.register_buffer("mask", masks[0], persistent=False)
        self.register_buffer("memory_mask", masks[1], persistent=False)

    @property
    def outputs(self) -> tuple[nn.Module, ...]:
        """The layer that the prediction comes out of."""
        return (self.head,)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """``(B, Tp, Da), (B,) or (), (B, C)`` -> ``(B, Tp, Da)``."""
        time = self.time_emb(t.reshape(-1)).expand(len(x), -1)
        observed = self.cond_obs_emb(rearrange(cond, "b (o d) -> b o d", o=self.n_obs_steps))
        memory = self.encoder(torch.cat([time[:, None], observed], dim=1) + self.cond_pos_emb)
        tokens = self.input_emb(x) + self.pos_emb
        # said, not found out: torch would compare the mask with the causal one in every call
        causal = self.mask is not None
        y = self.decoder(tokens, memory, tgt_mask=self.mask, memory_mask=self.memory_mask, tgt_is_causal=causal)
        return self.head(self.ln_f(y))


def causal_masks(horizon: int, n_obs_steps: int) -> tuple[Tensor, Tensor]:
    """What step ``i`` must not see, ``-inf``: later steps ``(Tp, Tp)``, and later observations ``(Tp, 1 + To)``.

    The time is the first token of the condition; every step sees it.
    """
    step = torch.arange(horizon)[:, None]
    steps, tokens = torch.arange(horizon), torch.arange(1 + n_obs_steps)
    forbidden = steps > step, tokens - 1 > step
    later, unseen = (torch.zeros(where.shape).masked_fill(where, float("-inf")) for where in forbidden)
    return later, unseen
