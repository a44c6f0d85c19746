"""The fields of every configuration, with the paper's values where an experiment sets none."""

from collections.abc import Iterable

from ml_collections import ConfigDict, config_dict

from train.errors import RunError


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            # "train"; or "eval", which evaluates the network in `init_from`.
            "mode": "train",
            # What the network is trained for: a name of train.tasks.TASKS.
            "task": "classification",
            # A checkpoint to begin with: of PyTorch, of a run (WORKDIR/checkpoints/STEP), or one
            # that was converted. `init_ema` takes the EMA in it; `init_key` and `init_prefix`
            # choose among several networks in a PyTorch file (see `replk_jax.load_torch`);
            # `init_reset_head` draws a new classifier where it has another number of classes;
            # `init_adapt_input` sums or repeats the kernels that see the image where it is for
            # another number of channels.
            "init_from": config_dict.placeholder(str),
            "init_ema": False,
            "init_key": config_dict.placeholder(str),
            "init_prefix": config_dict.placeholder(str),
            "init_reset_head": False,
            "init_adapt_input": False,
            # Of the parameters, the order of the data, the augmentation and stochastic depth.
            "seed": 0,
            # See replk_jax.create_model. Of the sections that of the named model's family counts;
            # a field that is None is as the named model has it, and small_kernel=0 builds no small
            # kernel.
            "model": {
                "name": "replknet_31b",
                "in_channels": config_dict.placeholder(int),
                # Size of the image over that of the last feature map; dilation replaces strides.
                "output_stride": config_dict.placeholder(int),
                "dtype": "float32",
                # What blocks keep for the backward pass, which computes the rest again: "full"
                # nothing, "save_depthwise" the results of depthwise convolutions, None everything.
                "remat": config_dict.placeholder(str),
                "replknet": {
                    "kernel_sizes": config_dict.placeholder(tuple),
                    "layers": config_dict.placeholder(tuple),
                    "channels": config_dict.placeholder(tuple),
                    "small_kernel": config_dict.placeholder(int),
                    "dw_ratio": config_dict.placeholder(float),
                    "ffn_ratio": config_dict.placeholder(float),
                    "dilated_branches": config_dict.placeholder(tuple),
                    "drop_path_rate": 0.0,
                },
                "repvgg": {
                    "layers": config_dict.placeholder(tuple),
                    "channels": config_dict.placeholder(tuple),
                    # One number for every second layer, or a tuple with one for each layer.
                    "groups": config_dict.placeholder(object),
                    "squeeze_excite": config_dict.placeholder(bool),
                    "block": config_dict.placeholder(str),
                },
                "mobilenet_v2": {
                    "kernel_sizes": config_dict.placeholder(tuple),
                    "small_kernel": config_dict.placeholder(int),
                    "shortcuts": config_dict.placeholder(bool),
                    "layers": config_dict.placeholder(tuple),
                    "channels": config_dict.placeholder(tuple),
                    "strides": config_dict.placeholder(tuple),
                    "expansions": config_dict.placeholder(tuple),
                    "stem_channels": config_dict.placeholder(int),
                    "last_channels": config_dict.placeholder(int),
                    "dilation": config_dict.placeholder(int),
                    "dropout_rate": 0.0,
                },
                "resnet": {
                    "layers": config_dict.placeholder(tuple),
                    "channels": config_dict.placeholder(tuple),
                    "block": config_dict.placeholder(str),
                    "stride_in_1x1": config_dict.placeholder(bool),
                },
            },
            "data": {
                # A classification set of TensorFlow Datasets, and where it was prepared
                # (default: TFDS_DATA_DIR, else ~/tensorflow_datasets).
                "name": "imagenet2012",
                "data_dir": config_dict.placeholder(str),
                # Or a folder of splits of class folders; takes the place of `name`.
                "folder": config_dict.placeholder(str),
                "train_split": "train",
                "eval_split": "validation",
                # More splits to evaluate on; the best checkpoint is chosen by eval_split.
                "more_eval_splits": (),
                "image_size": 224,
                "crop_scale": (0.08, 1.0),  # share of the area that a training crop covers
                "crop_ratio": (3 / 4, 4 / 3),  # its width over its height
                # How a crop is resized: "opencv" (quick; bicubic, when shrinking of an image that
                # was filtered before), or Pillow's antialiased "bicubic" or "bilinear".
                "resizing": "opencv",
                "flip": True,
                "rand_augment": "rand-m9-mstd0.5-inc1",  # in timm's spelling, or "none"
                # Of brightness, contrast and saturation, where rand_augment is "none"; 0 for none.
                "color_jitter": 0.4,
                # An image that cannot be read: "stop"; or report it and "replace" it by the next.
                "unreadable": "stop",
                "eval_crop_fraction": config_dict.placeholder(float),  # None: warp, no crop
                # Where the checkpoint in `init_from` says how its images are prepared, mode
                # "eval" does it so; True keeps to image_size, crop, mean and std here.
                "eval_as_configured": False,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
                # Threads that decode (None: one a processor, at most 8); with workers, so many
                # processes with as many threads each.
                "reading": {"threads": config_dict.placeholder(int), "workers": 0},
            },
            # What the device does to the images of a batch.
            "augmentation": {
                "mixup_alpha": 0.8,  # of Beta(a, a), as the next; 0 for no mixup, no cutmix
                "cutmix_alpha": 1.0,
                "mix_probability": 1.0,  # that one of the two is applied
                "switch_probability": 0.5,  # that it is cutmix, where both are on
                "images_per_draw": 64,  # neighbours that share one draw and are mixed in pairs
                "erasing_probability": 0.25,
            },
            "label_smoothing": 0.1,
            "batch_size": 2048,  # of one step, of all devices together
            # Micro-batches in a step, one after another; batch norm sees one at a time.
            "accumulation": 1,
            "eval_batch_size": 1024,
            "epochs": 300.0,
            "ema_decay": 0.9999,  # moving average of parameters and statistics; 0 for none
            "optimizer": {
                "name": "adamw",  # or "sgd"
                "peak_lr": 4e-3,
                "final_lr": 1e-6,
                "warmup_epochs": 10.0,
                "weight_decay": 0.05,
                # What decays: "kernels" (tensors of two or more dimensions), "repvgg" (what that
                # paper's code lets decay) or "all". See train/optimizer.py.
                "decay_of": "kernels",
                # The learning rate of a group of a RepLKNet's parameters over that of the group
                # after it: of fourteen groups by "layer" (official code, 0.7), or by "stage"
                # (the paper for XL, 0.4). See `layer_of` and `stage_of` in train/optimizer.py.
                "layer_decay": 1.0,
                "layer_decay_by": "layer",
                # The norm to which longer gradients are cut; None for no limit.
                "clip_norm": config_dict.placeholder(float),
                # RepVGG's L2 penalty on merged kernels in place of decay on those of the branches.
                "custom_l2": False,
                "b1": 0.9,  # of AdamW, as the next two
                "b2": 0.999,
                "eps": 1e-8,
                "momentum": 0.9,  # of SGD, as the next
                "nesterov": False,
            },
            "log_every_steps": 50,
            "eval_every_epochs": 1.0,
            # Besides one with every evaluation; the latest `keep` and the best stay.
            # A failed save, as on a full disk, ends the run: "stop"; or is reported: "go_on".
            "checkpoints": {"every_steps": 1000, "keep": 2, "on_failure": "stop"},
            "profile": False,  # a trace of a few steps, in WORKDIR/profile
            "wandb": config_dict.placeholder(str),  # a project of Weights & Biases
            # Over so many devices the parameters, moments and moving average of a run are spread.
            "mesh": {"fsdp": 1},
            # Several processes: "host:port" of the first one, or "auto" to ask the scheduler.
            "distributed": {
                "coordinator": config_dict.placeholder(str),
                "num_processes": 1,
                "process_id": 0,
            },
        }
    )


