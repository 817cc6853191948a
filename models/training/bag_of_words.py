"""The floor of any classifier of sentences: which words occur, and nothing of their order.

N sentences, W words, C classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rheobase.models.training.sentences import Sentences

DECAYS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""the weight decays that are tried on the part held out"""
UPDATES = 200


def bag_of_words(train: Sentences, held_out: Sentences, dev: Sentences, classes: int) -> float:
    """Accuracy on dev of multinomial logistic regression on the words present.

        minimise  mean cross-entropy(x W + b) + decay / 2 |W|^2,    x[word] = 1 where the word occurs, else 0

    by L-BFGS from 0. The decay is chosen on the part held out; the model that is judged is then fitted to both
    parts, the train part and the one held out. Words are what blanks separate.
    """
    scores = [_accuracy(_fit(train, classes, decay), held_out) for decay in DECAYS]
    both = Sentences(train.texts + held_out.texts, np.concatenate([train.labels, held_out.labels]))
    return _accuracy(_fit(both, classes, DECAYS[int(np.argmax(scores))]), dev)


def _present(texts: Sequence[str], columns: dict[str, int]) -> Tensor:
    """Which words occur, sparse [N, W]."""
    places = [(row, columns[w]) for row, text in enumerate(texts) for w in set(text.split()) if w in columns]
    index = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
    size = (len(texts), len(columns))
    return torch.sparse_coo_tensor(index, torch.ones(index.shape[1]), size, check_invariants=True)


def _fit(sentences: Sentences, classes: int, decay: float) -> tuple[dict[str, int], Tensor, Tensor]:
    columns = {w: i for i, w in enumerate(sorted({w for text in sentences.texts for w in text.split()}))}
    x, target = _present(sentences.texts, columns), torch.from_numpy(sentences.labels)
    weight, bias = torch.zeros(len(columns), classes, requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=UPDATES, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = F.cross_entropy(torch.sparse.mm(x, weight) + bias, target) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return columns, weight.detach(), bias.detach()


def _accuracy(model: tuple[dict[str, int], Tensor, Tensor], sentences: Sentences) -> float:
    columns, weight, bias = model
    guess = (torch.sparse.mm(_present(sentences.texts, columns), weight) + bias).argmax(1)
    return float((guess.numpy() == sentences.labels).mean())
