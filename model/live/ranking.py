"""Candidates of a request, what is known of each, and the best of them by a mixture."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.compiled import compiled, part

FEATURES = (
    "model",  # log-probability by the model among the items that it lists, below the last of others
    "scored",  # whether it has one
    "near",  # cosine of how often it was had near the user's last items, the newest most
    "after",  # how often soon after the last three of them
    "popular_1d", "popular_7d", "popular_30d", "popular_180d",
    "age",  # days since its first event
    "known",  # whether the model knows it
    "visit",  # as `near`, of what was had within one visit
    "like_recent", "like_query",  # cosines of its neighbours' mean with the last items', the query
)  # fmt: skip
CONTEXT = ("has_query", "length", "unknown", "last_unknown", "certainty")
"""Of a request: whether the model knows something of the user; log2(1 + last items); of these, the
share that has not moved the state; whether the last has not; the log-probability of the
item that it ranks highest."""

N_FEATURES, N_CONTEXT = len(FEATURES), len(CONTEXT)
MODEL, SCORED, NEAR, AFTER, POPULAR = 0, 1, 2, 3, 4
AGE, KNOWN, VISIT, LIKE_RECENT, LIKE_QUERY = 8, 9, 10, 11, 12
HAS_QUERY, LENGTH, UNKNOWN, LAST_UNKNOWN, CERTAINTY = 0, 1, 2, 3, 4
TOTAL, FIRST_MS, POPULARITY, CHANGES, DAY_MS = 0, 1, 2, 6, 86_400_000.0
"""As model.live.counting has them: code is compiled anew when its own file changes."""
USUAL_ALONE = POPULAR + 2
"""For somebody of whom nothing is known: the popularity of 30 days."""
RECENCY = 0.8
"""The weight of an item of the history against that of the next newer one."""
SHRINKAGE = 3.0
UNLISTED = -8.0
"""Of items that the model does not list, where it lists none."""
STEPS = np.float32(127)
"""Of a component of a neighbours' mean, which takes a byte: 64 of them are one cache line."""
LEAST, LEAST_POPULARITY, LEAST_DAYS = np.float32(1e-3), -6.64, 0.02
"""What is added to counts and days, for their logarithms, and the least log2 of a popularity."""


_HIDDEN, _CANDIDATE = 1, 2


@part
def _log2(x: Any, exponents: Any) -> None:
    """In place, of normal positive numbers, to 4e-5."""
    bits = x.view(np.int32)
    for i in range(len(x)):
        exponents[i] = np.float32((bits[i] >> 23) - 127)
        bits[i] = (bits[i] & 0x7FFFFF) | 0x3F800000
    for i in range(len(x)):
        m = x[i]
        p = np.float32(0.043428908)
        p = p * m + np.float32(-0.40486717)
        p = p * m + np.float32(1.5939014)
        p = p * m + np.float32(-3.4924943)
        p = p * m + np.float32(5.046876)
        p = p * m + np.float32(-2.786813)
        x[i] = exponents[i] + p


@part
def _dot(x: Any, y: Any) -> np.float32:
    total = np.float32(0)
    for d in range(len(x)):
        total += x[d] * y[d]
    return total


@part
def _around(number: int, counts: Any, items: Any, scratch: Any) -> None:
    """Brings the mean vector of an item's neighbours up to date."""
    scratch.around_changes[number] = counts.stats[number, CHANGES]
    own = np.zeros(scratch.around.shape[1], np.float32)
    for m in range(counts.neighbours.shape[1]):
        other = counts.neighbours[number, m]
        if other < 0:
            break
        row = items.rows_of[other]
        if 0 < row < len(items.vectors):
            weight = counts.together[number, m]
            for d in range(len(own)):
                own[d] += weight * items.vectors[row, d]
    scale = np.float32(STEPS) / (np.sqrt(_dot(own, own)) + np.float32(1e-30))
    for d in range(len(own)):
        scratch.around[number, d] = np.int8(np.rint(own[d] * scale))


@part
def _own(values: Any, ends: Any, b: int) -> Any:
    """What of the requests' values is request b's."""
    return values[(ends[b - 1] if b else 0) : ends[b]]