def without_augmentation(config: ConfigDict) -> None:
    """Leaves random crops and flips alone, and no moving average."""
    config.data.rand_augment = "none"
    config.data.color_jitter = 0.0
    config.augmentation.mixup_alpha = config.augmentation.cutmix_alpha = 0.0
    config.augmentation.erasing_probability = 0.0
    config.ema_decay = 0.0


def sgd_on_imagenet() -> ConfigDict:
    """The recipe of RepVGG and of MobileNet V2: SGD, random crops and flips, nothing else."""
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
    """What the official fine-tuning runs on ImageNet-1K have in common; RandAugment stays."""
    config.model.dtype = "bfloat16"
    config.augmentation.mixup_alpha = config.augmentation.cutmix_alpha = 0.0
    config.epochs = 30.0
    config.optimizer.peak_lr = 4e-4
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-8
    config.optimizer.layer_decay = 0.7


def on_gpus(config: ConfigDict, gpus: str, images: int) -> None:
    """Keeps the batch of an experiment on fewer GPUs, by accumulation; evaluates as many at a time.

    Args:
      config: its configuration, with the batch.
      gpus: what follows the colon of `--config FILE.py:gpus=8`; "" leaves the configuration as
        it is, for as many devices as share the batch at once.
      images: that a GPU takes at a time, as in the official run.

    Raises:
      RunError: something else follows the colon, or the batch cannot be made so.
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
    """Both parts of `--config FILE.py:ROW,gpus=8`, of which either may be missing, as ""."""
    row, _, gpus = text.partition(",")
    return ("", row) if row.startswith("gpus=") and not gpus else (row, gpus)


def known(row: str, rows: Iterable[str]) -> str:
    """The row of an experiment that is named after the colon of `--config FILE.py:ROW`.

    Raises:
      RunError: there is none of that name.
    """
    rows = list(rows)
    if row not in rows:
        raise RunError(f"This experiment has no row {row!r}; it has {', '.join(rows)}.")
    return row
