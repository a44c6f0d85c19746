"""The fields of every run, and those of classification.

They have the paper's values where an experiment sets none. The other tasks have a `common.py` in a
folder of their own.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from replk_jax.models.architecture import field_types
from replk_jax.models.family import ModelFamily
from replk_jax.models.registry import FAMILIES
from replk_jax.vision.base_preprocessing import IMAGENET_MEAN, IMAGENET_STD
from train.errors import RunError


def run_fields() -> dict[str, Any]:
    """The fields that all tasks have; `data` and the whole get those of the task."""
    return {
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
        # Of parameters, order of the data, augmentation, dropout and stochastic depth.
        "seed": 0,
        # See replk_jax.create_model. Each family has a section; only that of the named model is
        # used. It has the fields of the family's architecture, `replk_jax.RepLKNetArchitecture`
        # for example, and the rates of dropout and stochastic depth. None is the value of the
        # named model. small_kernel=0 builds no small kernel.
        "model": {
            "name": "replknet_31b",
            "in_channels": config_dict.placeholder(int),
            # Total stride of the last feature map; later strides are replaced by dilation.
            "output_stride": config_dict.placeholder(int),
            "dtype": "float32",
            # Rematerialization: None saves all activations for the backward pass,
            # "save_depthwise" only the outputs of depthwise convolutions, "full" none.
            "remat": config_dict.placeholder(str),
            **{family.name: _section(family) for family in FAMILIES},
        },
        "data": {
            # A data set of TensorFlow Datasets, and the folder of the data sets (None:
            # TFDS_DATA_DIR, or ~/tensorflow_datasets if that is not set).
            "name": "imagenet2012",
            "data_dir": config_dict.placeholder(str),
            # A folder of images, in place of `name`: see the task's own fields.
            "folder": config_dict.placeholder(str),
            "train_split": "train",
            "eval_split": "validation",
            # More splits to evaluate on. eval_split decides which checkpoint is the best.
            "more_eval_splits": (),
            # If an image cannot be read: "stop", or "replace" it by the next one and report it.
            "unreadable": "stop",
            # Preprocessing in mode "eval". False: that of the checkpoint, if it has one. True: that
            # of the configuration.
            "eval_as_configured": False,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            # Decoding threads (None: one per processor, at most 8) of this process or, if there
            # are workers, of each of these processes.
            "reading": {"threads": config_dict.placeholder(int), "workers": 0},
        },
        "batch_size": 2048,  # of a step, on all devices
        # Number of micro-batches of a step. Batch norm uses the statistics of a micro-batch.
        "accumulation": 1,
        "eval_batch_size": 1024,
        # Length of the run. Set one of the two; the other one is None.
        "epochs": FieldReference(300.0),
        "steps": config_dict.placeholder(int),
        "ema_decay": 0.9999,  # of parameters and running statistics; 0 for no EMA
        "optimizer": {
            "name": "adamw",  # or "sgd"
            # The learning rate decays from `peak_lr`: "cosine" and "polynomial" to `final_lr`,
            # "step" by `milestone_factor` at each of the `milestones` (in the unit of the
            # run's length, epochs or steps), "constant" not at all. See
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
            # Parameters that decay: "kernels" (tensors of two or more dimensions), "repvgg" (as
            # in RepVGG's code), "except_norms" (all but scales and biases of norms) or "all".
            # See train/engine/optimizer.py.
            "decay_of": "kernels",
            # Factor on the learning rate from one group of parameters to the one before it, in
            # groups by "layer" (official code of RepLKNet, 0.7) or by "stage" (its paper for
            # XL, 0.4). See `layer_of` and `stage_of` of the networks.
            "layer_decay": 1.0,
            "layer_decay_by": "layer",
            # Factor on the learning rate of the final norm and the classifier, or of the heads
            # of a network that has a backbone.
            "head_lr_factor": 1.0,
            # The largest norm of the gradient; None for no limit.
            "clip_norm": config_dict.placeholder(float),
            # RepVGG's L2 penalty on merged kernels, which replaces the decay of the branches.
            "custom_l2": False,
            "b1": 0.9,  # b1, b2 and eps are for AdamW
            "b2": 0.999,
            "eps": 1e-8,
            "momentum": 0.9,  # momentum and nesterov are for SGD
            "nesterov": False,
        },
        # Frozen parts of the network. See train/engine/freezing.py.
        "freeze": {
            # -1 for none, 0 for the stem, n for the stem and the first n stages: they get no
            # updates and run in eval mode.
            "stages": -1,
            # Whether batch norms use their running statistics and do not update them; of a
            # network with heads, those of its backbone.
            "batch_norm": False,
        },
        "log_every_steps": 50,
        # Set one of the two; the other one is None.
        "eval_every_epochs": FieldReference(1.0),
        "eval_every_steps": config_dict.placeholder(int),
        # Every evaluation saves a checkpoint too. The latest `keep` and the best are kept. If
        # one cannot be written, on a full disk for example: "stop", or report it and
        # "continue".
        "checkpoints": {"every_steps": 1000, "keep": 2, "on_failure": "stop"},
        "profile": False,  # traces a few steps, in WORKDIR/profile
        "wandb": config_dict.placeholder(str),  # a project of Weights & Biases
        # Number of devices over which parameters, moments and EMA are sharded.
        "mesh": {"fsdp": 1},
        # Several processes: "host:port" of the first one, or "auto" to ask the scheduler.
        "distributed": {
            "coordinator": config_dict.placeholder(str),
            "num_processes": 1,
            "process_id": 0,
        },
    }


def get_config() -> ConfigDict:
    """The fields of classification."""
    fields = run_fields()
    fields["data"] |= {
        # A folder of images has SPLIT/<class>/<image>.
        "image_size": 224,
        "crop_scale": (0.08, 1.0),  # area of a training crop relative to the image's
        "crop_ratio": (3 / 4, 4 / 3),  # width over height of a training crop
        # Of crops: "opencv" (fast; bicubic, after a low-pass filter if the crop shrinks), or
        # Pillow's antialiased "bicubic" or "bilinear".
        "resizing": "opencv",
        "flip": True,
        "rand_augment": "rand-m9-mstd0.5-inc1",  # in timm's notation, or "none"
        # Of brightness, contrast and saturation, if rand_augment is "none"; 0 for none.
        "color_jitter": 0.4,
        "eval_crop_fraction": config_dict.placeholder(float),  # None: resize, do not crop
    }
    fields |= {
        # Augmentation of whole batches, on the devices.
        "augmentation": {
            "mixup_alpha": 0.8,  # of Beta(a, a); mixup and cutmix are off at 0
            "cutmix_alpha": 1.0,
            "mix_probability": 1.0,  # of mixup or cutmix
            "switch_probability": 0.5,  # of cutmix, if both are on
            "mixup_group_size": 64,  # consecutive images that share a draw of mixup or cutmix
            "erasing_probability": 0.25,
        },
        "label_smoothing": 0.1,
    }
    return ConfigDict(fields)


def _section(family: ModelFamily) -> dict[str, Any]:
    """The section of a family in `model`."""
    types = field_types(family.architecture)
    shared = {"in_channels"}
    fields = {name: config_dict.placeholder(types[name]) for name in types if name not in shared}
    return fields | dict.fromkeys(family.network.rates, 0.0)


def without_augmentation(config: ConfigDict) -> None:
    """Turns off the EMA, and all augmentation except random crops and flips."""
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
    """The common settings of the official fine-tuning runs on ImageNet-1K."""
    config.model.dtype = "bfloat16"
    config.augmentation.mixup_alpha = config.augmentation.cutmix_alpha = 0.0
    config.epochs = 30.0
    config.optimizer.peak_lr = 4e-4
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-8
    config.optimizer.layer_decay = 0.7


def on_gpus(config: ConfigDict, gpus: str, images: int) -> None:
    """Sets the accumulation that keeps the batch size of an experiment on a number of GPUs.

    The batch size of evaluations becomes that of a micro-batch.

    Args:
      config: of the experiment, with the batch size.
      gpus: the text after the colon of `--config FILE.py:gpus=8`. With "", nothing is changed: the
        devices take the whole batch at a time.
      images: for a GPU at a time, as in the official run.

    Raises:
      RunError: the text is invalid, or the batch is no multiple of a micro-batch.
    """
    if not gpus:
        return
    number = gpus.removeprefix("gpus=")
    if gpus == number or not number.isdecimal():
        raise RunError(f"Expected gpus=N after the colon; got {gpus!r}.")
    at_a_time = int(number) * images
    if not at_a_time or config.batch_size % at_a_time:
        possible = [
            n for n in (1, 2, 4, 8, 16, 32, 64, 128) if config.batch_size % (n * images) == 0
        ]
        raise RunError(
            f"A batch of {config.batch_size} cannot be divided into micro-batches of {number} GPUs "
            f"with {images} images each. Possible numbers of GPUs are "
            f"{', '.join(map(str, possible))}. Or set --config.accumulation."
        )
    config.accumulation = config.batch_size // at_a_time
    config.eval_batch_size = at_a_time


def row_and_gpus(text: str) -> tuple[str, str]:
    """Splits the text after the colon of `--config FILE.py:ROW,gpus=8`; a missing part is ""."""
    row, _, gpus = text.partition(",")
    return ("", row) if row.startswith("gpus=") and not gpus else (row, gpus)


def known(row: str, rows: Iterable[str]) -> str:
    """The row of `--config FILE.py:ROW`.

    Raises:
      RunError: the experiment has no such row.
    """
    rows = list(rows)
    if row not in rows:
        raise RunError(f"This experiment has no row {row!r}; it has {', '.join(rows)}.")
    return row
