"""GoogLeNet to 94 % on CIFAR-10 in a minute of training on one H100: the aim, not yet run on a GPU.

    python -m inception_jax.main --config=configs/googlenet_cifar10_fast.py

Estimated from shapes: stem "small" has 1.45 billion multiply-adds per image, 434 TFLOP per epoch with the backward
pass. At 25 to 35 % of an H100's 989 TFLOP/s in bfloat16, that is 1.8 to 1.3 s, or 35 to 25 s for 20 epochs; at 15 % it
is 59 s. "small_pooled" has 36 TFLOP, 0.1 s per epoch, but its 8x8 maps cost more accuracy than more epochs regain.
Time is `training_seconds` in summary.json: steps only. The test split is watched, as is usual for time to accuracy.
`benchmarks/time_to_accuracy.py` repeats it with several seeds.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 512
    config.num_epochs = 20
    config.average_decay = 0.99  # about the mean of an epoch: as good as weights from later in the schedule

    config.model.name = "googlenet"
    config.model.norm = "batch"
    config.model.stem = "small"
    config.model.dropout_rate = 0.0

    config.data.name = "cifar10"
    config.data.splits.train = "train"
    config.data.splits.validation = ""
    config.data.augment.pad_and_crop = 4
    config.data.augment.horizontal_flip = 0.5
    config.data.augment.cutout = 8

    config.loss.label_smoothing = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.4  # 0.1 for 128 examples, scaled linearly
    config.schedule.warmup_epochs = 3.0

    config.evaluate.splits = ("test",)
    config.evaluate.final_splits = ("test",)
    config.evaluate.batch_size = 2000
    config.evaluate.first_epoch = 14  # 94 % is out of reach while the learning rate is high
    config.evaluate.watch = "test_top1"
    config.evaluate.stop_at = 0.94
    return config