@part
def _mark(hidden: Any, mark: int, marks: Any) -> None:
    for i in range(len(hidden)):
        if 0 <= hidden[i] < len(marks):
            marks[hidden[i]] = mark


@part
def _add(row: int, number: int, n: int, open_rows: Any, scratch: Any) -> int:
    """Makes a row the candidate n if it may be returned and is none yet; returns how many there
    are. It is written first and counted if it is one: nobody can guess which."""
    if not 0 < row < len(open_rows):
        return n
    scratch.rows[n], scratch.numbers[n] = row, number
    is_new = open_rows[row] and scratch.marks[row] == 0
    scratch.marks[row] += is_new * _CANDIDATE
    return int(n + is_new)


@part
def _add_listed(listed: Any, listed_scores: Any, items: Any, scratch: Any) -> int:
    """What the model ranks highest; returns how many there are."""
    total, n = 0.0, 0
    for i in range(len(listed)):
        if listed[i] == 0:
            break
        total += np.exp(listed_scores[i] - listed_scores[0])
    all_of_them = listed_scores[0] + np.float32(np.log(total))
    numbers_of, open_rows, features = items.numbers_of, items.open, scratch.features
    for i in range(len(listed)):
        if listed[i] == 0:
            break
        features[MODEL, n] = listed_scores[i] - all_of_them
        features[SCORED, n] = 1
        n = _add(listed[i], numbers_of[listed[i]], n, open_rows, scratch)
    return n


@part
def _add_popular(n: int, popular: Any, items: Any, scratch: Any) -> int:
    """What is popular; returns how many there are then."""
    rows_of, open_rows = items.rows_of, items.open
    for p in range(popular.shape[0]):
        for number in popular[p]:
            if number < 0:
                break
            n = _add(rows_of[number], number, n, open_rows, scratch)
    return n


@part
def _add_near(
    n: int, numbers: Any, newest_ms: int, half_life: float, counts: Any, items: Any, scratch: Any
) -> int:
    """What was had near the last items, and what its counts with them come to: near, after, visit;
    returns how many there are then."""
    rows_of, open_rows, sums = items.rows_of, items.open, scratch.sums
    neighbours, together_of, after_of = counts.neighbours, counts.together, counts.after
    visit_of, touched, stats = counts.visit, counts.touched, counts.stats
    weight, after_weight = 1.0, 1.0
    for k in range(len(numbers)):
        source = numbers[k]
        if source >= 0:
            decay = 2.0 ** (min(touched[source] - newest_ms, 0) / half_life)
            total = stats[source, TOTAL]
            near = np.float32(weight * decay / np.sqrt(total + SHRINKAGE))
            after = np.float32(after_weight * decay / (total + 1.0)) if k < 3 else np.float32(0)
            for m in range(neighbours.shape[1]):
                other = neighbours[source, m]
                if other < 0:
                    break
                sums[other, 0] += near * together_of[source, m]
                sums[other, 1] += after * after_of[source, m]
                sums[other, 2] += near * visit_of[source, m]
                n = _add(rows_of[other], other, n, open_rows, scratch)
        weight *= RECENCY
        after_weight *= 0.5
    return n


@part
def _mean(recent: Any, vectors: Any) -> Any:
    """Of the last items' vectors, the newest weighing most: (D), not divided by their number."""
    mean = np.zeros(vectors.shape[1], np.float32)
    weight = np.float32(1)
    for k in range(len(recent)):
        if recent[k] > 0:
            for d in range(len(mean)):
                mean[d] += weight * vectors[recent[k], d]
        weight *= np.float32(RECENCY)
    return mean


@part
def _moves_nothing(row: int, items: Any) -> bool:
    """Whether the state does not know of an item that was had."""
    return row == 0 or row > items.n_inputs


@part
def _length(x: Any) -> Any:
    return np.sqrt(_dot(x, x)) + np.float32(1e-6)


