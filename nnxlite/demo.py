"""Trains a small convolutional network on scans of handwritten digits.

    python -m nnxlite.demo --epochs 30 --seed 0 --out digits.png

The data are the 1,797 real 8x8 scans that come with scikit-learn. The code is written
to be copied from: a model, a training step, a loop.
"""

import argparse
import itertools
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import nnxlite as nnx

try:
    import matplotlib
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f'{error.name} is missing: run pip install -e ".[demo]"')

BATCH_SIZE = 64
Data = Sequence[np.ndarray]  # training and held-out images, then their labels
History = dict[str, list[float]]


class Net(nnx.Module):
    """Two convolutions with BatchNorm, then two linear layers with Dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(32, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(64, rngs=rngs)
        self.hidden = nnx.Linear(2 * 2 * 64, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = nnx.max_pool(nnx.relu(self.norm1(self.conv1(x))), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.norm2(self.conv2(x))), (2, 2), (2, 2))
        x = self.dropout(nnx.relu(self.hidden(x.reshape(len(x), -1))))
        return self.head(x)


def loss_fn(model: Net, images: Array, labels: Array) -> tuple[Array, Array]:
    logits = model(images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), logits


def train_step(
    model: Net,
    optimizer: nnx.Optimizer,
    metrics: nnx.MultiMetric,
    images: Array,
    labels: Array,
) -> None:
    (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(
        model, images, labels
    )
    optimizer.update(grads)
    metrics.update(loss=loss, logits=logits, labels=labels)


@nnx.jit
def predict(model: Net, images: Array) -> Array:
    return model(images).argmax(axis=-1)


def new_metrics() -> nnx.MultiMetric:
    return nnx.MultiMetric(
        loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy()
    )


def new_training(seed: int, steps: int) -> tuple[Net, nnx.Optimizer]:
    model = Net(nnx.Rngs(seed))
    schedule = optax.cosine_decay_schedule(3e-3, steps)
    return model, nnx.Optimizer(model, optax.adamw(schedule, weight_decay=1e-3))


def load_data(seed: int) -> Data:
    """Training and held-out images (n, 8, 8, 1) in 0..1, and labels (n,)."""
    digits: Any = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int32)
    parts: Any = train_test_split(
        images, labels, test_size=0.2, random_state=seed, stratify=labels
    )
    return parts


def batches(
    images: np.ndarray, labels: np.ndarray, generator: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """One epoch in random order, without the last incomplete batch."""
    order = generator.permutation(len(images))
    for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
        index = order[start : start + BATCH_SIZE]
        yield jnp.asarray(images[index]), jnp.asarray(labels[index])


def accuracy(model: Net, images: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy in eval mode; the model stays in train mode."""
    evaluated = nnx.view(model, deterministic=True, use_running_average=True)
    return float((predict(evaluated, jnp.asarray(images)) == labels).mean())


def train(epochs: int, seed: int, data: Data) -> tuple[Net, History]:
    """Trains with a compiled step; returns the model and the history by epoch."""
    train_images, test_images, train_labels, test_labels = data
    per_epoch = len(train_images) // BATCH_SIZE
    model, optimizer = new_training(seed, epochs * per_epoch)
    metrics, step = new_metrics(), nnx.jit(train_step, donate="state")
    generator = np.random.default_rng(seed)
    history: History = {"loss": [], "train": [], "held out": []}
    with tqdm(total=epochs * per_epoch, unit="step") as bar:
        for _ in range(epochs):
            metrics.reset()
            for images, labels in batches(train_images, train_labels, generator):
                step(model, optimizer, metrics, images, labels)
                bar.update()
            measured = {name: float(x) for name, x in metrics.compute().items()}
            history["loss"].append(measured["loss"])
            history["train"].append(measured["accuracy"])
            history["held out"].append(accuracy(model, test_images, test_labels))
            bar.set_postfix(
                loss=f"{measured['loss']:.4f}", accuracy=f"{measured['accuracy']:.4f}"
            )
    return model, history


