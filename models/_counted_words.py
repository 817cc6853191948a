"""What words, and pairs of words, say of a sentence's class by their counts alone: naive Bayes.

B sentences, T tokens of the longest, F words and pairs that are counted, C classes.
"""

import torch
from torch import Tensor, nn

EMPTY = torch.iinfo(torch.int64).max
"""the key of a place that holds no word or pair; it sorts last"""


class CountedWords(nn.Module):
    """Multinomial naive Bayes on which words and which pairs of neighbours occur.

        score_c = ln (s_c + 1) + sum over f of ln (n_fc + 1) / (sum_f' n_f'c + F)    less the largest of all c

    f runs over the distinct words and pairs of a sentence that are counted; a sentence's edge makes a pair with its
    first word, and with its last. n_fc counted sentences of class c have f, s_c are of class c. At most `places` words
    and pairs are counted, those that most sentences have, of equal ones those of the lower ids; the others say nothing.

    Source: Wang and Manning, "Baselines and bigrams: simple, good sentiment and topic classification", ACL 2012,
    section 2.1, with presence for counts and 1 added.
    """

    def __init__(self, places: int, vocabulary: int, classes: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("keys", torch.full((places,), EMPTY))
        self.register_buffer("counts", torch.zeros(places, classes, dtype=torch.int64))
        self.register_buffer("sentences", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def count(self, tokens: Tensor, mask: Tensor, labels: Tensor) -> None:
        """Count these sentences, instead of those of an earlier call.

        tokens [N, T], of which mask [N, T] are the sentences' own; labels [N]
        """
        places, classes = self.counts.shape
        keys = self._keys(tokens, mask)
        held = keys != EMPTY
        distinct, which = keys[held].unique(return_inverse=True)
        label = labels[:, None].expand_as(keys)[held]
        counts = torch.bincount(which * classes + label, minlength=len(distinct) * classes).view(-1, classes)
        kept = counts.sum(1).argsort(descending=True, stable=True)[:places].sort().values
        self.keys.fill_(EMPTY)[: len(kept)] = distinct[kept]
        self.counts.zero_()[: len(kept)] = counts[kept]
        self.sentences.copy_(torch.bincount(labels, minlength=classes))

    @torch.no_grad()
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, T], of which mask [B, T] are the sentences' own -> score [B, C], float64, the largest of each
        sentence 0, so that a narrower type keeps what tells classes apart."""
        keys = self._keys(tokens, mask)
        at = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        known = (self.keys[at] == keys) & (keys != EMPTY)
        each = torch.where(known[..., None], (self.counts[at].double() + 1).log(), 0)
        whole = (self.counts.sum(0) + (self.keys != EMPTY).sum()).clamp_min(1)  # 0 before anything is counted
        score = (self.sentences.double() + 1).log() + each.sum(1) - known.sum(1, keepdim=True) * whole.double().log()
        return score - score.amax(1, keepdim=True)

    def _keys(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The keys of each row's words and pairs, sorted, each once, EMPTY elsewhere: [B, 2T + 1]."""
        tokens = tokens.long()
        word = torch.where(mask, tokens + 1, 0)
        left, right = (nn.functional.pad(word, side) for side in ((1, 0), (0, 1)))
        pair = self.vocabulary + left * (self.vocabulary + 1) + right
        parts = torch.where(mask, tokens, EMPTY), torch.where(left + right > 0, pair, EMPTY)
        keys = torch.cat(parts, 1).sort(1).values
        keys[:, 1:] = keys[:, 1:].where(keys[:, 1:] != keys[:, :-1], EMPTY)
        return keys