@part
def _describe_uncounted(i: int, n_half_lives: int, features: Any) -> None:
    """What is known of a candidate that has had no event."""
    features[NEAR, i] = features[AFTER, i] = features[VISIT, i] = LEAST
    for h in range(n_half_lives):
        features[POPULAR + h, i] = LEAST_POPULARITY
    features[AGE, i] = LEAST_DAYS
    features[LIKE_RECENT, i] = features[LIKE_QUERY, i] = 0


@part
def _describe(i: int, number: int, stats: Any, now: Any, sums: Any, features: Any) -> None:
    """What the counts say of a candidate; of some the logarithm is to be taken. now: as popularity
    has it, by half-life, and last in ms."""
    norm = np.float32(1) / np.sqrt(np.float32(stats[number, TOTAL] + SHRINKAGE))
    features[NEAR, i] = sums[number, 0] * norm + LEAST
    features[AFTER, i] = sums[number, 1] + LEAST
    features[VISIT, i] = sums[number, 2] * norm + LEAST
    for h in range(len(now) - 1):
        features[POPULAR + h, i] = max(stats[number, POPULARITY + h] - now[h], LEAST_POPULARITY)
    age_ms = max(now[-1] - stats[number, FIRST_MS], 0.0)
    features[AGE, i] = np.float32(age_ms * (1 / DAY_MS)) + LEAST_DAYS


@part
def _liken(
    i: int, own: Any, mean: Any, mean_length: Any, query: Any, query_length: Any, features: Any
) -> None:
    """How far a candidate's neighbours' mean (D) points to the last items', and to the query."""
    to_mean, to_query = np.float32(0), np.float32(0)
    for d in range(len(mean)):
        component = np.float32(own[d])
        to_mean += component * mean[d]
        to_query += component * query[d]
    features[LIKE_RECENT, i] = to_mean / mean_length
    features[LIKE_QUERY, i] = to_query / query_length


@part
def _clear(numbers: Any, neighbours: Any, sums: Any) -> None:
    for k in range(len(numbers)):
        if numbers[k] >= 0:
            for m in range(neighbours.shape[1]):
                other = neighbours[numbers[k], m]
                if other < 0:
                    break
                sums[other, 0] = sums[other, 1] = sums[other, 2] = 0


@compiled
def gather(
    b: int, requests: Any, counts: Any, popular: Any, newest_ms: int, half_lives: Any,
    half_life: float, items: Any, scratch: Any, context: Any,
) -> int:  # fmt: skip
    """The candidates of request b, into the scratch, of which the rest is left as it was, and its
    context (X); returns how many there are."""
    features, vectors = scratch.features, items.vectors
    query, has_query = requests.queries[b], requests.has_query[b]
    last = _own(requests.numbers, requests.recent_ends, b)
    recent = _own(requests.rows, requests.recent_ends, b)
    hidden = _own(requests.hidden, requests.hidden_ends, b)
    _mark(hidden, _HIDDEN, scratch.marks)
    listed = 0
    if has_query:
        listed = _add_listed(requests.listed[b], requests.listed_scores[b], items, scratch)
    # The own score of any other would be a vector to fetch, and made lists no better.
    floor = features[MODEL, listed - 1] - np.float32(1) if listed else np.float32(UNLISTED)
    n = _add_popular(listed, popular, items, scratch)
    n = _add_near(n, last, newest_ms, half_life, counts, items, scratch)
    _mark(hidden, 0, scratch.marks)
    mean = _mean(recent, vectors)
    mean_length, query_length = STEPS * _length(mean), STEPS * _length(query)
    now = np.append(newest_ms / half_lives, np.float64(newest_ms))
    # Not taken out of their tuples for each candidate: that would count references.
    stats, sums, marks, rows = counts.stats, scratch.sums, scratch.marks, scratch.rows
    around, changes, numbers = scratch.around, scratch.around_changes, scratch.numbers
    for i in range(n):
        row, number = rows[i], numbers[i]
        marks[row] = 0
        known = row < len(vectors)
        if i >= listed:
            features[SCORED, i] = has_query and known
            features[MODEL, i] = floor * features[SCORED, i]
        features[KNOWN, i] = known
        if number < 0:
            _describe_uncounted(i, len(half_lives), features)
            continue
        _describe(i, number, stats, now, sums, features)
        if changes[number] != stats[number, CHANGES]:
            _around(number, counts, items, scratch)
    for i in range(n):
        if numbers[i] >= 0:
            _liken(i, around[numbers[i]], mean, mean_length, query, query_length, features)
    if not has_query:
        features[LIKE_QUERY, :n] = 0
    for f in (NEAR, AFTER, VISIT, AGE):
        _log2(features[f, :n], scratch.logs)
    _clear(last, counts.neighbours, sums)
    unknown = 0
    for k in range(len(recent)):
        unknown += _moves_nothing(recent[k], items)
    context[HAS_QUERY] = has_query
    context[LENGTH] = np.log2(1.0 + len(recent))
    context[UNKNOWN] = unknown / max(1, len(recent))
    context[LAST_UNKNOWN] = len(recent) > 0 and _moves_nothing(recent[0], items)
    context[CERTAINTY] = features[MODEL, 0] if listed else np.float32(0)
    return int(n)