def train_eagerly(steps: int, seed: int, data: Data) -> History:
    """The same step without `jit`, compared with the compiled one; returns losses."""
    losses: History = {}
    for name, step in {"eager": train_step, "jitted": nnx.jit(train_step)}.items():
        model, optimizer = new_training(seed, steps)
        generator = np.random.default_rng(seed)
        losses[name] = []
        epoch = batches(data[0], data[2], generator)
        for batch in itertools.islice(epoch, steps):
            metrics = new_metrics()
            step(model, optimizer, metrics, *batch)
            losses[name].append(float(metrics.compute()["loss"]))
    return losses


def draw(
    path: pathlib.Path,
    history: History,
    model: Net,
    images: np.ndarray,
    labels: np.ndarray,
) -> None:
    """A picture of the learning curves and of held-out digits with predictions."""
    matplotlib.use("Agg")
    figure = plt.figure(figsize=(11, 4.6), layout="constrained")
    panels: Any = figure.subfigures(1, 2)
    left, right = panels
    loss_axis, accuracy_axis = left.subplots(2, 1, sharex=True)
    epochs = range(1, len(history["loss"]) + 1)
    loss_axis.plot(epochs, history["loss"], marker=".", color="tab:blue")
    loss_axis.set(ylabel="training loss", yscale="log")
    accuracy_axis.plot(epochs, history["train"], marker=".", label="training")
    accuracy_axis.plot(epochs, history["held out"], marker=".", label="held out")
    accuracy_axis.set(xlabel="epoch", ylabel="accuracy")
    accuracy_axis.xaxis.get_major_locator().set_params(integer=True)
    accuracy_axis.legend()
    evaluated = nnx.view(model, deterministic=True, use_running_average=True)
    predictions = predict(evaluated, jnp.asarray(images))
    wrong = np.flatnonzero(predictions != labels)
    chosen = np.concatenate([wrong[:8], np.flatnonzero(predictions == labels)])[:32]
    right.suptitle("held-out digits: predicted, in red where wrong (true in brackets)")
    for axis, index in zip(right.subplots(4, 8).flat, chosen, strict=True):
        said, true = int(predictions[index]), int(labels[index])
        axis.imshow(images[index, ..., 0], cmap="gray_r")
        axis.set_title(
            f"{said}" if said == true else f"{said} ({true})",
            color="black" if said == true else "red",
            fontsize=10,
        )
        axis.axis("off")
    figure.savefig(path, dpi=110)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def seed_number(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2**32-1")
    return int(text)


def picture(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the name of a .png file in a folder that exists"
        )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m nnxlite.demo", description=__doc__ and __doc__.split("\n")[0]
    )
    parser.add_argument("--epochs", type=positive, default=30, help="default: 30")
    parser.add_argument("--seed", type=seed_number, default=0, help="default: 0")
    parser.add_argument(
        "--out", type=picture, default="nnxlite-demo.png", help="the picture to write"
    )
    options = parser.parse_args()
    data = load_data(options.seed)
    start = time.perf_counter()
    model, history = train(options.epochs, options.seed, data)
    seconds = time.perf_counter() - start
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    print(f"{count:,} parameters, {options.epochs} epochs in {seconds:.1f} s")
    known = accuracy(model, data[0], data[2])
    print(f"accuracy on {len(data[0])} training scans: {known:.2%}")
    print(f"accuracy on {len(data[1])} held-out scans: {history['held out'][-1]:.2%}")
    losses = train_eagerly(5, options.seed, data)
    for name, values in losses.items():
        print(f"first losses, {name:>6}: {' '.join(f'{x:.4f}' for x in values)}")
    draw(options.out, history, model, data[1], data[3])
    print(f"learning curves and predictions: {options.out}")


if __name__ == "__main__":
    main()
