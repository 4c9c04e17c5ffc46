#!/usr/bin/env python3
"""Trains the demo's two model versions, and sets aside the samples that its clients send.

Both are multilayer perceptrons (one hidden layer, ReLU, softmax) for the 8x8 digits that come with
scikit-learn; they differ in size, regularisation and seed, as two releases of a small model would.
The same versions of the libraries give the same files:

    pip install scikit-learn==1.9.1 numpy==2.4.6
    python demo/train.py
"""

import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

FOLDER = Path(__file__).parent
BRIGHTEST = 16.0
VERSIONS = {
    "v12": dict(hidden_layer_sizes=(16,), alpha=0.1, random_state=1),
    "v13": dict(hidden_layer_sizes=(24,), alpha=0.001, random_state=2),
}


def layer(weights, bias):
    """One row of weights for each output, in single precision as the server computes."""
    rows = weights.T.astype(np.float32)
    return {
        "weights": [[float(f"{w:.7g}") for w in row] for row in rows],
        "bias": [float(f"{b:.7g}") for b in bias.astype(np.float32)],
    }


def main():
    images, labels = load_digits(return_X_y=True)
    train_x, held_x, train_y, held_y = train_test_split(
        images, labels, test_size=0.25, random_state=7, stratify=labels
    )
    predictions = {}
    for version, settings in VERSIONS.items():
        model = MLPClassifier(max_iter=1000, **settings).fit(train_x / BRIGHTEST, train_y)
        predictions[version] = model.predict(held_x / BRIGHTEST)
        weights = {
            "version": version,
            "scale": 1 / BRIGHTEST,
            "layers": [layer(w, b) for w, b in zip(model.coefs_, model.intercepts_)],
        }
        text = json.dumps(weights).replace("], [", "],\n[") + "\n"
        (FOLDER / "weights" / f"{version}.json").write_text(text)
        accuracy = float((predictions[version] == held_y).mean())
        print(f"{version}: {accuracy:.1%} of {len(held_y)} held-out digits right")
    agreement = float((predictions["v12"] == predictions["v13"]).mean())
    print(f"labels agree on {agreement:.1%}")

    samples = [
        json.dumps({"pixels": [int(p) for p in pixels], "label": int(label)}, separators=(",", ":"))
        for pixels, label in zip(held_x, held_y)
    ]
    (FOLDER / "samples.json").write_text("[\n" + ",\n".join(samples) + "\n]\n")


if __name__ == "__main__":
    main()
