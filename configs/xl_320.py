"""RepLKNet-XL on ImageNet-1K at 320 x 320, from its pre-training on MegData-73M.

Top-1 accuracy of the released network, in per cent: 87.57 (the paper reports 87.8).

    python -m train.main --config configs/xl_320.py --workdir out/xl_320 \\
        --config.init_from=RepLKNet-XL_MegData73M_pretrain.pth

No command for this run was published. The recipe follows a colon; the default is `paper`:

- `paper`: what appendix A of the paper (arXiv:2203.06717) states: 30 epochs at 320, learning rate
  1e-4, stage-wise decay 0.4. The paper does not say how it groups parameters by stage; the groups,
  `stage_of` of the networks, are a choice of this package. For all else the paper names BEiT's
  recipe, without values. They are from the command for BEiT-L after ImageNet-22K in
  microsoft/unilm, not from the paper: batch 512, 5 epochs of warm-up, final learning rate 1e-6,
  weight decay 1e-8, stochastic depth 0.4, label smoothing, RandAugment and random erasing, no mixup
  or cutmix, no EMA.
- `official`: the recipe of the official code for the 384-pixel networks of ImageNet-22K
  (configs/from_22k.py: learning rate 4e-4 to 3e-4, 1 epoch of warm-up, stochastic depth 0.3, EMA
  0.9999), with the learning rate falling by 0.8 from layer to layer, as that code groups the
  parameters of XL.

Mean and standard deviation are 0.5, as those of MegData-73M (released checkpoint).

For 32 GPUs with 16 images each; on fewer, `configs/xl_320.py:gpus=8` or `:official,gpus=8`.
Parameters, moments and gradients are 5.4 GB in float32, and the EMA of `official` 1.3 GB more.
--config.mesh.fsdp=8 spreads them over eight devices; during a step, each also has a copy of the
parameters, 1.3 GB. Activations take less memory with --config.model.remat=save_depthwise. 30
epochs, of 3.0e19 floating-point operations: 39 hours on 8 A100, estimated as in configs/31b.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(text: str = "paper") -> ConfigDict:
    row, gpus = common.row_and_gpus(text)
    config = common.get_config()
    common.fine_tuning(config)
    config.init_reset_head = True
    config.model.name = "replknet_xl"
    config.data.image_size = 320
    config.data.eval_crop_fraction = 0.875
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.batch_size = 512
    ROWS[common.known(row or "paper", ROWS)](config)
    common.on_gpus(config, gpus, images=16)
    return config


def _paper(config: ConfigDict) -> None:
    config.optimizer.peak_lr = 1e-4
    config.optimizer.layer_decay = 0.4
    config.optimizer.layer_decay_by = "stage"
    # The paper states none of these: they are BEiT-L's.
    config.model.replknet.drop_path_rate = 0.4
    config.ema_decay = 0.0
    config.optimizer.warmup_epochs = 5.0


def _official(config: ConfigDict) -> None:
    config.model.replknet.drop_path_rate = 0.3
    config.optimizer.final_lr = 3e-4
    config.optimizer.layer_decay = 0.8


ROWS = {"paper": _paper, "official": _official}
