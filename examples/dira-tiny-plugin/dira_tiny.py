"""Alignment and uniformity: a complete third-party Discriminator in one file."""

from pydantic import Field

from dira_core import Component, Options, hookimpl

DIRA_API = 1


class AlignmentOptions(Options):
    """Understanding contrastive learning on the hypersphere, Wang & Isola, ICML 2020."""

    dim: int = Field(128, gt=0, description="width of the embedding z")
    t: float = Field(2.0, gt=0, description="how sharply close pairs repel")


def build(options, backbone):
    """Make the Discriminator; torch is imported here, so that `dira --help` stays instant."""
    import torch
    from torch.nn.functional import normalize

    from dira_core import Discriminator, Objective, in_float32, mlp

    @in_float32
    def alignment(z1, z2):
        return (z1 - z2).square().sum(1).mean()

    @in_float32
    def uniformity(z):
        others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        return (-options.t * (2 - 2 * z @ z.T))[others].exp().mean().log()

    class Alignment(Discriminator):
        def __init__(self):
            super().__init__()
            self.projector = mlp([backbone.channels[-1], options.dim, options.dim])

        def forward(self, encodings):
            z1, z2 = (normalize(self.projector(encodings[v].pooled).float()) for v in range(2))
            a, u = alignment(z1, z2), (uniformity(z1) + uniformity(z2)) / 2
            return Objective(a + u, {"alignment": a, "uniformity": u}, embedding=z1)

    return Alignment()


@hookimpl
def dira_discriminators():
    yield Component(
        "alignment", AlignmentOptions, build, "close pairs, spread points", paper="arXiv:2005.10242"
    )
