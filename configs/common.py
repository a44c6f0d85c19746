"""The fields of every configuration, with the paper's values where an experiment sets none."""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            # "train"; or "eval", which evaluates the network in `init_from`.
            "mode": "train",
            # A checkpoint to begin with: of PyTorch, of a run (WORKDIR/checkpoints/STEP), or one
            # that was converted. `init_ema` takes the moving average in it, `init_reset_head`
            # draws a new classifier where it has another number of classes.
            "init_from": config_dict.placeholder(str),
            "init_ema": False,
            "init_reset_head": False,
            # Of the parameters, the order of the data, the augmentation and stochastic depth.
            "seed": 0,
            # See replk_jax.create_model. A field of the architecture that is None is as the
            # named model has it; small_kernel=0 builds no small kernel.
            "model": {
                "name": "replknet_31b",
                "kernel_sizes": config_dict.placeholder(tuple),
                "layers": config_dict.placeholder(tuple),
                "channels": config_dict.placeholder(tuple),
                "small_kernel": config_dict.placeholder(int),
                "dw_ratio": config_dict.placeholder(float),
                "ffn_ratio": config_dict.placeholder(float),
                "in_channels": config_dict.placeholder(int),
                "drop_path_rate": 0.0,
                "remat": False,
                "dtype": "float32",
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
                "image_size": 224,
                "crop_scale": (0.08, 1.0),  # share of the area that a training crop covers
                "crop_ratio": (3 / 4, 4 / 3),  # its width over its height
                "flip": True,
                "eval_crop_fraction": config_dict.placeholder(float),  # None: warp, no crop
                # Where the checkpoint in `init_from` says how its images are prepared, mode
                # "eval" does it so; True keeps to image_size, crop, mean and std here.
                "eval_as_configured": False,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
                # Threads that decode; with workers, so many processes with as many threads each.
                "reading": {"threads": 8, "workers": 0},
            },
            "batch_size": 2048,  # of all devices together
            "eval_batch_size": 1024,
            "epochs": 300.0,
            "label_smoothing": 0.1,
            "optimizer": {
                "peak_lr": 4e-3,
                "final_lr": 1e-6,
                "warmup_epochs": 10.0,
                "weight_decay": 0.05,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
            },
            "log_every_steps": 50,
            "eval_every_epochs": 1.0,
            # Besides one with every evaluation; the latest `keep` and the best stay.
            "checkpoints": {"every_steps": 1000, "keep": 2},
            # Several processes: "host:port" of the first one, or "auto" to ask the scheduler.
            "distributed": {
                "coordinator": config_dict.placeholder(str),
                "num_processes": 1,
                "process_id": 0,
            },
        }
    )
