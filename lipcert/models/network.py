"""A network: a chain of maps and a last dense layer."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from lipcert.layers import Head, Map


class Network(nn.Module):
    """Backbone (a chain of `Map`s) and head; images (B, C, H, W) with pixels in [0, 1] to logits (B, K).

    Args:
        backbone: named maps in order.
        head: the last dense layer.
        input_shape: (C, H, W).
    """

    def __init__(self, backbone: "OrderedDict[str, Map]", head: Head, input_shape: tuple[int, int, int]):
        super().__init__()
        self.backbone = nn.Sequential(backbone)
        self.head = head
        self.input_shape = input_shape

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self.backbone(images_BCHW))

    def lipschitz_estimate(self, steps: int) -> Tensor:
        """Estimate of the backbone's Lipschitz constant: product over its maps (differentiable; trains only)."""
        estimate = torch.ones((), device=next(self.parameters()).device)
        for layer in self.backbone:
            estimate = estimate * layer.norm_estimate(steps)
        return estimate

    def margin_lipschitz(self, backbone: Tensor) -> Tensor:
        """Margin Lipschitz matrix K_ij = L |w_i - w_j|, (K, K), of a backbone constant L (arXiv 2102.08452, section 3).

        How fast the margin z_i - z_j can shrink per unit of l2 distance; as good as L, here `lipschitz_estimate`'s.
        """
        return backbone * self.head.distances()

    def set_exponent(self, p: float) -> None:
        """p of all l_p distances, for the steps that follow; networks without any ignore it."""
        for layer in self.modules():
            if hasattr(layer, "exponent"):
                layer.exponent = p

    @torch.no_grad()
    def plain(self) -> nn.Sequential:
        """The network as a chain of ordinary torch layers with frozen float32 weights: what is certified.

        Parametrisations (folded identity, orthogonalisation, normalised head) are resolved here, once; the result no
        longer depends on them.
        """
        layers = OrderedDict()
        for name, layer in [*self.backbone._modules.items(), ("head", self.head)]:
            parts = layer.plain()
            for i, part in enumerate(parts):
                layers[name if len(parts) == 1 else f"{name}{i}"] = part
        return nn.Sequential(layers).eval()

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())