@part
def _score(n: int, features: Any, context: Any, weights: Any, scores: Any, hidden: Any) -> None:
    """Of the first n candidates: (n)."""
    n_features, n_context = len(weights.linear), len(context)
    scores[:n] = 0
    for f in range(n_features):
        slope = weights.linear[f]
        for x in range(n_context):
            slope += weights.by_context[f, x] * context[x]
        for i in range(n):
            scores[i] += slope * features[f, i]
    for h in range(len(weights.out)):
        bias = weights.bias[h]
        for x in range(n_context):
            bias += weights.hidden_context[h, x] * context[x]
        hidden[:n] = bias
        for f in range(n_features):
            slope = weights.hidden[h, f]
            for i in range(n):
                hidden[i] += slope * features[f, i]
        out = weights.out[h]
        for i in range(n):
            scores[i] += out * max(hidden[i], np.float32(0))


@part
def _select(n: int, rows: Any, scores: Any, k: int, best_rows: Any, best_scores: Any) -> int:
    """The k best of the first n, best first, equal ones in the order of their rows."""
    size = 0
    for i in range(n):
        row, score = rows[i], scores[i]
        if size == k and score < best_scores[size - 1]:
            continue
        place = size
        while place > 0 and (
            best_scores[place - 1] < score
            or (best_scores[place - 1] == score and best_rows[place - 1] > row)
        ):
            place -= 1
        if place == k:
            continue
        size = min(size + 1, k)
        for p in range(size - 1, place, -1):
            best_rows[p], best_scores[p] = best_rows[p - 1], best_scores[p - 1]
        best_rows[place], best_scores[place] = row, score
    return size


@compiled
def best(
    requests: Any, counts: Any, popular: Any, newest_ms: int, half_lives: Any, half_life: float,
    items: Any, scratch: Any, weights: Any, alone: int, unseen: float, found_rows: Any,
    found_scores: Any, sizes: Any,
) -> None:  # fmt: skip
    """The best candidates of each request: (B, k) rows and scores, best first; equal ones in the
    order of their rows. alone: the feature that ranks them where nothing is known of somebody;
    unseen: is added to the score of what has had no event;
    sizes: (B) how many there are."""
    context = np.zeros(N_CONTEXT, np.float32)
    wide = len(scratch.logs)
    scores, hidden = np.empty(wide, np.float32), np.empty(wide, np.float32)
    for b in range(len(requests.ks)):
        n = gather(
            b, requests, counts, popular, newest_ms, half_lives, half_life, items, scratch, context
        )
        if context[HAS_QUERY] or context[LENGTH]:
            _score(n, scratch.features, context, weights, scores, hidden)
            for i in range(n):
                scores[i] += np.float32(unseen) * (scratch.numbers[i] < 0)
        else:  # of somebody of whom nothing is known
            scores[:n] = scratch.features[alone, :n]
        sizes[b] = _select(n, scratch.rows, scores, requests.ks[b], found_rows[b], found_scores[b])
