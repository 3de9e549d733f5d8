"""Deep supervision of nnU-Net's network: more outputs while it trains, the same network afterwards."""

from typing import Self

from dynamic_network_architectures.architectures.unet import PlainConvUNet


class DeeplySupervised(PlainConvUNet):  # type: ignore[misc]
    """In training mode it returns a list of logits, the finest first; in evaluation mode the finest alone. Weights and their names
    are those of the network without."""

    def train(self, mode: bool = True) -> Self:
        self.decoder.deep_supervision = mode
        super().train(mode)
        return self
