"""RepVGG on ImageNet-1K at 224 x 224 for 120 epochs (arXiv:2101.03697, section 4.1).

The variant follows a colon; the default is a0:

    python -m train.main --config configs/repvgg_imagenet.py:b1g2 --workdir out/repvgg_b1g2

Top-1 accuracy of the released networks that were trained by this recipe, in per cent:

    a0 72.41   a1 74.47   a2 76.48
    b0 75.14   b1 78.37   b1g2 77.79   b1g4 77.58   b2 78.78   b2g4 78.50

The paper's recipe: SGD with momentum 0.9, batch 256 (8 GPUs with 32 images each), learning rate 0.1
with a cosine, weight decay 1e-4, 120 epochs, random crops and flips only. Its official scripts warm
up for none to 5 epochs; here it is 5. Bilinear resizing, the cosine's end at 0 and the crop for
evaluation are the usual ones of PyTorch, chosen here. 120 epochs are 1.4e18 floating-point
operations of a0, 3.1e18 of b0 and 1.9e19 of b2: 2, 4 and 24 hours on 8 A100, estimated as in
configs/31b.py. The host prepares the images in some 50 core hours, and must keep up.

b3, b3g4 and d2se were released after another recipe, 200 epochs with AutoAugment, mixup and label
smoothing (80.52, 80.22, 81.81). The recipe and accuracy of b2g2 and b3g2 are not known here.

As in the official code, biases and all batch norms but that of the identity branch do not decay.
That code also doubles the learning rate of biases, which by its comments makes no difference; this
configuration does not. Its penalty on the merged kernels, with less weight decay:

    --config.optimizer.custom_l2 --config.optimizer.weight_decay=4e-5
"""

from ml_collections import ConfigDict

from configs import common
from replk_jax import list_models

VARIANTS = [name.removeprefix("repvgg_") for name in list_models("repvgg_*")]


def get_config(variant: str = "a0") -> ConfigDict:
    config = common.sgd_on_imagenet()
    config.model.name = f"repvgg_{common.known(variant, VARIANTS)}"
    config.epochs = 120.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_of = "repvgg"
    return config
