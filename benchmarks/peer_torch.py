"""The peer of `benchmarks/training_peer.py`: published networks and their training steps in PyTorch, nothing of ours.

    python benchmarks/peer_torch.py NETWORK PRECISION THREADS

It is run by that script, in a Python that has torch. After one step it writes the seconds of it as JSON on one line,
[[wall, processor]]; then it reads how many steps to do next from standard input, again and again until that ends.

    cyclegan    Zhu et al. 2017 (arXiv:1703.10593) with the settings of the authors' code: c7s1-64, d128, d256, R256 x
                9, u128, u64, c7s1-4 with reflection padding, C64-C128-C256-C512, instance normalization, least
                squares, cycles of 10, identities of 5, histories of 50 images, a pass of its own for each image
    subpixel    EDSR's blocks without normalization (Lim et al. 2017, arXiv:1707.02921) and a sub-pixel convolution
                (Shi et al. 2016, arXiv:1609.05158): 3x3 entry, 16 x 64, 3x3 to 9 x 4 channels, L1, Adam

PRECISION is float32, or bfloat16 for torch.autocast, which keeps the weights in float32.
"""

import itertools
import json
import random
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

BANDS = 4
SIDE = 192  # pixels of 10 m
POOL = 50
CYCLE, IDENTITY = 10.0, 5.0


class Residual(nn.Module):
    """What is given plus what a body makes of it."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, h, w] to the same."""
        return x + self.body(x)


class Pool:
    """A history of generated images."""

    def __init__(self) -> None:
        self._images: list[torch.Tensor] = []

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Exchanges a batch of one image."""
        if len(self._images) < POOL:
            self._images.append(image)
            return image
        if random.random() < 0.5:
            return image
        place = random.randrange(POOL)
        old, self._images[place] = self._images[place], image
        return old


def generator() -> nn.Module:
    """CycleGAN's ResNet of nine blocks."""

    def block() -> nn.Module:
        def half() -> list[nn.Module]:
            return [nn.ReflectionPad2d(1), nn.Conv2d(256, 256, 3), nn.InstanceNorm2d(256)]

        return Residual(*half(), nn.ReLU(True), *half())

    layers = [nn.ReflectionPad2d(3), nn.Conv2d(BANDS, 64, 7), nn.InstanceNorm2d(64), nn.ReLU(True)]
    for width in (64, 128):
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(True)]
    layers += [block() for _ in range(9)]
    for width in (256, 128):
        up = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1)
        layers += [up, nn.InstanceNorm2d(width // 2), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(64, BANDS, 7), nn.Tanh()).apply(started)


def discriminator() -> nn.Module:
    """CycleGAN's PatchGAN of 70 x 70 pixels."""
    layers = [nn.Conv2d(BANDS, 64, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for width, stride in ((64, 2), (128, 2), (256, 1)):
        layers += [nn.Conv2d(width, 2 * width, 4, stride, 1), nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1)).apply(started)


def started(module: nn.Module) -> None:
    """Draws a convolution's weights as published, N(0, 0.02)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)


def cyclegan(low_precision: bool) -> Callable[[], float]:
    """Makes a function that does a step of all four networks."""
    to_b, to_a, judge_a, judge_b = generator(), generator(), discriminator(), discriminator()
    pool_a, pool_b = Pool(), Pool()
    generators, judges = (
        [parameter for network in networks for parameter in network.parameters()]
        for networks in ((to_b, to_a), (judge_a, judge_b))
    )
    optimizer, its_optimizer = (torch.optim.Adam(x, 2e-4, (0.5, 0.999)) for x in (generators, judges))
    a, b = (torch.rand(1, BANDS, SIDE, SIDE) * 2 - 1 for _ in range(2))
    l1 = nn.functional.l1_loss

    def least_squares(verdict: torch.Tensor, wanted: float) -> torch.Tensor:
        return nn.functional.mse_loss(verdict, torch.full_like(verdict, wanted))

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            fake_b = to_b(a)
            again_a = to_a(fake_b)
            fake_a = to_a(b)
            again_b = to_b(fake_a)
            for parameter in judges:
                parameter.requires_grad_(False)
            loss = least_squares(judge_b(fake_b), 1.0) + least_squares(judge_a(fake_a), 1.0)
            loss += CYCLE * (l1(again_a, a) + l1(again_b, b)) + IDENTITY * (l1(to_b(b), b) + l1(to_a(a), a))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for parameter in judges:
            parameter.requires_grad_(True)
        its_optimizer.zero_grad()
        for judge, real, fake in ((judge_a, a, pool_a(fake_a.detach())), (judge_b, b, pool_b(fake_b.detach()))):
            with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
                its_loss = 0.5 * (least_squares(judge(real), 1.0) + least_squares(judge(fake), 0.0))
            its_loss.backward()
        its_optimizer.step()
        return loss.item()

    return step


def subpixel(low_precision: bool) -> Callable[[], float]:
    """Makes a function that does a step of the residual sub-pixel network."""

    def block() -> nn.Module:
        return Residual(nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(True), nn.Conv2d(64, 64, 3, 1, 1))

    entry = [nn.Conv2d(BANDS, 64, 3, 1, 1), nn.ReLU(True)]
    body = [block() for _ in range(16)]
    network = nn.Sequential(*entry, *body, nn.Conv2d(64, 9 * BANDS, 3, 1, 1), nn.PixelShuffle(3))
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    low, high = torch.rand(8, BANDS, SIDE // 3, SIDE // 3), torch.rand(8, BANDS, SIDE, SIDE)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            loss = nn.functional.l1_loss(network(low), high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main(network: str, precision: str, threads: str) -> None:
    """Answers on standard output."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    step = {"cyclegan": cyclegan, "subpixel": subpixel}[network](precision == "bfloat16")
    for line in itertools.chain(["1"], sys.stdin):
        seconds = []
        for _ in range(int(line)):
            begin = time.perf_counter(), time.process_time()
            step()
            seconds.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
