"""RepLKNet-XL on ImageNet-1K at 320 x 320, from its pre-training on MegData-73M.

Top-1 accuracy of the released network, in per cent: 87.57 (the paper reports 87.8).

    python -m train.main --config configs/xl_320.py --workdir out/xl_320 \\
        --config.init_from=RepLKNet-XL_MegData73M_pretrain.pth

No command for this run was published. That weight decay is 1e-8 and the learning rate falls by 0.8
from layer to layer is how the official code groups the parameters of XL; the rest is what the same
code does with the 384-pixel networks of ImageNet-22K (configs/from_22k.py). Mean and deviation are
0.5, as those of MegData-73M.

For 32 GPUs with 16 images each; on fewer, `configs/xl_320.py:gpus=8`. Parameters, moments, moving
average and gradients are 6.7 GB in float32. --config.mesh.fsdp=8 spreads them over eight devices,
but for a copy of the parameters, 1.3 GB, that each has during a step; activations take less with
--config.model.remat=save_depthwise. 30 epochs, of 3.0e19 floating-point operations: 39 hours on 8
A100, estimated as in configs/31b.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(gpus: str = "") -> ConfigDict:
    config = common.get_config()
    common.fine_tuning(config)
    config.init_reset_head = True
    config.model.name = "replknet_xl"
    config.model.replknet.drop_path_rate = 0.3
    config.data.image_size = 320
    config.data.eval_crop_fraction = 0.875
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.batch_size = 512
    config.optimizer.final_lr = 3e-4
    config.optimizer.layer_decay = 0.8
    common.on_gpus(config, gpus, images=16)
    return config
