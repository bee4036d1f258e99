"""(l) A search over learning rates of a head, with a store of what its frozen CNN gives.

`GridSearchCV` with 4 candidates, 3 folds and 10 epochs trains the head of a small CNN that is frozen in eval mode, on
512 images of 32 x 32: by plain freezing, with `frozen_cache` in memory, with an empty store, and with one that an
earlier search has filled. The other way is to compute the features of all images once, by hand, and to search over
heads on them. All of these have to choose the same rate, with scores that differ by less than 1e-5. Time is CPU time;
with two workers, time on the wall.

One more row is a fit with a warm store, over as many epochs of a fit whose rows are all in memory.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from benchmarks.rounds import in_turns, row, table
from mlr3torch_py import select_prefix, t_clbk

RATES = [0.3, 0.1, 0.03, 0.01]
FOLDS, EPOCHS, BATCH, CLASSES, WIDTH = 3, 10, 64, 5, 64
COLD, WARM, PLAIN, FIT = 1.8, 1.4, 1 / 12, 1.3
TOLERANCE = 1e-5


class Block(nn.Module):
    """Two convolutions with BatchNorm, and a maximum over 2 x 2."""

    def __init__(self, width_in, width_out):
        super().__init__()
        self.first = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width_out)
        self.second = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width_out)

    def forward(self, x):
        x = torch.relu(self.first_norm(self.first(x)))
        return nn.functional.max_pool2d(torch.relu(self.second_norm(self.second(x))), 2)


class CNN(nn.Module):
    """Three blocks, and a linear head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        blocks = Block(3, 16), Block(16, 32), Block(32, WIDTH)
        self.backbone = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.backbone(x))


class Head(nn.Module):
    """The head of the CNN alone."""

    def __init__(self):
        super().__init__()
        self.head = CNN().head

    def forward(self, x):
        return self.head(x)


@cache
def images(n):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 3, 32, 32)).astype("float32"), rng.integers(0, CLASSES, n)


def features(data):
    backbone = CNN().backbone.eval()
    with torch.no_grad():
        return torch.cat([backbone(batch) for batch in torch.tensor(data).split(BATCH)]).numpy()


def net(module, *callbacks, epochs=EPOCHS):
    return NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        lr=RATES[0],
        max_epochs=epochs,
        batch_size=BATCH,
        train_split=None,
        verbose=0,
        callbacks=list(callbacks),
    )


def frozen():
    return t_clbk("unfreeze", starting_weights=select_prefix("head"), frozen_mode="eval")


def cached(store=None):
    return net(CNN, frozen(), t_clbk("frozen_cache", store=store, keep=True))


class Searches:
    """The ways to search, each of which returns its seconds; their results have to be the same."""

    def __init__(self, folder, n_images, n_jobs):
        self.folder, self.n_jobs, self.n_stores = Path(folder), n_jobs, 0
        self.clock = process_time if n_jobs == 1 else perf_counter
        self.data, self.labels = images(n_images)
        self.found = {}
        self.search("warm store", cached(self.folder / "warm"), self.data)

    def search(self, way, estimator, data):
        search = GridSearchCV(estimator, {"lr": RATES}, cv=FOLDS, n_jobs=self.n_jobs, refit=False)
        search.fit(data, self.labels)
        self.found[way] = search.best_params_, search.cv_results_["mean_test_score"]

    def timed(self, way, estimator):
        begin = self.clock()
        if estimator is None:
            self.search(way, net(Head), features(self.data))
        else:
            self.search(way, estimator, self.data)
        return self.clock() - begin

    def cold(self):
        self.n_stores += 1
        return self.timed("cold store", cached(self.folder / str(self.n_stores)))

    def ways(self):
        return {
            "cold store": self.cold,
            "warm store": lambda: self.timed("warm store", cached(self.folder / "warm")),
            "features once, then heads": lambda: self.timed("features once, then heads", None),
            "cache in memory": lambda: self.timed("cache in memory", cached()),
            "plain freezing": lambda: self.timed("plain freezing", net(CNN, frozen())),
        }

    def check(self):
        rates, scores = self.found["plain freezing"]
        for way, (best, ours) in self.found.items():
            if best != rates or not np.allclose(ours, scores, rtol=0, atol=TOLERANCE):
                raise RuntimeError(f"{way} has found {best} with {ours}, and plain freezing {rates} with {scores}")


def compare_searches(n_images, n_jobs, rounds):
    with TemporaryDirectory() as folder:
        searches = Searches(folder, n_images, n_jobs)
        seconds = in_turns(searches.ways(), rounds)
        searches.check()
    by_hand, case = "features once, then heads", f"search, {n_jobs} worker" + "s" * (n_jobs > 1)
    limits = {"cold store": COLD, "warm store": WARM}
    return [
        *(row("l", f"{case}, {way}", by_hand, seconds[way], seconds[by_hand], limits[way], "s") for way in limits),
        *(
            row("l", f"{case}, {way}", "plain freezing", seconds[way], seconds["plain freezing"], PLAIN, "s")
            for way in limits
        ),
        row("l", f"{case}, cache in memory", by_hand, seconds["cache in memory"], seconds[by_hand], unit="s"),
    ]


class Clock(Callback):
    """CPU time when training begins, and after each epoch."""

    def on_train_begin(self, net, **kwargs):
        self.times_ = [process_time()]

    def on_epoch_end(self, net, **kwargs):
        self.times_.append(process_time())


def compare_fits(n_images, rounds):
    data, labels = images(n_images)

    def seconds(store, skipped):
        clock, cache = Clock(), t_clbk("frozen_cache", store=store, keep=True)
        net(CNN, clock, frozen(), cache, epochs=EPOCHS + skipped).fit(data, labels)
        return process_time() - clock.times_[skipped]

    with TemporaryDirectory() as folder:
        seconds(folder, 0)
        fits = in_turns({"disk": lambda: seconds(folder, 0), "memory": lambda: seconds(None, 1)}, rounds)
    return row("l", "fit, warm store", "rows all in memory", fits["disk"], fits["memory"], FIT, "s")


def measure(n_images=512, rounds=3, fit_rounds=10, n_jobs=(1, 2)):
    searches = [compare_searches(n_images, n, rounds) for n in n_jobs]
    return table([*(one for rows in searches for one in rows), compare_fits(n_images, fit_rounds)])
