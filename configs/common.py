"""The fields of every configuration, with the paper's values where an experiment sets none."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from replk_jax.models.architecture import field_types
from replk_jax.models.family import ModelFamily
from replk_jax.models.registry import FAMILIES
from train.errors import RunError


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            # What the network is trained for: a name of train.tasks.TASKS.
            "task": "classification",
            # "train"; or "eval", which evaluates the network in `init_from`.
            "mode": "train",
            # A checkpoint to start from: of PyTorch, of a run (WORKDIR/checkpoints/STEP), or a
            # converted one. `init_ema` takes its EMA; `init_key` and `init_prefix` choose among
            # several networks in a PyTorch file (see `replk_jax.load_torch`); `init_reset_head`
            # draws a new classifier if it has another number of classes; `init_adapt_input` sums
            # or repeats the first kernels if they are for another number of channels.
            "init_from": config_dict.placeholder(str),
            "init_ema": False,
            "init_key": config_dict.placeholder(str),
            "init_prefix": config_dict.placeholder(str),
            "init_reset_head": False,
            "init_adapt_input": False,
            # Of the parameters, the order of the data, the augmentation and stochastic depth.
            "seed": 0,
            # See replk_jax.create_model. Of the sections, one a family, that of the named model
            # counts. It has the fields of the family's architecture, such as
            # `replk_jax.RepLKNetArchitecture`, and of its network the rates of dropping. A field
            # that is None is as the named model has it, and small_kernel=0 builds no small kernel.
            "model": {
                "name": "replknet_31b",
                "in_channels": config_dict.placeholder(int),
                # Size of the image over that of the last feature map; dilation replaces strides.
                "output_stride": config_dict.placeholder(int),
                "dtype": "float32",
                # What blocks keep for the backward pass, which computes the rest again: "full"
                # nothing, "save_depthwise" the results of depthwise convolutions, None everything.
                "remat": config_dict.placeholder(str),
                **{family.name: _section(family) for family in FAMILIES},
            },
            "data": {
                # A classification data set of TensorFlow Datasets, and the folder where it was
                # prepared (None: TFDS_DATA_DIR, else ~/tensorflow_datasets).
                "name": "imagenet2012",
                "data_dir": config_dict.placeholder(str),
                # Or a folder of splits of class folders, in place of `name`.
                "folder": config_dict.placeholder(str),
                "train_split": "train",
                "eval_split": "validation",
                # More splits to evaluate on; the best checkpoint is chosen by eval_split.
                "more_eval_splits": (),
                "image_size": 224,
                "crop_scale": (0.08, 1.0),  # share of the area that a training crop covers
                "crop_ratio": (3 / 4, 4 / 3),  # width of a training crop over its height
                # How a crop is resized: "opencv" (fast: bicubic, with a low-pass filter first when
                # it shrinks), or Pillow's antialiased "bicubic" or "bilinear".
                "resizing": "opencv",
                "flip": True,
                "rand_augment": "rand-m9-mstd0.5-inc1",  # in timm's notation, or "none"
                # Of brightness, contrast and saturation, if rand_augment is "none"; 0 for none.
                "color_jitter": 0.4,
                # On an image that cannot be read: "stop"; or report it and "replace" it by the
                # next one.
                "unreadable": "stop",
                "eval_crop_fraction": config_dict.placeholder(float),  # None: resize, do not crop
                # False: mode "eval" prepares images as the checkpoint says, if it does. True: as
                # image_size, eval_crop_fraction, mean and std say.
                "eval_as_configured": False,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
                # Threads that decode (None: one per processor, at most 8). With workers, that many
                # processes, each with that many threads.
                "reading": {"threads": config_dict.placeholder(int), "workers": 0},
            },
            # Augmentation of whole batches, on the devices.
            "augmentation": {
                "mixup_alpha": 0.8,  # of Beta(a, a); mixup and cutmix are off at 0
                "cutmix_alpha": 1.0,
                "mix_probability": 1.0,  # of mixup or cutmix
                "switch_probability": 0.5,  # of cutmix, if both are on
                "mixup_group_size": 64,  # consecutive images that are mixed by one draw, in pairs
                "erasing_probability": 0.25,
            },
            "label_smoothing": 0.1,
            "batch_size": 2048,  # of a step, on all devices together
            # Micro-batches of a step, one after another; batch norm sees one at a time.
            "accumulation": 1,
            "eval_batch_size": 1024,
            # Length of the run. Set either of the two; the other one is None.
            "epochs": FieldReference(300.0),
            "steps": config_dict.placeholder(int),
            "ema_decay": 0.9999,  # of parameters and running statistics; 0 for no EMA
            "optimizer": {
                "name": "adamw",  # or "sgd"
                # How the learning rate falls from `peak_lr`: "cosine" and "polynomial" to
                # `final_lr`, "step" by `milestone_factor` at each of the `milestones` (in epochs,
                # or in steps if the length of the run is), or "constant". See
                # train/engine/schedules.py.
                "schedule": "cosine",
                "peak_lr": 4e-3,
                "final_lr": 1e-6,
                "power": 1.0,  # of the polynomial
                "milestones": (),
                "milestone_factor": 0.1,
                # The warm-up is "linear", from the factor `warmup_from` to 1, or "constant" at
                # that factor. Set one of its two lengths; the other one is None.
                "warmup": "linear",
                "warmup_from": 0.0,
                "warmup_epochs": FieldReference(10.0),
                "warmup_steps": config_dict.placeholder(int),
                "weight_decay": 0.05,
                # What decays: "kernels" (tensors of two or more dimensions), "repvgg" (what decays
                # in that paper's code), "except_norms" (all but scales and biases of norms) or
                # "all". See train/engine/optimizer.py.
                "decay_of": "kernels",
                # The learning rate of a group of parameters over that of the next group: of groups
                # by "layer" (official code of RepLKNet, 0.7), or by "stage" (its paper for XL,
                # 0.4). See `layer_of` and `stage_of` of the networks.
                "layer_decay": 1.0,
                "layer_decay_by": "layer",
                # Factor on the learning rate of the final norm and the classifier, or of the heads
                # of a network that has a backbone.
                "head_lr_factor": 1.0,
                # The norm to which longer gradients are cut; None for no limit.
                "clip_norm": config_dict.placeholder(float),
                # RepVGG's L2 penalty on merged kernels, in place of decay on those of the branches.
                "custom_l2": False,
                "b1": 0.9,  # b1, b2 and eps are of AdamW
                "b2": 0.999,
                "eps": 1e-8,
                "momentum": 0.9,  # momentum and nesterov are of SGD
                "nesterov": False,
            },
            # What training leaves as it is. See train/engine/freezing.py.
            "freeze": {
                # -1 for nothing, 0 for the stem, n for the stem and the first n stages: they get
                # no updates and run in eval mode.
                "stages": -1,
                # Whether all batch norms use their running statistics and do not update them.
                "batch_norm": False,
            },
            "log_every_steps": 50,
            # Set either of the two; the other one is None.
            "eval_every_epochs": FieldReference(1.0),
            "eval_every_steps": config_dict.placeholder(int),
            # Checkpoints between those of the evaluations. The latest `keep` and the best are kept.
            # If one cannot be written, on a full disk for example, the run does "stop", or it
            # reports that and does "continue".
            "checkpoints": {"every_steps": 1000, "keep": 2, "on_failure": "stop"},
            "profile": False,  # traces a few steps, in WORKDIR/profile
            "wandb": config_dict.placeholder(str),  # a project of Weights & Biases
            # Number of devices that share the parameters, moments and EMA of the run.
            "mesh": {"fsdp": 1},
            # Several processes: "host:port" of the first one, or "auto" to ask the scheduler.
            "distributed": {
                "coordinator": config_dict.placeholder(str),
                "num_processes": 1,
                "process_id": 0,
            },
        }
    )


def _section(family: ModelFamily) -> dict[str, Any]:
    """The section of a family in `model`."""
    types = field_types(family.architecture)
    shared = {"in_channels"}
    fields = {name: config_dict.placeholder(types[name]) for name in types if name not in shared}
    return fields | dict.fromkeys(family.network.rates, 0.0)


def without_augmentation(config: ConfigDict) -> None:
    """Turns off all augmentation but random crops and flips, and the EMA."""
    config.data.rand_augment = "none"
    config.data.color_jitter = 0.0
    config.augmentation.mixup_alpha = config.augmentation.cutmix_alpha = 0.0
    config.augmentation.erasing_probability = 0.0
    config.ema_decay = 0.0


def sgd_on_imagenet() -> ConfigDict:
    """The recipe of RepVGG and of MobileNet V2: SGD, random crops and flips."""
    config = get_config()
    without_augmentation(config)
    config.data.resizing = "bilinear"
    config.data.eval_crop_fraction = 0.875
    config.batch_size = 256
    config.eval_batch_size = 256
    config.label_smoothing = 0.0
    config.optimizer.name = "sgd"
    config.optimizer.peak_lr = 0.1
    config.optimizer.final_lr = 0.0
    config.optimizer.warmup_epochs = 5.0
    return config


def fine_tuning(config: ConfigDict) -> None:
    """What the official fine-tuning runs on ImageNet-1K share; RandAugment stays."""
    config.model.dtype = "bfloat16"
    config.augmentation.mixup_alpha = config.augmentation.cutmix_alpha = 0.0
    config.epochs = 30.0
    config.optimizer.peak_lr = 4e-4
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-8
    config.optimizer.layer_decay = 0.7


def on_gpus(config: ConfigDict, gpus: str, images: int) -> None:
    """Keeps the batch size of an experiment on fewer GPUs, by accumulation.

    The batch of an evaluation is what the GPUs take at a time.

    Args:
      config: its configuration, with the batch size.
      gpus: what follows the colon of `--config FILE.py:gpus=8`; "" leaves the configuration as
        it is, for as many devices as take the whole batch at a time.
      images: that a GPU takes at a time, as in the official run.

    Raises:
      RunError: something else follows the colon, or the GPUs cannot make up the batch.
    """
    if not gpus:
        return
    number = gpus.removeprefix("gpus=")
    if gpus == number or not number.isdecimal():
        raise RunError(f"After the colon comes gpus=N; {gpus!r} is something else.")
    at_a_time = int(number) * images
    if not at_a_time or config.batch_size % at_a_time:
        possible = [
            n for n in (1, 2, 4, 8, 16, 32, 64, 128) if config.batch_size % (n * images) == 0
        ]
        raise RunError(
            f"{number} GPUs of {images} images each do not make a batch of {config.batch_size}; "
            f"{', '.join(map(str, possible))} do. Or set --config.accumulation yourself."
        )
    config.accumulation = config.batch_size // at_a_time
    config.eval_batch_size = at_a_time


def row_and_gpus(text: str) -> tuple[str, str]:
    """Both parts of `--config FILE.py:ROW,gpus=8`; "" for one that is missing."""
    row, _, gpus = text.partition(",")
    return ("", row) if row.startswith("gpus=") and not gpus else (row, gpus)


def known(row: str, rows: Iterable[str]) -> str:
    """The row of an experiment, from what follows the colon of `--config FILE.py:ROW`.

    Raises:
      RunError: the experiment has no row of that name.
    """
    rows = list(rows)
    if row not in rows:
        raise RunError(f"This experiment has no row {row!r}; it has {', '.join(rows)}.")
    return row
