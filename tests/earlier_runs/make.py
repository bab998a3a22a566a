"""Makes a small run that was stopped, and what it comes to, with whichever version of inception_jax is importable.

    PYTHONPATH=CHECKOUT_OF_THAT_VERSION INCEPTION_JAX_DATA=DIR python make.py VERSION.zip

`test_earlier_runs.py` continues the run with the present version. The archive holds no paths of this machine.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 120
    config.num_epochs = 60
    config.num_devices = 1
    config.compute_dtype = "float32"
    config.average_decay = 0.9
    config.model.name = "simple_cnn"
    config.model.stage_features = (4,)
    config.data.augment.pad_and_crop = 1
    config.schedule.name = "plateau"
    config.schedule.metric = "validation_loss"
    config.evaluate.every_epochs = 10
    config.checkpoint.every_steps = 5
    config.log.tensorboard = False
    return config
"""


def make(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        root, folder, config = Path(place) / "content", Path(place) / "content" / "run", Path(place) / "small.py"
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "inception_jax.main", f"--config={config}"]
        with subprocess.Popen([*command, f"--workdir={folder}"]) as process:
            while not list(folder.glob("checkpoints/[0-9]*")):
                time.sleep(0.05)
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        assert process.returncode == 75
        (folder / ".lock").unlink(missing_ok=True)
        whole = Path(place) / "whole"
        shutil.copytree(folder, whole)
        for path in folder.rglob("commit_success.txt"):  # Orbax writes the path of the checkpoint there
            path.write_text(path.read_text().replace(f"{root}/", ""))
        subprocess.run([*command, f"--workdir={whole}"], check=True)
        summary = json.loads((whole / "summary.json").read_text())
        (root / "expected.json").write_text(json.dumps({"test": summary["test"], "steps": summary["steps"]}))
        shutil.make_archive(str(archive.with_suffix("")), "zip", root)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
