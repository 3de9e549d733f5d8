"""Deep supervision changes the training, not the network."""

import torch

from atlas_ray.segmentation.architectures import NNUNet, start_from_prior
from atlas_ray.segmentation.inference import Inference

PLAIN, SUPERVISED = NNUNet(features=(4, 8, 16)), NNUNet(features=(4, 8, 16), deep_supervision=True)


def test_it_has_more_outputs_while_it_trains_and_the_same_one_afterwards() -> None:
    torch.manual_seed(0)
    plain, supervised = PLAIN.build(2), SUPERVISED.build(2)
    supervised.load_state_dict(plain.state_dict())  # the same names
    windows = torch.randn(1, 1, 16, 16, 16)
    shapes = [tuple(output.shape) for output in supervised.train()(windows)]
    assert shapes == [(1, 2, 16, 16, 16), (1, 2, 8, 8, 8)]
    with torch.no_grad():
        assert torch.equal(supervised.eval()(windows), plain.eval()(windows))
        member = Inference(window=(16, 16, 16), precision="float32").prepare(supervised, device="cpu")
        assert torch.allclose(member(windows), plain(windows), atol=1e-4)


def test_every_output_learns() -> None:
    network = SUPERVISED.build(2)
    start_from_prior(network, SUPERVISED)
    sum(output.sum() for output in network.train()(torch.randn(1, 1, 16, 16, 16))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
