"""Writes the files of MobileNet V2 and ResNet: what torchvision's networks compute.

    python -m tests.golden.from_torchvision

Needs torch and torchvision; the tests do not. README.md says what the files hold.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import Bottleneck, ResNet

from tests.golden.weights_rule import checksum, make_images, make_weights

FOLDER = Path(__file__).parent
SEED = 0
CLASSES = 10
INPUTS = {"x1": (2, 3, 48, 32), "x2": (1, 3, 33, 47)}
BATCH = (4, 3, 32, 32)
LABELS = [3, 0, 9, 5]
LARGEST_GRADIENT = 1000  # elements of one that is kept, beside its norm

# Without the stages that repeat others at this size, with widths of which there is little.
MOBILENET_V2 = {
    "kernel_sizes": [3, 3, 3, 3],
    "layers": [1, 2, 2, 1],
    "channels": [8, 12, 16, 24],
    "strides": [1, 2, 2, 2],
    "expansions": [1, 6, 4, 6],
    "stem_channels": 8,
    "last_channels": 1280,
}
# torchvision's widths are fixed. The second block of the first stage adds its input as it is.
RESNET = {"layers": [2, 1, 1, 1], "channels": [64, 128, 256, 512], "block": "bottleneck"}


def mobilenet_v2() -> nn.Module:
    columns = ("expansions", "channels", "layers", "strides")
    return MobileNetV2(
        num_classes=CLASSES,
        width_mult=0.25,
        inverted_residual_setting=[
            [t, 4 * c, n, s]
            for t, c, n, s in zip(*(MOBILENET_V2[name] for name in columns), strict=True)
        ],
        round_nearest=4,
        dropout=0.0,
    )


def resnet() -> nn.Module:
    return ResNet(Bottleneck, RESNET["layers"], num_classes=CLASSES)


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    ends = np.cumsum(MOBILENET_V2["layers"])
    cases = {
        "mobilenet_v2": (mobilenet_v2, MOBILENET_V2, [f"features.{n}" for n in ends]),
        "resnet": (resnet, RESNET, [f"layer{s}" for s in (1, 2, 3, 4)]),
    }
    for name, (build, architecture, stages) in cases.items():
        write(name, build, architecture, stages)


def write(
    name: str, build: Callable[[], nn.Module], architecture: dict[str, Any], stages: list[str]
) -> None:
    """Both files of a case. `stages` are the modules whose outputs are those of the stages."""
    model = build()
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    weights = make_weights(shapes, SEED)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})

    arrays, exact = evaluated(model, stages), copy.deepcopy(model).double()
    noise = largest_difference(arrays, evaluated(exact, stages))
    arrays |= trained(exact)
    facts = {
        "made_by": f"torchvision {_release(torchvision)}, torch {_release(torch)}",
        "architecture": architecture,
        "num_classes": CLASSES,
        "seed": SEED,
        "shapes": shapes,
        "weights_sha256": checksum(weights),
        "zero_gradient": zero_gradients(arrays),
        "noise": {"eval": noise},
        "largest_change_if": slips(model, arrays["x1.logits"]),
    }
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    (FOLDER / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def _release(package: ModuleType) -> str:
    """Its version, without what it was built for."""
    return package.__version__.partition("+")[0]


def evaluated(model: nn.Module, stages: list[str]) -> dict[str, np.ndarray]:
    """Inputs and outputs in eval mode, of the network as it is and with its norms fused."""
    model = copy.deepcopy(model).eval()
    fused, dtype, arrays = fuse(model), next(model.parameters()).dtype, {}
    with torch.no_grad():
        for name, shape in INPUTS.items():
            x = arrays[name] = torch.from_numpy(make_images(name, shape, SEED)).to(dtype)
            arrays[f"{name}.logits"] = model(x)
        arrays["x1.merged_logits"] = fused(arrays["x1"])
        features = create_feature_extractor(
            model, {stage: f"x1.stage{s}" for s, stage in enumerate(stages)}
        )
        arrays |= features(arrays["x1"])
    convs = [key for key, module in fused.named_modules() if isinstance(module, nn.Conv2d)]
    tensors = dict(fused.named_parameters())
    for conv in (convs[0], convs[2]):
        arrays |= {
            f"merged.{conv}.{leaf}": tensors[f"{conv}.{leaf}"] for leaf in ("weight", "bias")
        }
    return {key: value.detach().numpy() for key, value in arrays.items()}


def trained(model: nn.Module) -> dict[str, np.ndarray]:
    """One forward and backward pass in training mode, of a network in float64.

    In float32 a ReLU whose input is nearly 0 may pass it or not, which changes gradients by more
    than rounding.
    """
    model = copy.deepcopy(model).train()
    x, labels = torch.from_numpy(make_images("train.x", BATCH, SEED)), torch.tensor(LABELS)
    logits = model(x.double())
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    arrays = {"x": x, "labels": labels, "logits": logits, "loss": loss}
    for key, value in model.named_buffers():
        if not key.endswith("num_batches_tracked"):
            arrays[f"after.{key}"] = value
    for key, parameter in model.named_parameters():
        arrays[f"grad_norm.{key}"] = parameter.grad.norm()
        if parameter.numel() <= LARGEST_GRADIENT:
            arrays[f"grad.{key}"] = parameter.grad
    return {f"train.{key}": value.detach().numpy() for key, value in arrays.items()}


def zero_gradients(arrays: dict[str, np.ndarray]) -> list[str]:
    """The parameters whose gradient is rounding noise: a later batch norm takes them away again."""
    norms = {key: norm for key, norm in arrays.items() if key.startswith("train.grad_norm.")}
    return [key.removeprefix("train.grad_norm.") for key, norm in norms.items() if norm < 1e-12]


def largest_difference(arrays: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    """How far float32 is from float64, over the larger of 1 and the largest value."""
    return max(
        float(np.abs(value - exact[key]).max() / max(1.0, np.abs(exact[key]).max()))
        for key, value in arrays.items()
    )


def slips(model: nn.Module, logits: np.ndarray) -> dict[str, float]:
    """How far a mistake moves the logits of x1 at most: one in every norm, or in one layer."""
    x = torch.from_numpy(make_images("x1", INPUTS["x1"], SEED))

    def change(alter: Callable[[nn.Module], None], names: list[str]) -> float:
        altered = copy.deepcopy(model).eval()
        for name in names:
            alter(altered.get_submodule(name))
        with torch.no_grad():
            return float(np.abs(altered(x).numpy() - logits).max())

    def named(kind: type[nn.Module]) -> list[str]:
        return [name for name, module in model.named_modules() if isinstance(module, kind)]

    changes = {"every batch norm eps 1e-6 for 1e-5": change(_other_eps, named(nn.BatchNorm2d))}
    if capped := named(nn.ReLU6):
        changes["every ReLU6 a ReLU"] = change(_without_cap, capped)
    turned = [change(_turn, [name]) for name in named(nn.Conv2d)]
    changes["one kernel turned by 180 degrees, the least noticeable"] = min(filter(None, turned))
    return changes


def _other_eps(norm: nn.BatchNorm2d) -> None:
    norm.eps = 1e-6


def _without_cap(relu6: nn.ReLU6) -> None:
    relu6.max_val = float("inf")


def _turn(conv: nn.Conv2d) -> None:
    conv.weight.data = conv.weight.data.flip(2, 3)


if __name__ == "__main__":
    main()
